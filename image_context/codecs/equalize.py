"""Colors of modules out of pixels that a camera, a scaler or a JPEG has been at.

A first reading compares each module's center with the calibration. Later readings fit a linear equalizer, a window of pixels
around a module -> the module's color, to the earlier reading's own decisions (decision-directed equalization, as in modems), which
undoes blur, color bleeding and shifts of a part of a pixel. What noise and JPEG leave is larger in some directions of color than in others, so
colors are told apart by linear discriminants, not by their distance. The decisions need only be mostly right.
"""

from collections.abc import Iterator

import numpy as np

from image_context.codecs.encoded import BLOCK
from image_context.codecs.layout import HEADER_MODULE, to_blocks

ROUNDS = 32
FIT_MODULES = 20_000  # that an equalizer is fitted on
RIDGE = 1e-3
NEARLY_WHITE = 0.9
PRIOR = 20  # modules that the palette's own place for a color is worth beside those that show it


def module_centers(blocks: np.ndarray, module: int) -> np.ndarray:
    """Mean colors (n, modules, 3) of the inner half of the modules of blocks (n, 28, 28, 3)."""
    side = BLOCK // module
    trim = module // 4
    modules = blocks.reshape(len(blocks), side, module, side, module, 3)
    return modules[:, :, trim : module - trim, :, trim : module - trim].mean((2, 4)).reshape(len(blocks), -1, 3)


def read_colors(
    pixels: np.ndarray, calibration: np.ndarray, known: np.ndarray, data: np.ndarray, module: int, palette: np.ndarray
) -> Iterator[np.ndarray]:
    """Color numbers (len(data), modules), reading after reading.

    pixels (H, W, 3); `calibration` and `data` are numbers of blocks in reading order; the first show the colors `known`
    (blocks, 49) in 4-pixel modules.
    """
    pixels = pixels.astype(np.float32) / 255
    target = palette.astype(np.float32) / 255
    blocks = to_blocks(pixels)

    # first reading: colors straightened by the calibration
    seen = module_centers(blocks[calibration], HEADER_MODULE).reshape(-1, 3)
    fit = ridge(bend(seen), target[known.reshape(-1)])
    modules = nearest(bend(module_centers(blocks[data], module)) @ fit, target)
    yield modules

    # later readings: an equalizer of the pixels around each module, then of what is nearly white in them too, where sums end at white
    windows = module_windows(pixels, data, module)
    flat = windows.reshape(-1, windows.shape[-1])
    parts = np.array_split(flat, -(-len(flat) // FIT_MODULES))  # so that no page takes its features twice in memory
    chosen = np.linspace(0, len(flat) - 1, min(len(flat), FIT_MODULES)).astype(int)
    told = modules
    for features in (np.asarray, with_nearly_white):
        fitted = features(flat[chosen])
        for done in range(1, ROUNDS + 1):
            decided = modules.reshape(-1)[chosen]
            fit = ridge(fitted, target[decided])
            seen = np.concatenate([features(part) @ fit for part in parts])
            whiten, centers = discriminants(seen[chosen], decided, target)
            before, modules = modules, nearest(seen @ whiten, centers).reshape(modules.shape)
            settled = (modules == before).all()
            if (settled or done & (done - 1) == 0) and (
                modules != told
            ).any():  # mending is slow: after 1, 2, 4, 8 ... fits
                told = modules
                yield modules
            if settled:
                break


def with_nearly_white(windows: np.ndarray) -> np.ndarray:
    """Features (n, f) of windows, and how far each is above nearly white (n, 2 f)."""
    return np.concatenate([windows, np.maximum(windows - NEARLY_WHITE, 0)], axis=1)


def bend(colors: np.ndarray) -> np.ndarray:
    """Features (..., 7) of colors (..., 3): enough to undo a change of brightness, contrast, white balance and gamma."""
    return np.concatenate([np.ones_like(colors[..., :1]), colors, colors**2], axis=-1)


def module_windows(pixels: np.ndarray, data: np.ndarray, module: int) -> np.ndarray:
    """Pixels around each module (blocks, modules, features), with a 1 for the constant; large modules by the means of their parts."""
    width = pixels.shape[1] // BLOCK
    part = max(1, module // 4)  # a window is made of parts of this many pixels
    side, reach = -(-module // part), 2
    padded = np.pad(pixels, ((reach * part,) * 2, (reach * part,) * 2, (0, 0)), mode="edge")
    rows = (data // width * BLOCK)[:, None] + np.arange(0, BLOCK, module)[None]
    columns = (data % width * BLOCK)[:, None] + np.arange(0, BLOCK, module)[None]
    sums = np.pad(padded.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    features = []
    y, x = rows[:, :, None], columns[:, None, :]
    for i in range(side + 2 * reach):
        for j in range(side + 2 * reach):
            top, left = y + i * part, x + j * part
            box = sums[top + part, left + part] - sums[top, left + part] - sums[top + part, left] + sums[top, left]
            features.append((box / part**2).astype(np.float32))
    stacked = np.concatenate(features, axis=-1).reshape(len(data), (BLOCK // module) ** 2, -1)
    return np.concatenate([stacked, np.ones((*stacked.shape[:2], 1), np.float32)], axis=-1)


def ridge(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights (f, 3) of a least-squares map from features (n, f) to colors (n, 3), kept small where data are few."""
    features = features.reshape(-1, features.shape[-1]).astype(np.float64)
    gram = features.T @ features + RIDGE * len(features) * np.eye(features.shape[1])
    return np.linalg.solve(gram, features.T @ target).astype(np.float32)


def discriminants(seen: np.ndarray, decided: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A map (3, 3) under which the noise of colors `seen` (n, 3) is even, and where each of the palette's (c, 3) lies there (c, 3).

    `decided` (n,): what they are taken for. A color that is hardly seen lies where the others put it (an affine map of the palette).
    """
    places = np.concatenate([palette, np.ones((len(palette), 1), np.float32)], 1)
    means = places @ np.linalg.lstsq(places[decided], seen, rcond=None)[0]
    shown = np.eye(len(palette), dtype=np.float32)[decided]
    means = (shown.T @ seen + PRIOR * means) / (shown.sum(0)[:, None] + PRIOR)
    rest = seen - means[decided]
    covariance = rest.T @ rest / len(rest) + 1e-6 * np.eye(3)
    whiten = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
    return whiten, (means @ whiten).astype(np.float32)


def nearest(colors: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Numbers (...) of the palette's colors (c, 3) nearest to colors (..., 3)."""
    return (colors @ (-2 * palette.T) + (palette**2).sum(-1)).argmin(-1)
