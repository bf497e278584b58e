"""BrierLM rewards being right, and pays for saying the same wrong thing twice."""

import torch

from corpus.brier import brier_lm


def test_a_reader_of_minds_gets_one_and_a_broken_record_nothing():
    truth = torch.randint(0, 50, (200, 4))
    assert brier_lm(truth, truth, truth)["brier_lm"] == 1
    wrong = (truth + 1) % 50
    assert brier_lm(wrong, wrong, truth) == {"brier_lm": 0.0, "brier": [-1.0] * 4}


def test_it_is_the_brier_score_of_the_sampling_distribution():
    """Heads with probability p against truth that is heads with q: 2 (p q + (1-p)(1-q)) - (p^2 + (1-p)^2), best at p = q."""
    generator = torch.Generator().manual_seed(0)

    def score(p, q=0.7, n=200_000):
        a, b = (torch.rand(n, 1, generator=generator) < p for _ in "ab")
        return brier_lm(a, b, torch.rand(n, 1, generator=generator) < q)["brier"][0]

    for p in (0.5, 0.7, 0.9):
        assert abs(score(p) - (2 * (0.7 * p + 0.3 * (1 - p)) - p**2 - (1 - p) ** 2)) < 0.01
    assert score(0.7) > max(score(0.5), score(0.9))
