"""From noise to data along the probability flow, whatever the medium.

In the scale y = x + sigma * noise the flow is dy / d sigma = (y - x) / sigma, x being the denoiser's estimate of the clean
data (Song et al., arXiv 2011.13456, in the form of Karras et al., arXiv 2206.00364).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from kit.errors import UserError

SAMPLERS = ("euler", "heun", "stochastic")


def integrate(
    denoise: Callable[[torch.Tensor, float], torch.Tensor],
    y: torch.Tensor,
    sigmas: Sequence[float],
    sampler: str = "euler",
    noise: Callable[[], torch.Tensor] | None = None,
    churn: float = 0.0,
    noise_scale: float = 1.0,
) -> torch.Tensor:
    """y (...) at noise level sigmas[0] brought to sigmas[-1]; `denoise(y, sigma)` is one forward pass.

    `euler`       exact where the estimate does not change (DDIM, arXiv 2010.02502); error of first order in the step
    `heun`        each step corrected by a second pass at its end; second order
    `stochastic`  renews as much noise at each step as the posterior allows (EDM's ancestral step); `noise()` gives a
                  standard normal tensor of y's shape

    `churn` is EDM's S_churn: before each of the n steps of euler and heun the noise level grows by a fraction churn / n (at
    most sqrt(2) - 1) through fresh noise, `noise_scale` (its S_noise) times as strong as that asks for. Raises UserError for
    an unknown sampler.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    growth = 1 + min(churn / max(1, len(sigmas) - 1), 2**0.5 - 1)
    for sigma, target in pairwise(sigmas):
        if growth > 1 and sampler != "stochastic":
            y = y + noise_scale * sigma * (growth**2 - 1) ** 0.5 * noise()
            sigma *= growth
        slope = (y - denoise(y, sigma)) / sigma
        if sampler == "stochastic":
            renewed = target * max(0.0, 1 - target**2 / sigma**2) ** 0.5
            kept = max(0.0, target**2 - renewed**2) ** 0.5
            y = y + (kept - sigma) * slope + renewed * noise()
            continue
        moved = y + (target - sigma) * slope
        if sampler == "heun" and target > 0:
            moved = y + (target - sigma) * (slope + (moved - denoise(moved, target)) / target) / 2
        y = moved
    return y


def num_passes(sampler: str, num_levels: int) -> int:
    """Forward passes (NFE) of `integrate` over that many noise levels, and of one last pass that decides."""
    return num_levels + (num_levels - 1 if sampler == "heun" else 0)
