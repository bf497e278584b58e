"""What happens to an image on its way: `clean` nothing, `light` a careful scan, `heavy` a careless photograph.

| | light | heavy |
|---|---|---|
| JPEG quality (4:2:0) | 85-95 | 50-75 |
| Gaussian blur, pixels | 0-0.5 | 0.3-1 |
| Gaussian noise, of 255 | 0-3 | 3-10 |
| brightness, contrast | +-5 % | +-20 % |
| gamma | 1 | 0.8-1.25 |
| scale | 1 | 0.85-1.25 |
| rotation, degrees | 0 | +-3 |
| tilt: a corner moves by, of a side | 0 | 1 % |

`scale`, `rotation` and `tilt` of `heavy` belong to its geometry, which `geometry=False` leaves out.
"""

import io
import random

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as T

from kit.errors import UserError

AUGMENTATIONS = ("clean", "light", "heavy")


def augment(image: Image.Image, level: str, seed: int, geometry: bool = True) -> Image.Image:
    """An RGB image as it arrives. The same seed does the same. Raises UserError for an unknown level."""
    if level not in AUGMENTATIONS:
        raise UserError(f"unknown augmentation {level!r}; choose from {', '.join(AUGMENTATIONS)}")
    if level == "clean":
        return image
    rng = random.Random(seed)
    heavy = level == "heavy"
    if heavy and geometry:
        image = _move(image, rng)
    low, high = (0.3, 1.0) if heavy else (0.0, 0.5)
    sigma = max(rng.uniform(low, high), 1e-3)
    pixels = T.gaussian_blur(T.pil_to_tensor(image).float() / 255, kernel_size=7, sigma=sigma)
    swing = 0.2 if heavy else 0.05
    pixels = T.adjust_brightness(pixels, rng.uniform(1 - swing, 1 + swing))
    pixels = T.adjust_contrast(pixels, rng.uniform(1 - swing, 1 + swing))
    if heavy:
        pixels = T.adjust_gamma(pixels, rng.uniform(0.8, 1.25))
    noise = rng.uniform(3, 10) if heavy else rng.uniform(0, 3)
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    pixels = (pixels + noise / 255 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
    buffer = io.BytesIO()
    T.to_pil_image(pixels).save(buffer, "JPEG", quality=rng.randint(50, 75) if heavy else rng.randint(85, 95))
    return Image.open(buffer).convert("RGB")


def _move(image: Image.Image, rng: random.Random) -> Image.Image:
    """Scaled, turned and tilted, on white."""
    width, height = image.size
    scale, angle = rng.uniform(0.85, 1.25), np.deg2rad(rng.uniform(-3, 3))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    moved = (corners - corners.mean(0)) @ turn.T
    moved += scale * max(width, height) * np.array([[rng.uniform(-0.01, 0.01) for _ in range(2)] for _ in range(4)])
    moved -= moved.min(0)
    size = np.ceil(moved.max(0)).astype(int)
    framed = T.pad(image, 2, fill=255)  # so that edges fade into white
    return T.perspective(
        T.pad(framed, [0, 0, max(0, int(size[0]) - framed.width), max(0, int(size[1]) - framed.height)], fill=255),
        (corners + 2).tolist(), moved.tolist(), T.InterpolationMode.BILINEAR, fill=255,
    ).crop((0, 0, int(size[0]), int(size[1])))  # fmt: skip
