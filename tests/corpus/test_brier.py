"""BrierLM rewards being right, and pays for saying the same wrong thing twice."""

import argparse
import itertools

import numpy as np
import pytest
import torch

from corpus.brier import brier_lm, check, passages
from kit.errors import UserError


def test_a_reader_of_minds_gets_one_and_a_broken_record_nothing():
    truth = torch.randint(0, 50, (200, 4))
    assert brier_lm((truth, truth), truth)["brier_lm"] == 1
    wrong = (truth + 1) % 50
    assert brier_lm((wrong, wrong), truth) == {"brier_lm": 0.0, "brier_lm_ci": [0.0, 0.0], "brier": [-1.0] * 4}


def test_its_interval_holds_the_score_of_ever_more_prompts():
    """Of 60 sets of prompts about one in twenty may miss it, on whose texts the first of two tokens is often right."""
    generator = torch.Generator().manual_seed(0)

    def scores(n):
        first, second, truth = (torch.rand(3, n, 2, generator=generator) < 0.9).long()
        return brier_lm((first, second), truth)

    wanted = scores(400_000)["brier_lm"]
    intervals = [scores(300)["brier_lm_ci"] for _ in range(60)]
    assert 52 <= sum(low < wanted < high for low, high in intervals) < 60


def test_it_is_the_brier_score_of_the_sampling_distribution():
    """Heads with probability p against truth that is heads with q: 2 (p q + (1-p)(1-q)) - (p^2 + (1-p)^2), best at p = q."""
    generator = torch.Generator().manual_seed(0)

    def score(p, q=0.7, n=200_000):
        a, b = (torch.rand(n, 1, generator=generator) < p for _ in "ab")
        return brier_lm((a, b), torch.rand(n, 1, generator=generator) < q)["brier"][0]

    for p in (0.5, 0.7, 0.9):
        assert abs(score(p) - (2 * (0.7 * p + 0.3 * (1 - p)) - p**2 - (1 - p) ** 2)) < 0.01
    assert score(0.7) > max(score(0.5), score(0.9))


def test_of_more_continuations_all_pairs_count():
    torch.manual_seed(0)
    *samples, truth = torch.randint(0, 2, (5, 300, 4))
    pairs = [brier_lm(pair, truth)["brier"] for pair in itertools.combinations(samples, 2)]
    assert brier_lm(samples, truth)["brier"] == pytest.approx(np.mean(pairs, 0).tolist())


@pytest.mark.parametrize(("name", "count"), [("num_prompts", 0), ("continuations", 1)])
def test_a_score_of_pairs_needs_pairs(name, count):
    with pytest.raises(UserError, match=f"--{name} {count}: need at least {count + 1}"):
        check(argparse.Namespace(**{"num_prompts": 1, "continuations": 2, name: count}))


def test_passages_are_the_beginnings_of_sequences_and_several_of_each_where_more_are_asked_for():
    class Held(list):
        lengths = np.array([30, 8, 30, 12])

    held = Held(torch.arange(1000 * i, 1000 * i + n) for i, n in enumerate(Held.lengths))
    beginnings = passages(held, 3, 10)
    assert beginnings.shape == (3, 10) and beginnings[:, 0].tolist() == [0, 2000, 3000]
    many = passages(held, 12, 10)
    assert many.shape == (11, 10)  # the short one has only three different passages
    assert len({tuple(row.tolist()) for row in many}) == 11 and set(beginnings[:, 0].tolist()) <= set(
        many[:, 0].tolist()
    )
    assert all((row.diff() == 1).all() for row in many)
    assert len(passages(held, 7, 10)) == 7
    with pytest.raises(UserError):
        passages(held, 3, 31)
