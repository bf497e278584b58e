"""Images as files: PNG and other formats in, PNG and GIF out. Everything else in the root works on tensors.

A PNG carries in a text chunk the fingerprint of what wrote it, tokenizer, palette and layout: read by another checkpoint its
colors would mean other tokens.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from kit.errors import UserError
from kit.images import open_image
from kit.whole import whole

FINGERPRINT = "tokencolor"  # keyword of the text chunk
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
STRIP_IMAGES = 8  # at most
LARGEST_PIXEL = 64  # sides of the square that stands for one
SHOWN_SIDE = 256  # pixels to which strips and animations are enlarged


def to_pixels(image: torch.Tensor, mask: torch.Tensor | None = None) -> np.ndarray:
    """An image (3, H, W) in [-1, 1] as uint8 (H, W, 3); with a mask (H, W), as (H, W, 4) whose padding is transparent."""
    pixels = ((image.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    if mask is None:
        return pixels
    alpha = mask.cpu().numpy().astype(np.uint8) * 255
    return np.dstack([pixels * (alpha[..., None] > 0), alpha])


def save_png(path: str | Path, image: torch.Tensor, mask: torch.Tensor, fingerprint: str, pixel_size: int = 1) -> None:
    """Write an image (3, H, W) losslessly, `pixel_size` pixels wide for each of its own; padding, where mask (H, W) is False,
    becomes transparent.
    """
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(FINGERPRINT, fingerprint)
    pixels = to_pixels(image, mask).repeat(pixel_size, 0).repeat(pixel_size, 1)
    with whole(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG", optimize=True, pnginfo=chunks)


def load_image(path: str | Path, img_size: int) -> tuple[torch.Tensor, torch.Tensor | None, str | None]:
    """An image (3, H, W) in [-1, 1], its mask (H, W) and its fingerprint.

    The mask is None if the file has no transparency (a JPEG, say), the fingerprint None if it carries none. A file whose sides
    are img_size times a whole number is averaged down. Raises UserError if the file is missing, no image, or of another size.
    """
    file = open_image(path)
    has_alpha = "A" in file.getbands()
    fingerprint = file.info.get(FINGERPRINT)
    pixels = torch.from_numpy(np.array(file.convert("RGBA" if has_alpha else "RGB")))
    height, width = pixels.shape[:2]
    if height != width or width % img_size or not 1 <= width // img_size <= LARGEST_PIXEL:
        raise UserError(
            f"{path} is {width}x{height} pixels; this checkpoint reads {img_size}x{img_size}, or each of these pixels up to "
            f"{LARGEST_PIXEL} times as wide and high"
        )
    image, mask = average(pixels[..., :3].permute(2, 0, 1), img_size) / 127.5 - 1, None
    if has_alpha:
        mask = average(pixels[..., 3], img_size) > 127
    return image, mask, fingerprint


def average(pixels: torch.Tensor, img_size: int) -> torch.Tensor:
    """Squares of pixels (..., k * img_size, k * img_size) as their means (..., img_size, img_size) float32."""
    k = pixels.shape[-1] // img_size
    return pixels.float().view(*pixels.shape[:-2], img_size, k, img_size, k).mean((-3, -1))


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The image files among `paths`, those of a folder in the order of the numbers in their names.

    Raises UserError for a folder without any.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            members = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
            members.sort(key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)])
            if not members:
                raise UserError(f"no image in {path}")
            found += members
        else:
            found.append(path)
    return found


def save_strip(path: Path, frames: list[torch.Tensor], mask: torch.Tensor) -> None:
    """Up to eight of the frames (3, H, W), evenly spread, side by side; where mask (H, W) is False they are white."""
    images = _enlarged(frames, mask)
    chosen = [images[i] for i in np.linspace(0, len(images) - 1, min(STRIP_IMAGES, len(images))).round().astype(int)]
    width, height = chosen[0].size
    strip = Image.new("RGB", (len(chosen) * (width + 8) - 8, height), "white")
    for i, image in enumerate(chosen):
        strip.paste(image, (i * (width + 8), 0))
    with whole(path) as partial:
        strip.save(partial)


def save_animation(path: Path, frames: list[torch.Tensor], mask: torch.Tensor) -> None:
    """The frames (3, H, W) as a GIF that rests on the last one."""
    first, *rest = _enlarged(frames, mask)
    with whole(path) as partial:
        first.save(
            partial, save_all=True, append_images=[*rest, *[rest[-1] if rest else first] * 8], duration=120, loop=0
        )


def _enlarged(frames: list[torch.Tensor], mask: torch.Tensor) -> list[Image.Image]:
    shown = mask.cpu().numpy()[..., None]
    scale = max(1, SHOWN_SIDE // len(shown))
    pixels = [np.where(shown, to_pixels(frame), 255).astype(np.uint8) for frame in frames]
    return [Image.fromarray(p).resize((p.shape[1] * scale, p.shape[0] * scale), Image.NEAREST) for p in pixels]
