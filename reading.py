"""Tokens of a loaded checkpoint as picture files, and back: also of pictures that are noisy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kit.errors import UserError
from kit.times import sigma_of
from picture import load_image, save_png
from pretrained import Pretrained


def write_picture(
    loaded: Pretrained, path: Path, tokens: torch.Tensor, mask: torch.Tensor, pixel_size: int = 1
) -> None:
    """Save tokens (N,), those where mask (N,), as a lossless picture."""
    layout, palette = loaded.diffusion.layout, loaded.diffusion.palette
    image, shown = layout.to_image(palette.encode(tokens)[None])[0], layout.to_image(mask[None])[0]
    save_png(path, image, shown, loaded.fingerprint, pixel_size)


@dataclass
class Read:
    """What was read of a picture: token ids (n,), whether it says what wrote it, and the noise it was cleaned from."""

    ids: np.ndarray
    signed: bool
    sigma: float | None


def read_picture(
    loaded: Pretrained,
    path: str | Path,
    num_tokens: int | None = None,
    denoise: bool = False,
    t: float | None = None,
    num_steps: int = 4,
    sampler: str = "posterior",
    temperature: float = 1.0,
) -> Read:
    """Read a picture file: its first `num_tokens` where nothing is transparent, or all up to an end token.

    With `denoise` the model cleans it first, from time `t` (default: estimated) in `num_steps` passes. Raises UserError for what
    is no picture of this checkpoint's.
    """
    diffusion, sigma = loaded.diffusion, None
    picture, mask, fingerprint = load_image(path, diffusion.layout.img_size)
    signed = check_fingerprint(loaded, path, fingerprint)
    colors = diffusion.layout.from_image(picture[None].to(loaded.device))
    mask = torch.ones(picture.shape[-2:], dtype=torch.bool) if mask is None else mask
    mask = diffusion.layout.from_image(mask[None].to(loaded.device))
    opaque = bool(mask.all())
    if opaque and num_tokens:
        mask = torch.arange(loaded.capacity, device=mask.device)[None] < num_tokens
    if not mask.any():
        raise UserError(f"{path} is wholly transparent: it holds no tokens")
    if denoise:
        sigma = estimate_sigma(loaded, colors[mask]) if t is None else float(sigma_of(torch.tensor(t)))
        t = 1 / (1 + sigma)
        grid = loaded.grid(num_steps, t)
        found = diffusion.sample(mask, grid, sampler, colors * t, temperature=temperature)
    else:
        found = diffusion.palette.decode(colors)
    ids = found[mask].cpu().numpy()
    if opaque and not num_tokens and loaded.tokenizer.end_id in ids:
        ids = ids[: int(np.argmax(ids == loaded.tokenizer.end_id)) + 1]
    return Read(ids, signed, sigma)


def check_fingerprint(loaded: Pretrained, path: Path, fingerprint: str | None) -> bool:
    """Whether an image says what wrote it. Raises UserError if that was not this checkpoint's tokenizer, palette and layout."""
    if fingerprint not in (None, loaded.fingerprint):
        raise UserError(f"{path} was written under another tokenizer, palette or layout than this checkpoint's")
    return fingerprint is not None


def estimate_sigma(loaded: Pretrained, colors: torch.Tensor) -> float:
    """Noise level of colors (M, 3): the likeliest Gaussian around palette colors drawn by their frequency."""
    palette = loaded.diffusion.palette
    sample = colors[torch.linspace(0, len(colors) - 1, min(len(colors), 512)).long()]
    distance = torch.cdist(sample, palette.colors).square()
    sigmas = torch.logspace(-2.3, 0.3, 53, device=colors.device)
    fits = [
        (torch.logsumexp(loaded.diffusion.log_unigram - distance / (2 * s**2), dim=1) - 3 * s.log()).mean()
        for s in sigmas
    ]
    return float(sigmas[int(torch.stack(fits).argmax())])
