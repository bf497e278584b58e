"""The method on one page: noising, what a noisy pixel says by itself, the two losses, time sampling, samplers.

Noising      z = t * x + (1 - t) * eps, t = 1 clean, as in JiT; the noise level on the scale of colors is sigma = (1 - t) / t.
token        The network gives context logits pi_v for every pixel; the pixel adds its own exact Gaussian evidence:
             logit_v = pi_v - |z - t c_v|^2 / (2 (1 - t)^2), softmax over the palette, loss = cross-entropy on the token,
             x_pred = sum_v p_v c_v. Still x-prediction: the network learns only what the noisy pixel cannot say.
pixel        The seeds' objective: the network predicts the clean picture (or the velocity), loss = JiT's v-loss.
Padding enters no loss and no statistic. Pixels that are `known` (given clean) are context: no loss falls on them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from kit.errors import UserError
from kit.times import MIN_SIGMA, sigma_of
from model import JiT
from palette import Canvas, Palette

OBJECTIVES = ("token", "pixel")
SAMPLERS = ("euler", "heun", "stochastic")
V_LOSS_EPS = 0.05  # JiT's floor under 1 - t
MAX_LOGITS = 1 << 27  # logits held at once; larger batches are cut and recomputed in the backward pass


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
