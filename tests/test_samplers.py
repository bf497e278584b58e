"""Samplers draw what the distribution holds, repeat themselves for a seed, and leave alone what is given."""

import math

import pytest
import torch
from torch import nn

from diffusion import SAMPLERS, Diffusion, Guide
from kit import sampling
from kit.errors import UserError
from kit.sampling import num_passes
from kit.times import TimeSampler
from palette import Layout, build_palette
from tests.small_diffusion import VOCAB, batch, counted, make, opened, real_batch


class TwoTokens(nn.Module):
    """A perfect denoiser for one-token pictures whose only tokens are 0 (chance 0.8) and 1: no context, known prior."""

    vocab_size, predict_clean, ngram = VOCAB, True, 0

    def __init__(self):
        super().__init__()
        self.prior = torch.full((VOCAB,), -1e9)
        self.prior[:2] = torch.tensor([0.8, 0.2]).log()
        self.embedding = nn.Parameter(torch.zeros(VOCAB, 1))

    def forward(self, z, t, mask, cond_mask=None, soft=None, prev=None):
        return torch.zeros(*mask.shape, 1)

    def head(self, features):
        return self.prior.expand(*features.shape[:-1], VOCAB)


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_samplers_draw_tokens_in_their_true_proportions(sampler):
    diffusion = Diffusion(TwoTokens(), build_palette("shuffled", VOCAB), Layout(8, 4))
    mask = torch.ones(64, 64, dtype=torch.bool)
    grid = TimeSampler("logit_normal", 0.0, 1.5).grid(40)
    found = diffusion.sample(mask, grid, sampler, generator=torch.Generator().manual_seed(0))
    share = (found == 0).float().mean().item()
    assert (found <= 1).all()
    assert abs(share - 0.8) < 4 * math.sqrt(0.8 * 0.2 / found.numel()) + 0.01


def test_churn_leaves_the_proportions_and_guidance_sharpens_them():
    """Guidance away from a network to which both tokens are alike: p^(1 + w), normalized."""
    diffusion, other = (Diffusion(TwoTokens(), build_palette("shuffled", VOCAB), Layout(8, 4)) for _ in range(2))
    other.network.prior = torch.where(diffusion.network.prior > -5, 0.0, -30.0)
    mask, grid = torch.ones(64, 64, dtype=torch.bool), TimeSampler("logit_normal", 0.0, 1.5).grid(40)
    for options, expected in (
        ({"churn": 20.0}, 0.8),
        ({"guide": Guide(other, 1.0)}, 0.64 / 0.68),
        ({"guide": Guide(other, -0.5)}, 2 / 3),
    ):
        generator = torch.Generator().manual_seed(0)
        found = diffusion.sample(mask, grid, "euler", generator=generator, **options)
        share = (found == 0).float().mean().item()
        assert (found <= 1).all() and abs(share - expected) < 4 * math.sqrt(0.16 / found.numel()) + 0.01, options
    stranger = Diffusion(TwoTokens(), build_palette("digits", VOCAB), Layout(8, 4))
    with pytest.raises(UserError, match="another palette"):
        diffusion.sample(mask, grid, "euler", guide=Guide(stranger, 1.0))


def test_heun_follows_the_flow_more_closely_than_euler():
    """From the same noise, a few steps of each against many."""
    diffusion = Diffusion(TwoTokens(), build_palette("shuffled", VOCAB), Layout(8, 4))
    mask, times = torch.ones(8, 64, dtype=torch.bool), TimeSampler("logit_normal", 0.0, 1.5)
    noise = torch.randn(8, 64, 3, generator=torch.Generator().manual_seed(0))

    def end(sampler, num_steps):
        grid, estimates = times.grid(num_steps, 0.1, lowest=1.0), []
        diffusion.sample(mask, grid, sampler, noise * (1 - grid[0]), callback=estimates.append)
        return estimates[-1]

    exact = end("euler", 400)
    error = [(end(sampler, 8) - exact).square().mean() for sampler in ("euler", "heun")]
    assert error[1] < 0.3 * error[0]


