"""Where a codebook page lies in an image: straight, rescaled, turned by quarters, or, by its finder patterns, in perspective."""

from collections.abc import Callable, Iterator
from itertools import combinations, product

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from image_context.codecs.encoded import BLOCK

HEADER_REACH = 8  # blocks of a page's beginning in which its header stands, corners included
HEADER_SEEN = (
    HEADER_REACH + 1
)  # blocks of a wider page's first row that are drawn to look for it, none of which is its right corner
MAX_BLOCKS = 160  # on a side of a page that is looked for
LIKENESS = 0.6  # correlation above which something is a finder pattern
FAINT = 0.4  # below which no size near one tried is worth trying
SIZES = np.geomspace(0.4, 2.0, 24)  # of a block, in 28 pixels
STRETCH = (
    0.006  # share of its height that an image may be taller or flatter than a page of whole blocks, beside two pixels
)
COARSE = 3  # every so many of them are tried first


def bullseye(size: float, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """A finder pattern for blocks of `size` x 28 pixels, sampled on pixels -reach .. reach: values in [0, 1], and its disc."""
    grid = (np.arange(-4 * reach, 4 * reach + 1) / 4)[:, None]
    radius = np.hypot(grid, grid.T) / size
    fine = np.select([radius < 4.5, radius < 8.5, radius < 12.5], [0.0, 1.0, 0.0], 1.0)
    smooth = F.avg_pool2d(torch.from_numpy(np.pad(fine, 2, mode="edge"))[None, None], 5, stride=4)[0, 0].numpy()
    return smooth, (radius < 13.5)[::4, ::4]


def draw_bullseye() -> np.ndarray:
    """Pixels (28, 28) uint8 of a finder pattern whose center is the block's."""
    grid = ((np.arange(4 * BLOCK) + 0.5) / 4 - BLOCK / 2)[:, None]
    radius = np.hypot(grid, grid.T)
    fine = np.select([radius < 4.5, radius < 8.5, radius < 12.5], [0.0, 1.0, 0.0], 1.0)
    return (fine.reshape(BLOCK, 4, BLOCK, 4).mean((1, 3)) * 255).round().astype(np.uint8)


FINDER = draw_bullseye()


def candidates(image: Image.Image, has_header: Callable[[np.ndarray, bool], bool]) -> Iterator[tuple[np.ndarray, bool]]:
    """(pixels (H, W, 3), whether it has fiducials) of every way to see a page in an RGB image, likeliest first.

    `has_header` tells whether the first rows of a page, so seen, hold a header.
    """
    turned = [image, *(image.transpose(t) for t in (Image.ROTATE_90, Image.ROTATE_180, Image.ROTATE_270))]
    for view in turned:
        if view.width % BLOCK == 0 and view.height % BLOCK == 0:
            pixels = np.asarray(view)
            for fiducials in (False, True):
                if has_header(pixels, fiducials):
                    yield pixels, fiducials
    found, framed = find_bullseyes(np.asarray(image.convert("L"), np.float32)), False
    if found is not None:
        for turn in range(4):
            for view in _by_bullseyes(image, np.roll(found[0], -turn, axis=0), found[1], has_header):
                yield view
                framed = True
    if framed:
        return  # its corners are known: a blind search for its size would find nothing better
    for view in turned:
        yield from _by_size(view, has_header)


def _header_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of blocks, from the upper left of a page, that show its header as the whole page does."""
    if width > HEADER_SEEN:
        return 1, HEADER_SEEN
    return min(height, -(-HEADER_REACH // width) + 1), width


def _by_size(image: Image.Image, has_header) -> Iterator[tuple[np.ndarray, bool]]:
    """The whole image is the page, of unknown size in blocks."""
    guess = image.width / BLOCK
    for width in sorted(range(1, MAX_BLOCKS), key=lambda w: abs(np.log(w / guess))):
        height = round(image.height * width / image.width)
        bent = abs(
            image.height - height * image.width / width
        )  # pixels that a page of whole blocks would be stretched by
        if not 1 <= height < MAX_BLOCKS or bent > STRETCH * image.height + 2:
            continue
        rows, columns = _header_of(height, width)
        box = (0, 0, image.width * columns / width, image.height * rows / height)
        top = np.asarray(image.resize((columns * BLOCK, rows * BLOCK), Image.BICUBIC, box, reducing_gap=2.0))
        for fiducials in (False, True):
            if has_header(top, fiducials):
                yield np.asarray(image.resize((width * BLOCK, height * BLOCK), Image.BICUBIC)), fiducials


def _by_bullseyes(
    image: Image.Image, corners: np.ndarray, block: float, has_header
) -> Iterator[tuple[np.ndarray, bool]]:
    """The page lies between finder patterns at `corners` (4, 2), clockwise from its upper left, with blocks of `block` pixels."""
    top, right, bottom, left = (np.linalg.norm(corners[i] - corners[(i + 1) % 4]) for i in range(4))
    wide, high = (top + bottom) / 2 / block, (left + right) / 2 / block  # blocks between the centers
    around = [0, *(sign * step for step in range(1, 3 + round(0.06 * max(wide, high))) for sign in (1, -1))]
    for change, tall in product(around, (0, 1, -1)):
        width = round(wide) + 1 + change
        if width < 2:
            continue
        height = round(high * (width - 1) / wide) + 1 + tall
        if height < 2:
            continue
        rows, columns = _header_of(height, width)
        mapping = perspective(corners, width, height)
        view = image.transform((columns * BLOCK, rows * BLOCK), Image.PERSPECTIVE, mapping, Image.BICUBIC)
        if has_header(np.asarray(view), True):
            whole = image.transform((width * BLOCK, height * BLOCK), Image.PERSPECTIVE, mapping, Image.BICUBIC)
            yield np.asarray(whole), True


def find_bullseyes(gray: np.ndarray) -> tuple[np.ndarray, float] | None:
    """Centers (4, 2) x, y of the finder patterns near the corners (clockwise from the upper left) and the pixels of a block.

    gray (H, W), 0 to 255; None where one of the four is not found.
    """
    height, width = gray.shape
    reach_y, reach_x = (int(min(side / 2 + BLOCK / 2, max(0.3 * side, 3 * BLOCK))) for side in (height, width))
    if min(height, width) < BLOCK:
        return None
    windows = [(0, 0), (width - reach_x, 0), (width - reach_x, height - reach_y), (0, height - reach_y)]
    correlate = Correlation(np.stack([gray[y : y + reach_y, x : x + reach_x] for x, y in windows]) / 255)
    maps = {i: correlate(SIZES[i]) for i in range(0, len(SIZES), COARSE)}

    def likeness(i: int) -> float:
        return float(maps[i].max((1, 2)).mean())

    near = max(maps, key=likeness)
    if likeness(near) < FAINT:
        return None
    around = range(max(0, near - COARSE), min(len(SIZES), near + COARSE + 1))
    maps |= {i: correlate(SIZES[i]) for i in around if i not in maps}
    at = max(around, key=likeness)
    if maps[at].max((1, 2)).min() < LIKENESS:
        return None
    corners = []
    for (x, y), found in zip(windows, maps[at]):
        row, column = np.unravel_index(found.argmax(), found.shape)
        corners.append((x + column + 0.5 + _peak(found[row], column), y + row + 0.5 + _peak(found[:, column], row)))
    step = np.log(SIZES[1] / SIZES[0])
    peak = _peak(np.array([likeness(i) for i in around]), around.index(at))
    block = BLOCK * float(SIZES[at] * np.exp(step * peak))
    apart = min(np.hypot(x - u, y - v) for (x, y), (u, v) in combinations(corners, 2))
    return (np.array(corners), block) if apart > block / 2 else None


class Correlation:
    """Normalized cross-correlation of image parts (4, H, W), in [0, 1], with finder patterns of any size: by Fourier transform, whose
    time does not depend on the size."""

    def __init__(self, parts: np.ndarray):
        self.shape, self.reach = parts.shape[1:], int(np.ceil(13.5 * SIZES[-1]))
        padded = F.pad(torch.from_numpy(parts).float(), (self.reach,) * 4, value=1.0)
        self.size = [-(-side // 64) * 64 for side in padded.shape[1:]]
        self.image, self.square = (torch.fft.rfft2(each, s=self.size) for each in (padded, padded.square()))

    def __call__(self, size: float) -> np.ndarray:
        """(4, H, W): over the disc of a pattern of blocks of `size` x 28 pixels whose center is there."""
        template, disc = bullseye(size, self.reach)
        count = disc.sum()
        pattern = np.where(disc, template - template[disc].mean(), 0)
        pattern /= np.sqrt((pattern**2).sum())
        kernels = torch.from_numpy(np.stack([pattern, disc.astype(float)])).float()
        kernels = torch.fft.rfft2(kernels, s=self.size).conj()
        products = torch.stack([self.image * kernels[0], self.image * kernels[1], self.square * kernels[1]])
        height, width = self.shape
        match, sums, squares = torch.fft.irfft2(products, s=self.size)[:, :, :height, :width]
        return (match / (squares - sums.square() / count).clamp_min(1e-3 * count).sqrt()).numpy()


def _peak(values: np.ndarray, at: int) -> float:
    """Where, relative to `at`, a parabola through the highest value and its neighbors has its top."""
    if not 0 < at < len(values) - 1:
        return 0.0
    before, here, after = (float(values[i]) for i in (at - 1, at, at + 1))
    bow = before - 2 * here + after
    return float(np.clip(0.5 * (before - after) / bow, -0.5, 0.5)) if bow < 0 else 0.0


def perspective(corners: np.ndarray, width: int, height: int) -> list[float]:
    """Pillow's eight coefficients that draw the page of width x height blocks whose corner centers (4, 2) are given."""
    right, low = (width - 0.5) * BLOCK, (height - 0.5) * BLOCK
    near = BLOCK / 2
    rows, values = [], []
    for (u, v), (x, y) in zip(((near, near), (right, near), (right, low), (near, low)), corners):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        values += [x, y]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()
