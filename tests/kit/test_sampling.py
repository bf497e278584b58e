"""The integrator on a distribution whose flow is known: x ~ N(MEAN, SPREAD^2), so that E[x | y] is linear in y."""

import math
from itertools import pairwise

import pytest
import torch

from kit.errors import UserError
from kit.sampling import SAMPLERS, integrate, num_passes

MEAN, SPREAD = 0.7, 0.5
START, END = 8.0, 0.05


def denoise(y, sigma):
    return (SPREAD**2 * y + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def exact(y, sigma, target):
    """Where the flow carries y from noise `sigma` to `target`: its place in units of the marginal's spread stays."""
    return MEAN + (y - MEAN) * math.sqrt((SPREAD**2 + target**2) / (SPREAD**2 + sigma**2))


def levels(count):
    return torch.logspace(math.log10(START), math.log10(END), count, dtype=torch.float64).tolist()


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_halving_the_steps_divides_the_error_by_two_to_the_order(sampler, order):
    y = torch.linspace(-9, 9, 7, dtype=torch.float64)
    errors = [
        (integrate(denoise, y, levels(steps + 1), sampler) - exact(y, START, END)).abs().max().item()
        for steps in (32, 64, 128)
    ]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_the_stochastic_sampler_draws_from_the_marginal():
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(200_000, generator=generator, dtype=torch.float64)

    y = MEAN + math.sqrt(SPREAD**2 + START**2) * noise()
    found = integrate(denoise, y, levels(200), "stochastic", noise)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert found.var().item() == pytest.approx(SPREAD**2 + END**2, rel=0.05)
    assert torch.corrcoef(torch.stack([y, found]))[0, 1] < 0.1  # the noise was renewed, not carried along


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_forward_passes_are_as_many_as_announced(sampler):
    passes = []

    def counted(y, sigma):
        passes.append(sigma)
        return denoise(y, sigma)

    integrate(counted, torch.zeros(3), levels(6), sampler, lambda: torch.zeros(3))
    assert len(passes) + 1 == num_passes(sampler, 6)


def test_noise_down_to_zero_is_allowed_and_ends_at_the_estimate():
    for sampler in SAMPLERS:
        found = integrate(
            lambda y, sigma: torch.full_like(y, 3.0), torch.zeros(2), [1.0, 0.5, 0.0], sampler, lambda: torch.ones(2)
        )
        assert torch.allclose(found, torch.full((2,), 3.0))


def test_an_unknown_sampler_is_refused():
    with pytest.raises(UserError, match="euler, heun, stochastic"):
        integrate(denoise, torch.zeros(1), [1.0, 0.5], "ddpm")


@pytest.mark.parametrize(("sampler", "error"), [("euler", 0.12), ("heun", 0.03)])
def test_churn_renews_the_noise_and_leaves_the_marginal(sampler, error):
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(100_000, generator=generator, dtype=torch.float64)

    y, kept = MEAN + math.sqrt(SPREAD**2 + START**2) * noise(), {}
    for churn in (0.0, 1.0, 20.0):
        found = integrate(denoise, y, levels(300), sampler, noise, churn)
        assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
        assert found.var().item() == pytest.approx(SPREAD**2 + END**2, rel=error)
        kept[churn] = torch.corrcoef(torch.stack([y, found]))[0, 1].item()
    assert kept[0.0] > 0.999 > 0.95 > kept[1.0] > 0.2 > kept[20.0]
    louder = integrate(denoise, y, levels(300), sampler, noise, 20.0, noise_scale=1.05)
    assert louder.var() > 1.01 * found.var()
