"""How likely is a text? An upper bound on its negative log-likelihood under the diffusion, for comparison with language models.

The denoiser's squared error at every noise level bounds what the text costs (Kingma et al., arXiv 2107.00630; the I-MMSE
relation of Guo, Shamai & Verdu, 2005), with the signal-to-noise ratio g = 1 / sigma^2:

    -log p(tokens)  <=  1/2 integral from 0 to g_max of E |x - x_pred|^2 dg   +   E -log p(tokens | z at g_max)

Equality holds where x_pred is the posterior mean. The network's tokens are independent given z, and that costs nothing: the
integral needs their means alone. The integral is drawn by chance, one level in each of equal stretches of log sigma for each
text, so the estimate has no bias; only beyond MAX_SIGMA, where a guess by frequencies is used, it is known.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch

from corpus.bits import per_byte
from kit.times import MAX_SIGMA
from pretrained import Pretrained

LOWEST = 1 / 8  # the least noise, in units of the palette's spacing


def nll_bound(
    predict: Callable,
    colors: torch.Tensor,
    mean: torch.Tensor,
    spacing: float,
    batches: Iterable[dict],
    levels: int,
    seed: int,
) -> np.ndarray:
    """The bound (S,) of each text in nats.

    `predict(z, t, mask, tokens)` gives estimates x (B, N, 3) and nll (B, N) of the tokens from noisy colors z (B, N, 3) at
    times t (B,); colors (V, 3), `mean` (3,) of a color by frequency; batches with tokens and mask (B, N); `levels` forward
    passes for each text.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = math.log(LOWEST * spacing), math.log(MAX_SIGMA)
    result = []
    for batch in batches:
        tokens, mask = batch["tokens"], batch["mask"]
        x, count = colors[tokens], len(tokens)
        total = ((x - mean).square().sum(-1) * mask).sum(1).double() / (2 * MAX_SIGMA**2)
        for level in range(levels + 1):
            noise = torch.randn(x.shape, generator=generator).to(x.device)
            if level < levels:
                place = (level + torch.rand(count, generator=generator)) / levels
                sigma = (low + (high - low) * place).exp().to(x.device)
            else:  # what is left to say where almost nothing is in doubt
                sigma = torch.full((count,), math.exp(low), device=x.device)
            t = 1 / (1 + sigma)
            z = t[:, None, None] * x + (1 - t)[:, None, None] * noise
            estimate, nll = predict(z, t, mask, tokens)
            if level < levels:
                error = ((x - estimate.float()).square().sum(-1) * mask).sum(1).double()
                total += error * (high - low) / levels / sigma.square()
            else:
                total += (nll * mask).sum(1).double()
        result.append(total.cpu().numpy())
    return np.concatenate(result)


def measure(
    loaded: Pretrained, chunks: list[torch.Tensor], levels: int, passes: int, batch_size: int, seed: int
) -> dict:
    """The bound of a checkpoint of the token objective on chunks, as numbers for a report, with 95 % intervals over chunks."""
    diffusion = loaded.diffusion
    colors = diffusion.palette.colors
    order = np.argsort([len(chunk) for chunk in chunks], kind="stable")  # like lengths together: less padding
    ordered = [chunks[i] for i in order]

    def predict(z, t, mask, tokens):
        found = diffusion.recover(z, t, mask, None, tokens, passes)
        return found.x_pred, found.nll

    batches = (loaded.collate(ordered[i : i + batch_size]) for i in range(0, len(ordered), batch_size))
    mean = diffusion.log_unigram.exp() @ colors
    nats = nll_bound(predict, colors, mean, diffusion.palette.spacing, batches, levels, seed)
    return {"levels": levels, "passes": passes, **per_byte(nats, ordered, loaded.tokenizer)}
