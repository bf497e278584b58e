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


def test_the_adaptive_schedule_follows_the_slope_of_the_loss():
    """Loss that rises only between sigma 0.1 and 0.3: most times have to land there, all of them covered in part."""
    sampler = TimeSampler("adaptive", 0.0, 2.0)
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
    sampler = TimeSampler("adaptive")
    sampler.observe(torch.tensor([0.5, 0.5]), torch.tensor([math.nan, 2.0]))
    found = sampler.state_dict()
    assert found["weight"].sum() == 1 and found["loss_sum"].sum() == 2


@pytest.mark.parametrize("t_start", [None, 0.3, 0.97, 0.995])
@pytest.mark.parametrize("steps", [1, 2, 33])
def test_grids_ascend_from_the_start_to_nearly_clean(t_start, steps):
    grid = TimeSampler("adaptive", 1.0, 1.2).grid(steps, t_start)
    assert len(grid) == steps and (grid.diff() > 0).all() and grid[0] > 0 and grid[-1] < 1
    if t_start is not None:
        assert grid[0] == pytest.approx(t_start)


def test_steps_are_even_in_log_noise_or_follow_the_training_times():
    sampler = TimeSampler("logit_normal", 0.5, 0.7)
    even, learned = (sigma_of(sampler.grid(101, lowest=0.05, even=share)).log() for share in (1.0, 0.0))
    assert torch.allclose(even.diff(), even.diff().mean().expand(100), atol=0.03)
    logit_t = torch.tensor([0.5 - 0.7, 0.5, 0.5 + 0.7])  # at a deviation's distance from the middle, the noisiest first
    assert torch.allclose(-learned[[16, 50, 84]], logit_t, atol=0.06)


def test_a_saved_sampler_of_several_ranks_goes_on_as_if_it_had_not_been_saved():
    class Rank:
        """One of two ranks in one process: adding over them is adding the other's tensor."""

        world_size, device = 2, "cpu"

        def __init__(self, rank, other):
            self.is_main, self.other = rank == 0, other

        def sum(self, values):
            return values + self.other.clone()

    ranks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        sampler = TimeSampler("adaptive", 0.0, 2.0)
        t = torch.rand(4000)
        sampler.observe(t, 3 * (1 - t) + 0.1 * torch.randn(4000))
        ranks.append(sampler)

    def fit(pair):
        seen = [sampler.seen.clone() for sampler in pair]
        for rank, sampler in enumerate(pair):
            sampler.refit(Rank(rank, seen[1 - rank]))
        assert torch.equal(pair[0].density, pair[1].density)
        return pair[0].density

    saved = ranks[0].state_dict(Rank(0, ranks[1].seen))
    resumed = [TimeSampler.from_state(saved, Rank(rank, None)) for rank in (0, 1)]
    for _ in range(3):
        assert torch.equal(fit(resumed), fit(ranks))
        for pair in (ranks, resumed):
            for sampler, seed in zip(pair, (3, 4)):
                torch.manual_seed(seed)
                sampler.observe(torch.rand(500), torch.rand(500))


def test_noise_of_another_size_moves_times_and_no_noise_level():
    u = torch.linspace(0.01, 0.99, 50)
    for name in ("logit_normal", "adaptive"):
        one, small = TimeSampler(name, 0.0, 1.5), TimeSampler(name, 0.0, 1.5, noise_std=0.05)
        assert torch.allclose(sigma_of(one.sample(u)), 0.05 * sigma_of(small.sample(u)), rtol=1e-4)
        assert torch.allclose(sigma_of(one.grid(9)), 0.05 * sigma_of(small.grid(9)), rtol=1e-3)
