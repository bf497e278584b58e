"""Times are drawn where they were asked for, or where the loss says that there is something to learn."""

import math

import pytest
import torch

from kit import device
from kit.times import TimeSampler, sigma_of, t_of


def test_logit_normal_has_the_mean_and_spread_it_was_given():
    t = TimeSampler("logit_normal", -0.8, 0.8).sample(torch.linspace(0.0001, 0.9999, 20001))
    logit = torch.logit(t)
    assert abs(logit.mean() + 0.8) < 0.01 and abs(logit.std() - 0.8) < 0.01


def test_fitted_times_follow_the_slope_of_the_loss():
    """Loss that rises only between sigma 0.1 and 0.3: most times have to land there, all of them covered in part."""
    sampler = TimeSampler("fitted", 0.0, 2.0)
    runtime = device.start("cpu")
    for _ in range(5):
        sigma = torch.logspace(-2, 1.3, 2000)
        loss = ((sigma.log() - math.log(0.1)) / math.log(3)).clamp(0, 1)
        sampler.observe(t_of(sigma), loss)
        sampler.refit(runtime)
    sigma = sigma_of(sampler.sample(torch.linspace(0.0001, 0.9999, 10001)))
    inside = ((sigma > 0.09) & (sigma < 0.34)).float().mean()
    assert 0.75 < inside < 0.95
    back = TimeSampler.from_state(sampler.state_dict())
    u = torch.rand(100)
    assert torch.equal(back.sample(u), sampler.sample(u))


def test_observed_losses_that_are_not_numbers_are_passed_over():
    sampler = TimeSampler("fitted")
    sampler.observe(torch.tensor([0.5, 0.5]), torch.tensor([math.nan, 2.0]))
    assert sampler.weight.sum() == 1 and sampler.loss_sum.sum() == 2


@pytest.mark.parametrize("t_start", [None, 0.3, 0.97, 0.995])
@pytest.mark.parametrize("steps", [1, 2, 33])
def test_grids_ascend_from_the_start_to_nearly_clean(t_start, steps):
    grid = TimeSampler("fitted", 1.0, 1.2).grid(steps, t_start)
    assert len(grid) == steps and (grid.diff() > 0).all() and grid[0] > 0 and grid[-1] < 1
    if t_start is not None:
        assert grid[0] == pytest.approx(t_start)
