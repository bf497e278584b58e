"""Noise, evidence, losses, time sampling and samplers do what their formulas say."""

import math

import pytest
import torch
from torch import nn

from diffusion import SAMPLERS, Diffusion
from kit.errors import UserError
from kit.times import TimeSampler
from model import build_jit_model
from palette import Canvas, build_palette

VOCAB = 64


def make(objective="token", predict_clean=True):
    torch.manual_seed(0)
    network = build_jit_model("JiT-Ti/4", 8, predict_clean, VOCAB if objective == "token" else None)
    return Diffusion(network, build_palette("shuffled", VOCAB), Canvas(8, 4), objective)


def batch(seed=0, size=4):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (size, 64), generator=generator)
    mask = torch.arange(64)[None] < torch.tensor([[64], [40], [17], [3]])[:size]
    return tokens, mask, torch.rand(size, generator=generator), torch.randn(size, 64, 3, generator=generator)


def test_noise_follows_the_formula_and_spares_what_is_known():
    diffusion = make()
    tokens, _, t, noise = batch()
    known = torch.zeros_like(tokens, dtype=torch.bool)
    known[:, :5] = True
    z = diffusion.canvas.read(diffusion.add_noise(tokens, t, noise, known))
    x = diffusion.palette.colors[tokens]
    assert torch.equal(z[:, :5], x[:, :5])
    assert torch.allclose(z[:, 5:], (t[:, None, None] * x + (1 - t[:, None, None]) * noise)[:, 5:])


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 0.99])
def test_evidence_is_the_gaussian_log_likelihood_up_to_a_constant(t):
    diffusion = make()
    z = torch.randn(20, 3, dtype=torch.float64)
    expected = -(z[:, None] - t * diffusion.palette.colors.double()).square().sum(-1) / (2 * (1 - t) ** 2)
    found = diffusion.evidence(z, torch.full((20,), t)).double()
    assert torch.allclose(found.log_softmax(-1), expected.log_softmax(-1), atol=2e-2, rtol=1e-4)


def test_evidence_keeps_full_precision_under_autocast():
    diffusion = make()
    z, t = torch.rand(50, 3), torch.full((50,), 0.98)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(diffusion.evidence(z, t), diffusion.evidence(z, t).float())
        inside = diffusion.evidence(z, t)
    assert torch.equal(inside, diffusion.evidence(z, t))


def test_an_untrained_token_network_is_the_unigram_posterior():
    diffusion = make()
    diffusion.network.head.bias.data.normal_()
    tokens, mask, t, noise = batch()
    z = diffusion.add_noise(tokens, t, noise)
    guess = diffusion.denoise(z, t, mask).tokens
    evidence = diffusion.evidence(diffusion.canvas.read(z)[mask], t[:, None].expand_as(mask)[mask])
    assert torch.equal(guess[mask], (evidence + diffusion.network.head.bias).argmax(-1))


@pytest.mark.parametrize(("objective", "predict_clean"), [("token", True), ("pixel", True), ("pixel", False)])
def test_loss_ignores_padding_and_known_pixels(objective, predict_clean):
    diffusion = make(objective, predict_clean)
    for parameter in diffusion.parameters():
        nn.init.normal_(parameter, std=0.05)
    tokens, mask, t, noise = batch()
    known = mask & (torch.arange(64) % 3 == 0)
    loss, per_sample = diffusion(tokens, mask, t, noise, known)
    changed = torch.where(mask, tokens, (tokens + 7) % VOCAB)
    noisier = torch.where((mask & ~known)[..., None], noise, noise * 5 + 1)
    again, per_sample_again = diffusion(changed, mask, t, noisier, known)
    assert torch.allclose(loss, again, rtol=1e-5) and torch.allclose(per_sample, per_sample_again, rtol=1e-4)
    weights = (mask & ~known).sum(1)
    assert torch.allclose((per_sample * weights).sum() / weights.sum(), loss, rtol=1e-5)


def test_cutting_the_logits_into_parts_changes_neither_loss_nor_gradient(monkeypatch):
    results = []
    for limit in (1 << 27, VOCAB * 7):
        monkeypatch.setattr("diffusion.MAX_LOGITS", limit)
        diffusion = make()
        loss, _ = diffusion(*batch())
        loss.backward()
        results.append((loss.detach(), diffusion.network.head.weight.grad))
    assert torch.allclose(results[0][0], results[1][0]) and torch.allclose(results[0][1], results[1][1], atol=1e-7)


def test_clean_prediction_and_velocity_name_the_same_picture():
    """A network that always returns v = x - eps for its own z must be read as x, exactly."""
    diffusion = make("pixel", predict_clean=False)
    tokens, mask, t, noise = batch()
    x = diffusion.palette.colors[tokens]
    velocity = diffusion.canvas.paint(x - noise)
    diffusion.network.forward = lambda *args, **kwargs: velocity
    z = diffusion.add_noise(tokens, t, noise)
    assert torch.equal(diffusion.denoise(z, t, mask).tokens, tokens * mask)
    assert diffusion(tokens, mask, t, noise)[0] < 1e-10


class TwoTokens(nn.Module):
    """A perfect denoiser for one-token pictures whose only tokens are 0 (chance 0.8) and 1: no context, known prior."""

    vocab_size, predict_clean = VOCAB, True

    def __init__(self):
        super().__init__()
        self.prior = torch.full((VOCAB,), -1e9)
        self.prior[:2] = torch.tensor([0.8, 0.2]).log()

    def forward(self, z, t, mask, known=None, x_prev=None, num_patches=None):
        return torch.zeros(*mask.shape, 1)

    def head(self, features):
        return self.prior.expand(*features.shape[:-1], VOCAB)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_draw_tokens_in_their_true_proportions(sampler):
    diffusion = Diffusion(TwoTokens(), build_palette("shuffled", VOCAB), Canvas(8, 4))
    mask = torch.ones(64, 64, dtype=torch.bool)
    grid = TimeSampler("logit_normal", 0.0, 1.5).grid(40)
    found = diffusion.sample(mask, grid, sampler, generator=torch.Generator().manual_seed(0))
    share = (found == 0).float().mean().item()
    assert (found <= 1).all()
    assert abs(share - 0.8) < 4 * math.sqrt(0.8 * 0.2 / found.numel()) + 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_tokens_stay_and_padding_stays_empty(sampler):
    diffusion = make()
    tokens, mask, _, _ = batch()
    known = mask & (torch.arange(64) < 9)
    grid = TimeSampler("logit_normal").grid(4)
    found = diffusion.sample(mask, grid, sampler, known=known, known_tokens=tokens)
    assert torch.equal(found[known], tokens[known])
    assert (found[~mask] == 0).all()


def test_a_sampler_repeats_itself_for_a_seed():
    diffusion, mask = make(), torch.ones(1, 64, dtype=torch.bool)
    grid = TimeSampler("logit_normal").grid(4)
    runs = [diffusion.sample(mask, grid, "stochastic", generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_mismatched_parts_are_refused():
    network = build_jit_model("JiT-Ti/4", 8, vocab_size=VOCAB)
    with pytest.raises(UserError, match="64 tokens, the palette 65"):
        Diffusion(network, build_palette("digits", VOCAB + 1), Canvas(8, 4))
    with pytest.raises(UserError, match="pixel objective one without"):
        Diffusion(network, build_palette("digits", VOCAB), Canvas(8, 4), "pixel")
