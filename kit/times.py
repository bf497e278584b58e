"""Time and noise: t in [0, 1] with 1 = clean, sigma = (1 - t) / t, and where training and samplers put their noise."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from kit.device import Runtime
from kit.errors import UserError

TIME_SAMPLERS = ("adaptive", "logit_normal", "uniform")
MIN_SIGMA, MAX_SIGMA = 1e-3, 20.0


def sigma_of(t: torch.Tensor) -> torch.Tensor:
    """Noise level (1 - t) / t, kept within the range the samplers use."""
    return ((1 - t) / t.clamp_min(1e-6)).clamp(MIN_SIGMA, 1e6)


def t_of(sigma: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + sigma)


def canonical(name: str) -> str:
    """A time sampler's name, of which `fitted` is an older one of `adaptive`."""
    return "adaptive" if name == "fitted" else name


class TimeSampler:
    """Draws training times, and lays out the steps of a sampler.

    uniform       t uniform in [0, 1], the reference recipe's
    logit_normal  log(t / (1-t)) = -log sigma normal with `mean` and `std`; JiT's default is -0.8 and 0.8
    adaptive      starts as logit_normal; then density proportional to d loss / d log sigma, measured while training, so
                  that the loss rises evenly over the times drawn (time warping of CDCD, arXiv 2211.15089), mixed with a
                  fifth of the start

    `noise_std`: of what is mixed in at t = 0. Noise levels, and so all of the above but uniform, are those that arrive,
    sigma = noise_std (1 - t) / t.
    """

    BINS, LOW, HIGH = 64, math.log(0.01), math.log(MAX_SIGMA)
    FLOOR = 0.2  # weight of the starting distribution in `adaptive`
    MEMORY = 0.9  # what a refit keeps of older measurements
    # sums of whole units are exact in any order, so that ranks may share them out anew after a restart
    UNITS = 2**16  # of one
    MOST = 2.0**30  # that a loss counts

    def __init__(self, name: str, mean: float = -0.8, std: float = 0.8, device="cpu", noise_std: float = 1.0):
        name = canonical(name)
        if name not in TIME_SAMPLERS:
            raise UserError(f"unknown time sampling {name!r}; choose from {', '.join(TIME_SAMPLERS)}")
        if std <= 0:
            raise UserError(f"`t_std` {std}: need a positive spread")
        self.name, self.mean, self.std, self.noise_std = name, mean, std, noise_std
        # losses and samples of this rank, in units
        self.seen = torch.zeros(2, self.BINS, dtype=torch.long, device=device)
        edges = torch.linspace(self.LOW, self.HIGH, self.BINS + 1, dtype=torch.float64)
        normal = torch.special.ndtr((edges + mean) / std)
        self.start = (normal.diff() + 1e-6) / (normal.diff() + 1e-6).sum()
        self.edges, self.density = edges, self.start

    def sample(self, u: torch.Tensor) -> torch.Tensor:
        """Times (n,) from uniform numbers u (n,) in (0, 1)."""
        if self.name == "uniform":
            return u.clamp(1e-4, 1 - 1e-4)
        if self.name == "logit_normal" or self.density is self.start:
            logit = self.mean + self.std * torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))
            return torch.sigmoid(logit + math.log(self.noise_std)).float()
        return t_of(self._quantile(u.cpu().double()).exp() / self.noise_std).float().to(u.device)

    def _quantile(self, u: torch.Tensor) -> torch.Tensor:
        """log sigma at cumulative probability u under the current density."""
        cumulative = F.pad(self.density.cumsum(0), (1, 0))
        index = (torch.searchsorted(cumulative, u, right=True) - 1).clamp(0, self.BINS - 1)
        inside = ((u - cumulative[index]) / self.density[index]).clamp(0, 1)
        return self.edges[index] + inside * (self.edges[index + 1] - self.edges[index])

    def observe(self, t: torch.Tensor, loss: torch.Tensor) -> None:
        """Remember the mean loss (B,) of samples at times t (B,); non-finite ones are passed over."""
        place = ((self.noise_std * sigma_of(t)).log() - self.LOW) / (self.HIGH - self.LOW) * self.BINS
        index = place.long().clamp(0, self.BINS - 1)
        good = torch.isfinite(loss) & (place >= 0) & (place < self.BINS)
        losses = torch.where(good, loss.float().clamp(-self.MOST, self.MOST), 0.0)
        self.seen.index_add_(1, index, (torch.stack([losses, good.float()]) * self.UNITS).round().long())

    def refit(self, runtime: Runtime) -> None:
        """Adapt the density to what was observed since the start, old observations fading; the same on every rank."""
        total = runtime.sum(self.seen.clone()).cpu()
        kept = (total.double() * self.MEMORY).round().long()
        self.seen.copy_(kept if runtime.is_main else torch.zeros_like(kept))
        if self.name != "adaptive" or (curve := self.curve(kept)) is None:
            return
        gain = F.avg_pool1d(F.pad(curve[None, None], (2, 2), mode="replicate"), 4, stride=1)[0, 0].diff().clamp_min(0)
        if gain.sum() > 0:
            self.density = (1 - self.FLOOR) * gain / gain.sum() + self.FLOOR * self.start

    def curve(self, observed: torch.Tensor | None = None) -> torch.Tensor | None:
        """Loss against log sigma at the bins' centers (BINS,), made non-decreasing; None before enough was seen.

        `observed`: what `seen` holds on all ranks (default: what this one holds).
        """
        total, weight = (self.seen if observed is None else observed).cpu().double() / self.UNITS
        seen = (weight >= 4).nonzero().flatten()
        if len(seen) < self.BINS // 4:
            return None
        mean = torch.from_numpy(np.interp(np.arange(self.BINS), seen.numpy(), (total[seen] / weight[seen]).numpy()))
        return (mean.cummax(0).values + mean.flip(0).cummin(0).values.flip(0)) / 2

    def grid(
        self, num_steps: int, t_start: float | None = None, lowest: float = 0.02, even: float = 0.5
    ) -> torch.Tensor:
        """Times (num_steps,) for a sampler, ascending from t_start (None = pure noise) to noise `lowest` or a quarter of the start's.

        The share `even` of the steps is even in log sigma; the rest follows what is learned where (the training density).
        """
        start = (
            MAX_SIGMA if t_start is None else min(MAX_SIGMA, self.noise_std * float(sigma_of(torch.tensor(t_start))))
        )
        low, high = math.log(min(lowest, start / 4)), math.log(start)
        fine = torch.linspace(low, high, 1001, dtype=torch.float64)
        density = F.pad(self.density, (1, 1), mode="constant")[
            ((fine - self.LOW) / (self.HIGH - self.LOW) * self.BINS + 1).long().clamp(0, self.BINS + 1)
        ]
        density = (1 - even) * density / density.mean().clamp_min(1e-12) + even
        cumulative = F.pad((density[1:] + density[:-1]).cumsum(0), (1, 0))
        at = torch.linspace(1, 0, num_steps, dtype=torch.float64) * cumulative[-1]
        index = torch.searchsorted(cumulative, at).clamp(0, 1000)
        return t_of(fine[index].exp() / self.noise_std).float()

    def state_dict(self, runtime: Runtime | None = None) -> dict:
        """What `from_state` takes. With a `runtime`, which every rank has to pass, what all ranks observed."""
        seen = self.seen.clone() if runtime is None else runtime.sum(self.seen.clone())
        loss_sum, weight = seen.cpu().double() / self.UNITS
        return {
            "name": self.name, "mean": self.mean, "std": self.std, "noise_std": self.noise_std,
            "loss_sum": loss_sum, "weight": weight,
            "density": None if self.density is self.start else self.density,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict, runtime: Runtime | None = None) -> "TimeSampler":
        """What `state_dict` gave; of a `runtime`'s ranks the first goes on with what all observed. Raises ValueError for numbers out of range."""
        device = "cpu" if runtime is None else runtime.device
        sampler = cls(state["name"], state["mean"], state["std"], device, state.get("noise_std", 1.0))
        seen = torch.stack([state["loss_sum"], state["weight"]]).double()
        if state["density"] is not None:
            if state["density"].shape != sampler.start.shape:
                raise ValueError(f"a density of {tuple(state['density'].shape)} bins, not {tuple(sampler.start.shape)}")
            sampler.density = state["density"]
        numbers = torch.tensor([sampler.mean, sampler.std, sampler.noise_std], dtype=torch.float64)
        for part in (seen, sampler.density, numbers):
            if (
                not torch.isfinite(part).all()
                or (part is not numbers and (part < 0).any())
                or (part * cls.UNITS > 2.0**62).any()
                or not numbers[1:].min() > 0
            ):
                raise ValueError("a noise schedule with numbers out of range")
        if runtime is None or runtime.is_main:
            sampler.seen.copy_((seen * cls.UNITS).round())
        return sampler
