"""The method on one page: noising, what a noisy pixel says by itself, the two losses, time sampling, samplers.

Noising      z = t * x + (1 - t) * eps, t = 1 clean, as in JiT; the noise level on the scale of colors is sigma = (1 - t) / t.
token        The network gives context logits pi_v for every pixel; the pixel adds its own exact Gaussian evidence:
             logit_v = pi_v - |z - t c_v|^2 / (2 (1 - t)^2), softmax over the palette, loss = cross-entropy on the token,
             x_pred = sum_v p_v c_v. Still x-prediction: the network learns only what the noisy pixel cannot say.
pixel        The seeds' objective: the network predicts the clean picture (or the velocity), loss = JiT's v-loss.
Padding enters no loss and no statistic. Pixels that are `known` (given clean) are context: no loss falls on them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from kit.errors import UserError
from model import JiT
from palette import Canvas, Palette

OBJECTIVES = ("token", "pixel")
SAMPLERS = ("euler", "heun", "stochastic")
TIME_SAMPLERS = ("fitted", "logit_normal", "uniform")
MIN_SIGMA, MAX_SIGMA = 1e-3, 20.0
V_LOSS_EPS = 0.05  # JiT's floor under 1 - t
MAX_LOGITS = 1 << 27  # logits held at once; larger batches are cut and recomputed in the backward pass


def sigma_of(t: torch.Tensor) -> torch.Tensor:
    """Noise level (1 - t) / t, kept within the range the samplers use."""
    return ((1 - t) / t.clamp_min(1e-6)).clamp(MIN_SIGMA, 1e6)


def t_of(sigma: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + sigma)


@dataclass
class Prediction:
    """One look: `x_pred` (B, 3, H, W), and in reading order `tokens` (B, N) long and `nll` (B, N) of the truth in nats.

    `nll` is None without the truth or in the pixel objective, which gives no likelihood. Padding holds zeros.
    """

    x_pred: torch.Tensor
    tokens: torch.Tensor
    nll: torch.Tensor | None


class Diffusion(nn.Module):
    """A network, a palette and a canvas under one objective. `forward` is the training loss, so that DDP can wrap it."""

    def __init__(self, network: JiT, palette: Palette, canvas: Canvas, objective: str = "token"):
        super().__init__()
        if objective not in OBJECTIVES:
            raise UserError(f"unknown objective {objective!r}; choose from {', '.join(OBJECTIVES)}")
        if (objective == "token") != (network.vocab_size is not None):
            raise UserError("the token objective needs a network with a vocab_size, the pixel objective one without")
        if network.vocab_size not in (None, palette.vocab_size):
            raise UserError(f"the network speaks {network.vocab_size} tokens, the palette {palette.vocab_size}")
        self.network, self.palette, self.canvas, self.objective = network, palette, canvas, objective

    # ------------------------------------------------------------------------------------------------------------------
    # Noising and evidence

    def add_noise(self, tokens, t, noise, known=None):
        """Tokens (B, N) to a noisy picture z (B, 3, H, W); known positions (B, N) stay clean."""
        x = self.palette.colors[tokens]
        z = t[:, None, None] * x + (1 - t[:, None, None]) * noise
        if known is not None:
            z = torch.where(known[..., None], x, z)
        return self.canvas.paint(z)

    def evidence(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """log p(z | token) up to a constant: noisy colors z (M, 3) at times t (M,) to (M, V), in float32.

        -|z - t c|^2 / (2 (1-t)^2) without its |z|^2 term, in a form that stays finite at t = 0.
        """
        t = t.float().clamp(max=1 / (1 + MIN_SIGMA))
        inverse = t / (1 - t).square()
        colors = self.palette.colors
        with torch.autocast(z.device.type, enabled=False):  # differences of large numbers: bf16 would lose them
            return torch.addmm(
                (inverse * t / -2)[:, None] * colors.square().sum(-1), inverse[:, None] * z.float(), colors.T
            )

    def logits(
        self, features: torch.Tensor, z: torch.Tensor, t: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """Context logits of features (M, F), divided by the temperature, plus the evidence: (M, V) float32."""
        return self.network.head(features).float() / temperature + self.evidence(z, t)

    # ------------------------------------------------------------------------------------------------------------------
    # Training

    def forward(self, tokens, mask, t, noise, known=None, self_condition: bool = False, num_patches=None):
        """Training loss of a batch.

        tokens (B, N), mask (B, N), t (B,), noise (B, N, 3), known (B, N) or None; `self_condition` looks twice and feeds
        the first estimate to the second look. Returns the mean loss over the pixels to predict, and the mean of each
        sample (B,), detached, for fitting the time sampler (NaN for a sample with nothing to predict).
        """
        z, picture_mask = self.add_noise(tokens, t, noise, known), self.canvas.paint(mask)
        picture_known = None if known is None else self.canvas.paint(known)
        x_prev = None
        if self_condition:
            with torch.no_grad():
                x_prev = self.denoise(z, t, mask, known, tokens, num_patches=num_patches).x_pred
        out = self.network(z, t, picture_mask, picture_known, x_prev, num_patches)
        predict = mask if known is None else mask & ~known
        if self.objective == "token":
            loss = self._token_loss(out, z, t, tokens, predict)
        else:
            loss = self._velocity_loss(out, z, t, tokens, noise, predict)
        count = predict.sum(1)
        per_sample = torch.zeros_like(t).index_add_(0, predict.nonzero()[:, 0], loss.detach()) / count
        return loss.mean(), per_sample

    def _token_loss(self, features, z, t, tokens, predict):
        """Cross-entropy (M,) of the pixels where predict (B, N), in reading order."""
        features = self.canvas.read(features.permute(0, 3, 1, 2))[predict]
        z, t, target = self.canvas.read(z)[predict], t[:, None].expand_as(predict)[predict], tokens[predict]

        def part(features, z, t, target):
            return F.cross_entropy(self.logits(features, z, t), target, reduction="none")

        rows = max(1, MAX_LOGITS // self.palette.vocab_size)
        if len(target) <= rows:
            return part(features, z, t, target)
        parts = zip(*(each.split(rows) for each in (features, z, t, target)))
        return torch.cat([recompute(part, *each, use_reentrant=False) for each in parts])

    def _velocity_loss(self, out, z, t, tokens, noise, predict):
        """JiT's v-loss (M,): squared error of (x - z) / (1 - t), averaged over the channels."""
        out, z = self.canvas.read(out.float())[predict], self.canvas.read(z)[predict]
        t = t[:, None].expand_as(predict)[predict][:, None]
        x, noise = self.palette.colors[tokens][predict], noise[predict]
        if self.network.predict_clean:
            return ((out - x) / (1 - t).clamp_min(V_LOSS_EPS)).square().mean(-1)
        return (out - (x - noise)).square().mean(-1)

    # ------------------------------------------------------------------------------------------------------------------
    # One look

    def denoise(
        self, z, t, mask, known=None, tokens=None, x_prev=None, temperature=1.0, num_patches=None
    ) -> Prediction:
        """Estimate the clean picture and its tokens from z (B, 3, H, W) at time t (B,).

        mask (B, N), known (B, N) or None (those pixels of z are clean). With the truth `tokens` (B, N) the prediction
        carries their negative log-likelihood; with known, they also are what known positions return.
        """
        picture_known = None if known is None else self.canvas.paint(known)
        out = self.network(z, t, self.canvas.paint(mask), picture_known, x_prev, num_patches)
        colors = self.canvas.read(z)
        if self.objective == "pixel":
            x = self.canvas.read(out.float())
            if not self.network.predict_clean:
                x = colors + (1 - t)[:, None, None] * x
            if known is not None:
                x = torch.where(known[..., None], colors, x)
            x = x * mask[..., None]
            return Prediction(self.canvas.paint(x), self.palette.decode(x) * mask, None)
        predict = mask if known is None else mask & ~known
        features, noisy = self.canvas.read(out.permute(0, 3, 1, 2))[predict], colors[predict]
        times = t[:, None].expand_as(predict)[predict]
        target = None if tokens is None else tokens[predict]
        x, best, nll = [], [], []
        for part in torch.arange(len(noisy), device=z.device).split(max(1, MAX_LOGITS // self.palette.vocab_size)):
            logits = self.logits(features[part], noisy[part], times[part], temperature)
            best.append(logits.argmax(-1))
            if target is not None:
                nll.append(F.cross_entropy(logits, target[part], reduction="none"))
            with torch.autocast(z.device.type, enabled=False):
                x.append(logits.softmax(-1) @ self.palette.colors)
        x_all = torch.zeros_like(colors)
        x_all[predict] = torch.cat(x)
        found = torch.zeros(predict.shape, dtype=torch.long, device=z.device)
        found[predict] = torch.cat(best)
        if known is not None:
            x_all = torch.where((mask & known)[..., None], colors, x_all)
            found = torch.where(mask & known, self.palette.decode(colors), found)
        nll_all = None
        if target is not None:
            nll_all = torch.zeros(predict.shape, device=z.device)
            nll_all[predict] = torch.cat(nll)
        return Prediction(self.canvas.paint(x_all), found, nll_all)

    # ------------------------------------------------------------------------------------------------------------------
    # Sampling

    @torch.no_grad()
    def sample(
        self,
        mask,
        grid,
        sampler="euler",
        z=None,
        known=None,
        known_tokens=None,
        temperature=1.0,
        generator=None,
        watch=None,
    ) -> torch.Tensor:
        """Tokens (B, N) by integrating from grid[0] to grid[-1], then one last look that decides.

        mask (B, N); `grid` (S,) ascending times; z (B, 3, H, W) the picture at grid[0], or None for pure noise. Known
        positions (B, N) hold known_tokens (B, N) throughout. In the scale y = z / t the flow is dy/dsigma = (y - x) / sigma
        (Song et al., 2021); `euler` is exact where x does not change (DDIM), `heun` corrects with a second look, and
        `stochastic` (EDM's ancestral step, Karras et al., 2022) renews as much noise as the posterior allows.
        `watch(i, x_pred)` is called after each look.
        """
        if sampler not in SAMPLERS:
            raise UserError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
        batch = len(mask)
        num_patches = self.canvas.patches_for(int(mask.any(0).nonzero().max()) + 1)
        device = mask.device
        if z is None:
            z = torch.randn(batch, 3, self.canvas.img_size, self.canvas.img_size, device=device, generator=generator)
            z = z * (1 - grid[0])
        clean = None if known is None else self.canvas.paint(self.palette.colors[known_tokens])
        picture_known = None if known is None else self.canvas.paint(known)[:, None]
        x_prev = None

        def look(y, t):
            z = y * t
            if clean is not None:
                z = torch.where(picture_known, clean, z)
            times = torch.full((batch,), float(t), device=device)
            return self.denoise(z, times, mask, known, None, x_prev, temperature, num_patches)

        y = z / grid[0].clamp_min(1e-6)
        for i in range(len(grid) - 1):
            sigma, target = sigma_of(grid[i]), sigma_of(grid[i + 1])
            x = look(y, grid[i]).x_pred
            if watch:
                watch(i, x)
            fresh = 0.0
            if sampler == "stochastic":
                fresh = min(target, (target**2 * (sigma**2 - target**2) / sigma**2).clamp_min(0).sqrt())
            down = (target**2 - fresh**2) ** 0.5
            slope = (y - x) / sigma
            moved = y + (down - sigma) * slope
            x_prev = x
            if sampler == "heun" and i < len(grid) - 2:
                again = look(moved, grid[i + 1]).x_pred
                moved = y + (target - sigma) * (slope + (moved - again) / target) / 2
            if sampler == "stochastic":
                moved = moved + fresh * torch.randn(y.shape, device=device, generator=generator)
            y = moved
        final = look(y, grid[-1])
        if watch:
            watch(len(grid) - 1, final.x_pred)
        return final.tokens if known is None else torch.where(known, known_tokens, final.tokens)


# ----------------------------------------------------------------------------------------------------------------------
# Where the noise goes


class TimeSampler:
    """Draws training times, and lays out the steps of a sampler.

    uniform       t uniform in [0, 1], the seeds'
    logit_normal  log(t / (1-t)) = -log sigma normal with `mean` and `std`; JiT's default is -0.8 and 0.8
    fitted        starts as logit_normal; then density proportional to d loss / d log sigma, measured while training, so
                  that every stretch of time teaches as much (CDCD's time warping), beside a share of the start
    """

    BINS, LOW, HIGH = 64, math.log(0.01), math.log(MAX_SIGMA)
    FLOOR = 0.2  # share of the starting distribution that `fitted` keeps
    MEMORY = 0.9  # what a refit keeps of older measurements

    def __init__(self, name: str, mean: float = -0.8, std: float = 0.8, device="cpu"):
        if name not in TIME_SAMPLERS:
            raise UserError(f"unknown time sampling {name!r}; choose from {', '.join(TIME_SAMPLERS)}")
        if std <= 0:
            raise UserError(f"--t_std {std}: need a positive spread")
        self.name, self.mean, self.std = name, mean, std
        self.loss_sum = torch.zeros(self.BINS, device=device)
        self.weight = torch.zeros(self.BINS, device=device)
        edges = torch.linspace(self.LOW, self.HIGH, self.BINS + 1, dtype=torch.float64)
        normal = torch.special.ndtr((edges + mean) / std)
        self.start = (normal.diff() + 1e-6) / (normal.diff() + 1e-6).sum()
        self.edges, self.density = edges, self.start

    def sample(self, u: torch.Tensor) -> torch.Tensor:
        """Times (n,) from uniform numbers u (n,) in (0, 1)."""
        if self.name == "uniform":
            return u.clamp(1e-4, 1 - 1e-4)
        if self.name == "logit_normal" or self.density is self.start:
            return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double().clamp(1e-6, 1 - 1e-6))).float()
        return t_of(self._quantile(u.double().cpu()).exp()).float().to(u.device)

    def _quantile(self, u: torch.Tensor) -> torch.Tensor:
        """log sigma at cumulative probability u under the current density."""
        cumulative = F.pad(self.density.cumsum(0), (1, 0))
        index = (torch.searchsorted(cumulative, u, right=True) - 1).clamp(0, self.BINS - 1)
        inside = ((u - cumulative[index]) / self.density[index]).clamp(0, 1)
        return self.edges[index] + inside * (self.edges[index + 1] - self.edges[index])

    def observe(self, t: torch.Tensor, loss: torch.Tensor) -> None:
        """Remember the mean loss (B,) of samples at times t (B,); non-finite ones are passed over."""
        place = (sigma_of(t).log() - self.LOW) / (self.HIGH - self.LOW) * self.BINS
        index = place.long().clamp(0, self.BINS - 1)
        good = torch.isfinite(loss) & (place >= 0) & (place < self.BINS)
        self.loss_sum.index_add_(0, index, torch.where(good, loss, 0).float())
        self.weight.index_add_(0, index, good.float())

    def refit(self, runtime) -> None:
        """Fit the density to what was observed since the start, old observations fading; the same on every rank."""
        measured = runtime.sum(torch.stack([self.loss_sum, self.weight])).double().cpu() / runtime.world_size
        self.loss_sum.copy_(measured[0] * self.MEMORY)
        self.weight.copy_(measured[1] * self.MEMORY)
        if self.name != "fitted":
            return
        curve = self.curve()
        if curve is None:
            return
        gain = F.avg_pool1d(F.pad(curve[None, None], (2, 2), mode="replicate"), 4, stride=1)[0, 0].diff().clamp_min(0)
        if gain.sum() > 0:
            self.density = (1 - self.FLOOR) * gain / gain.sum() + self.FLOOR * self.start

    def curve(self) -> torch.Tensor | None:
        """Loss against log sigma at the bins' centers (BINS,), made non-decreasing; None before enough was seen."""
        weight, total = self.weight.double().cpu(), self.loss_sum.double().cpu()
        seen = (weight >= 4).nonzero().flatten()
        if len(seen) < self.BINS // 4:
            return None
        mean = torch.from_numpy(_interpolate(seen.numpy(), (total[seen] / weight[seen]).numpy(), self.BINS))
        return (mean.cummax(0).values + mean.flip(0).cummin(0).values.flip(0)) / 2

    def grid(self, num_steps: int, t_start: float | None = None, lowest: float = 0.02) -> torch.Tensor:
        """Times (num_steps,) for a sampler, ascending from t_start (None = pure noise) to noise `lowest` or a quarter of the start's.

        Half of the steps follow what is learned where (the training density), half are even in log sigma.
        """
        start = MAX_SIGMA if t_start is None else min(MAX_SIGMA, float(sigma_of(torch.tensor(t_start))))
        low, high = math.log(min(lowest, start / 4)), math.log(start)
        fine = torch.linspace(low, high, 1001, dtype=torch.float64)
        density = F.pad(self.density, (1, 1), mode="constant")[
            ((fine - self.LOW) / (self.HIGH - self.LOW) * self.BINS + 1).long().clamp(0, self.BINS + 1)
        ]
        density = density / density.mean().clamp_min(1e-12) + 1
        cumulative = F.pad((density[1:] + density[:-1]).cumsum(0), (1, 0))
        at = torch.linspace(1, 0, num_steps, dtype=torch.float64) * cumulative[-1]
        index = torch.searchsorted(cumulative, at).clamp(0, 1000)
        times = t_of(fine[index].exp()).float()
        return times

    def state_dict(self) -> dict:
        return {
            "name": self.name, "mean": self.mean, "std": self.std,
            "loss_sum": self.loss_sum.cpu(), "weight": self.weight.cpu(),
            "density": None if self.density is self.start else self.density,
        }  # fmt: skip

    @classmethod
    def from_state(cls, state: dict, device="cpu") -> "TimeSampler":
        sampler = cls(state["name"], state["mean"], state["std"], device)
        sampler.loss_sum.copy_(state["loss_sum"])
        sampler.weight.copy_(state["weight"])
        if state["density"] is not None:
            sampler.density = state["density"]
        return sampler


def _interpolate(at, values, size: int):
    import numpy as np

    return np.interp(np.arange(size), at, values)
