"""A vocabulary too large for whole tables trains and decodes through the candidates of each place."""

import pytest
import torch

import corpus.ngram_tables
import kit.cross_entropy
from tests.small_diffusion import counted, make, opened, real_batch

LARGE = 5000


@pytest.fixture
def large_tables(monkeypatch):
    """Tables of few n-grams over a large vocabulary are hashed, as those of many are."""
    monkeypatch.setattr(corpus.ngram_tables, "DENSE_TABLE", 1 << 16)


@pytest.mark.parametrize("order", [0, 2, 3])
def test_a_large_vocabulary_trains_through_its_candidates(large_tables, monkeypatch, order):
    ngram = counted(order, folds=2, vocab_size=LARGE) if order else None
    tokens, mask, t, noise = real_batch(vocab_size=LARGE, sigma=0.1)
    fold = torch.tensor([1, 2, 0, 1])
    results = []
    for limit in (1 << 27, LARGE * 37):
        monkeypatch.setitem(kit.cross_entropy.LOGITS_AT_ONCE, "cpu", limit)
        diffusion = opened(make(ngram=ngram, vocab_size=LARGE))
        loss, per_sample = diffusion(tokens, mask, t, noise, mask & (torch.arange(64) < 2), fold, self_condition=True)
        loss.backward()
        gradients = {name: p.grad for name, p in diffusion.network.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in gradients.values())
        assert per_sample.isfinite().all()
        found = diffusion.denoise(diffusion.add_noise(tokens, t, noise), t, mask, tokens=tokens)
        results.append((loss.detach(), gradients, found))
    (loss, gradients, found), (cut_loss, cut_gradients, cut_found) = results
    assert torch.allclose(loss, cut_loss)
    assert all(torch.allclose(gradients[name], cut_gradients[name], atol=1e-6) for name in gradients)
    assert torch.equal(found.tokens, cut_found.tokens) and torch.allclose(found.nll, cut_found.nll, atol=1e-3)


@pytest.mark.parametrize("order", [2, 3])
def test_a_large_vocabulary_starts_as_the_posterior_of_its_candidates(large_tables, order):
    diffusion = make(ngram=counted(order, vocab_size=LARGE), vocab_size=LARGE)
    for spacings, gain in ((0.4, 0.0), (0.8, 0.1)):
        tokens, mask, t, noise = real_batch(spacings * diffusion.palette.spacing, vocab_size=LARGE)
        z = diffusion.add_noise(tokens, t, noise)
        found = diffusion.denoise(z, t, mask, tokens=tokens)
        nearest = diffusion.palette.decode(z / t[:, None, None])
        text = mask & (torch.arange(64) < 60)
        right = [(guess == tokens)[text].float().mean().item() for guess in (found.tokens, nearest)]
        assert right[0] > right[1] + gain
        observation = diffusion.observe(z, t, mask)
        seen = diffusion.likelihoods(z, observation.t)
        assert (found.tokens == observation.contexts[-1].best(seen))[text].float().mean() > 0.95