@pytest.mark.parametrize(("sampler", "temperature"), [("posterior", 1.0), ("stochastic", 0), ("euler", 0)])
def test_the_posterior_takes_the_likelier_token_instead_of_drawing(sampler, temperature):
    diffusion = Diffusion(TwoTokens(), build_palette("shuffled", VOCAB), Layout(8, 4))
    mask = torch.ones(64, 64, dtype=torch.bool)
    grid = TimeSampler("logit_normal", 0.0, 1.5).grid(3)
    generator = torch.Generator().manual_seed(0)
    assert (diffusion.sample(mask, grid, sampler, temperature=temperature, generator=generator) == 0).all()


@pytest.mark.parametrize("ngram", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_tokens_stay_and_padding_stays_empty(sampler, ngram):
    diffusion = opened(make(ngram=counted() if ngram else None))
    tokens, mask, _, _ = batch()
    given = mask & (torch.arange(64) < 9)
    grid = TimeSampler("logit_normal").grid(4)
    calls = []
    found = diffusion.sample(mask, grid, sampler, cond_mask=given, cond_tokens=tokens, callback=calls.append)
    assert torch.equal(found[given], tokens[given])
    assert (found[~mask] == 0).all() and found[mask & ~given].any()
    assert len(calls) == (4 if sampler == "posterior" else num_passes(sampler, 4))
    assert all(torch.equal(x[given], diffusion.palette.colors[tokens[given]]) for x in calls)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_temperature_zero_and_the_posterior_sampler_recover(sampler):
    """Both stay at the noise they were given and make as many passes as the grid has times."""
    diffusion = opened(make(ngram=counted()))
    nn.init.normal_(diffusion.network.prev_proj.weight, std=0.5)
    tokens, mask, t, noise = real_batch(0.5)
    given = mask & (torch.arange(64) < 4)
    z = diffusion.add_noise(tokens, t, noise, given)
    grid = TimeSampler("logit_normal").grid(3, float(t[0]))
    settings = dict(z=z, cond_mask=given, cond_tokens=tokens)
    found = diffusion.sample(mask, grid, sampler, temperature=0 if sampler != "posterior" else 1.0, **settings)
    assert torch.equal(found, diffusion.recover(z, torch.full((4,), float(grid[0])), mask, given, passes=3).tokens)
    assert not torch.equal(found, diffusion.recover(z, t, mask, given, passes=1).tokens)


@pytest.mark.parametrize("sampler", ["euler", "heun", "stochastic"])
def test_samplers_return_a_clean_text_from_little_noise(sampler):
    diffusion = make(ngram=counted())
    tokens, mask, t, noise = real_batch(0.1)
    grid = TimeSampler("logit_normal").grid(5, float(t[0]))
    z = diffusion.add_noise(tokens, t, noise)
    found = diffusion.sample(mask, grid, sampler, z, generator=torch.Generator().manual_seed(0))
    assert (found == tokens)[mask].float().mean() > 0.97


def test_a_low_temperature_draws_likelier_texts():
    ngram = counted()
    diffusion = make(ngram=ngram)
    diffusion.network.head.bias.data.copy_(torch.randn(VOCAB) * 0.1)
    mask, grid = torch.ones(8, 64, dtype=torch.bool), TimeSampler("logit_normal", 0.0, 1.5).grid(12)
    bits = []
    for temperature in (1.0, 0.5):
        found = diffusion.sample(
            mask, grid, "stochastic", temperature=temperature, generator=torch.Generator().manual_seed(0)
        )
        bits.append(ngram.bits_per_token(found.numpy(), 3))
    assert bits[1] < bits[0]


def test_a_sampler_repeats_itself_for_a_seed():
    diffusion, mask = make(), torch.ones(1, 64, dtype=torch.bool)
    grid = TimeSampler("logit_normal").grid(4)
    runs = [diffusion.sample(mask, grid, "stochastic", generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
