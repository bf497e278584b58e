"""Token ids <-> colors <-> places in an image.

A vocabulary of V tokens lives on a balanced lattice of k = ceil(V^(1/3)) levels per channel on [-1, 1]. The first V
lattice points (slots) are used; a palette is a permutation that says which token sits on which slot. Because the used
slots are three boxes (full planes, full rows, one partial row), the exactly nearest color is found by clamping into
each box: O(1) arithmetic for any V up to 256^3, no search over the vocabulary.
"""

import numpy as np
import torch
from torch import nn

from kit.errors import UserError

MAX_VOCAB = 256**3
PALETTES = ("digits", "shuffled", "spread", "context")
SCANS = ("block", "raster")


def levels_per_channel(vocab_size: int) -> int:
    """Smallest k with k^3 >= vocab_size (integers, so that 32768 gives exactly 32)."""
    if not 2 <= vocab_size <= MAX_VOCAB:
        raise UserError(f"a palette holds 2 to {MAX_VOCAB} tokens, not {vocab_size}")
    k = round(vocab_size ** (1 / 3))
    while k**3 < vocab_size:
        k += 1
    while (k - 1) ** 3 >= vocab_size:
        k -= 1
    return k


class Palette(nn.Module):
    """One color in [-1, 1]^3 for each token.

    `slots` (V,) long: the lattice slot of each token, a permutation of 0..V-1. `colors` (V, 3) float32.
    """

    def __init__(self, slots: torch.Tensor, name: str):
        super().__init__()
        slots = slots.long()
        self.name, self.vocab_size, self.levels = name, len(slots), levels_per_channel(len(slots))
        if not torch.equal(slots.sort().values.cpu(), torch.arange(self.vocab_size)):
            raise UserError("a palette must place every token on its own lattice slot")
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("token_of_slot", torch.argsort(slots), persistent=False)
        self.register_buffer("colors", _digits(slots, self.levels) * (2 / (self.levels - 1)) - 1, persistent=False)

    def state(self) -> dict:
        """Plain values for a checkpoint; `Palette.from_state` is the way back."""
        return {"name": self.name, "slots": self.slots.cpu().int()}

    @classmethod
    def from_state(cls, state: dict) -> "Palette":
        if state["name"] not in PALETTES:
            raise UserError(f"a palette of the unknown kind {state['name']!r}")
        return cls(state["slots"], state["name"])

    @property
    def spacing(self) -> float:
        """Distance between neighboring colors along one channel."""
        return 2 / (self.levels - 1)

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (...) to colors (..., 3). Raises UserError for an id outside the palette."""
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.vocab_size):
            low, high = int(tokens.min()), int(tokens.max())
            raise UserError(f"token ids {low}..{high} do not fit a palette of {self.vocab_size} tokens")
        return self.colors[tokens.long()]

    def decode(self, colors: torch.Tensor) -> torch.Tensor:
        """Colors (..., 3), any real values, to the ids of the exactly nearest palette colors (...)."""
        k, boxes = self.levels, self._boxes()
        place = (colors.float() + 1) * ((k - 1) / 2)
        best_slot, best_distance = None, None
        for low, high in boxes:
            digits = torch.stack([place[..., c].round().clamp(low[c], high[c]) for c in range(3)], dim=-1)
            distance = (place - digits).square().sum(-1)
            digits = digits.long()
            slot = digits[..., 0] + digits[..., 1] * k + digits[..., 2] * k * k
            if best_slot is None:
                best_slot, best_distance = slot, distance
            else:
                closer = distance < best_distance
                best_slot = torch.where(closer, slot, best_slot)
                best_distance = torch.where(closer, distance, best_distance)
        return self.token_of_slot[best_slot]

    def total(self, factors: torch.Tensor) -> torch.Tensor:
        """sum over all tokens of a product of one factor per channel and level; factors (..., 3, k) to (...)."""
        cumulative = torch.nn.functional.pad(factors.cumsum(-1), (1, 0))
        total = torch.zeros_like(factors[..., 0, 0])
        for low, high in self._boxes():
            sides = [cumulative[..., c, high[c] + 1] - cumulative[..., c, low[c]] for c in range(3)]
            total = total + sides[0] * sides[1] * sides[2]
        return total

    def _boxes(self) -> list[tuple]:
        """The used slots as boxes, each with an inclusive low and high corner in (fast, middle, slow) digit order."""
        k = self.levels
        planes, rest = divmod(self.vocab_size, k * k)
        rows, last = divmod(rest, k)
        boxes = []
        if planes:
            boxes.append(((0, 0, 0), (k - 1, k - 1, planes - 1)))
        if rows:
            boxes.append(((0, 0, planes), (k - 1, rows - 1, planes)))
        if last:
            boxes.append(((0, rows, planes), (last - 1, rows, planes)))
        return boxes

    def around(self, colors: torch.Tensor, reach: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens on the (2 * reach)^3 lattice points around colors (..., 3), found by arithmetic.

        Returns ids (..., K) and which of them exist (..., K): points beyond the lattice or its used slots do not, and
        carry id 0.
        """
        k = self.levels
        place = (colors.float() + 1) * ((k - 1) / 2)
        low = place.floor().clamp(reach - 1, max(reach - 1, k - 1 - reach)).long() - (reach - 1)
        step = torch.arange(2 * reach, device=colors.device)
        digits = low[..., None] + step  # (..., 3, 2 reach)
        slot = digits[..., 0, :, None, None] + k * digits[..., 1, None, :, None] + k * k * digits[..., 2, None, None, :]
        exists = (digits < k).unflatten(-2, (3,))
        exists = exists[..., 0, :, None, None] & exists[..., 1, None, :, None] & exists[..., 2, None, None, :]
        slot, exists = slot.flatten(-3), exists.flatten(-3)
        exists = exists & (slot < self.vocab_size)
        return self.token_of_slot[slot.clamp_max(self.vocab_size - 1)] * exists, exists


def _digits(slots: torch.Tensor, k: int) -> torch.Tensor:
    """Base-k digits of slots (...) as float (..., 3), fastest first."""
    return torch.stack([slots % k, slots // k % k, slots // (k * k)], dim=-1).float()


# ----------------------------------------------------------------------------------------------------------------------
# Assignments: which token on which slot


def build_palette(
    name: str, vocab_size: int, counts: np.ndarray | None = None, bigrams: np.ndarray | None = None, seed: int = 0
) -> Palette:
    """A palette by name.

    digits    token id in base k (the seeds' idea on a balanced lattice); needs nothing.
    shuffled  random; needs nothing.
    spread    frequent tokens farthest apart: the bits of the frequency rank, interleaved over the channels, lowest
              bit = widest spacing; needs `counts` (V,).
    context   spread, then improved by swaps so that tokens that a neighbor cannot tell apart lie far apart; needs
              `counts` (V,) and `bigrams` (n, 2), pairs of consecutive token ids.
    """
    if name not in PALETTES:
        raise UserError(f"unknown palette {name!r}; choose from {', '.join(PALETTES)}")
    if name == "digits":
        levels_per_channel(vocab_size)
        return Palette(torch.arange(vocab_size), name)
    if name == "shuffled":
        levels_per_channel(vocab_size)
        return Palette(torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed)), name)
    if counts is None:
        raise UserError(f"palette {name!r} needs token counts; use digits or shuffled without data")
    slots = spread_slots(np.asarray(counts))
    if name == "context":
        if bigrams is None:
            raise UserError("palette 'context' needs bigrams; use spread without them")
        slots = separate_confusable(slots, np.asarray(counts), np.asarray(bigrams), seed)
    return Palette(torch.from_numpy(slots), name)


def spread_slots(counts: np.ndarray) -> np.ndarray:
    """Slots (V,) such that the r-th most frequent token takes the r-th slot of a coarse-to-fine walk of the lattice."""
    vocab_size = len(counts)
    k = levels_per_channel(vocab_size)
    bits = max(1, (k - 1).bit_length())
    slots = np.arange(vocab_size)
    digits = np.stack([slots % k, slots // k % k, slots // (k * k)], axis=1)
    fine = digits * (1 << bits) // k  # levels stretched over 2^bits so that each bit halves the range
    key = np.zeros(vocab_size, dtype=np.int64)
    for bit in range(bits):
        for channel in range(3):
            key |= (fine[:, channel] >> (bits - 1 - bit) & 1).astype(np.int64) << (3 * bit + channel)
    walk = np.argsort(key, kind="stable")
    result = np.empty(vocab_size, dtype=np.int64)
    result[np.argsort(-counts, kind="stable")] = walk
    return result


def separate_confusable(
    slots: np.ndarray, counts: np.ndarray, bigrams: np.ndarray, seed: int = 0, rounds: int = 400, top: int = 1024
) -> np.ndarray:
    """Swap tokens between slots while that lowers the chance of a confusion that a neighboring token cannot settle.

    The cost is a union bound, sum over token pairs (u, v) of C[u, v] * Q(u, v): C is the chance that a bigram context
    calls for u and would have taken v (mean over previous and next token), Q ~ exp(-distance^2 / (8 s^2)) the chance of
    taking one color for the other at noise s = half the lattice spacing. Only the `top` most frequent tokens move.
    """
    vocab_size = len(counts)
    k = levels_per_channel(vocab_size)
    movable = np.argsort(-counts, kind="stable")[:top]
    index = np.full(vocab_size, -1)
    index[movable] = np.arange(len(movable))
    pairs = index[bigrams[(index[bigrams] >= 0).all(axis=1)]]
    n = len(movable)
    joint = np.bincount(pairs[:, 0] * n + pairs[:, 1], minlength=n * n).reshape(n, n).astype(np.float64)
    confusion = np.zeros((n, n))
    for table in (joint, joint.T):  # rows: the context token; columns: the token it calls for
        confusion += table.T @ (table / np.maximum(table.sum(axis=1, keepdims=True), 1))
    np.fill_diagonal(confusion, 0)
    confusion = torch.from_numpy(confusion / confusion.sum()).float()
    place = _digits(torch.from_numpy(slots[movable]), k)
    near = torch.exp(-torch.cdist(place, place).square() / 2)  # spacing 1 in digits, s = 1/2: d^2 / (8 s^2) = d^2 / 2
    at = torch.arange(n)  # which of the movable slots a token holds
    rng = np.random.default_rng(seed)
    held = near[at]  # (n, n): from each token's slot to every slot
    cost = confusion @ held  # cost of each token's neighborhood, by slot
    for _ in range(rounds):
        order = torch.from_numpy(rng.permutation(n))
        a, b = order[: n // 2], order[n // 2 : n // 2 * 2]
        stay = cost[a, at[a]] + cost[b, at[b]]
        move = cost[a, at[b]] + cost[b, at[a]]
        # after the swap a no longer meets b where b was: correct the two terms that `cost` counted as if it did
        move = move + 2 * confusion[a, b] * (near[at[a], at[b]] - near[at[a], at[a]])
        best = torch.topk(stay - move, max(1, n // 64))
        chosen = best.indices[best.values > 0]
        at[a[chosen]], at[b[chosen]] = at[b[chosen]], at[a[chosen]]
        moved = torch.cat([a[chosen], b[chosen]])
        change = near[at[moved]] - held[moved]
        held[moved] += change
        cost += confusion[:, moved] @ change
    result = slots.copy()
    result[movable] = slots[movable][at.numpy()]
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Layout


class Layout(nn.Module):
    """Where the i-th token of a text stands in an image of img_size x img_size pixels.

    block   each patch holds p^2 consecutive tokens, patch after patch (default)
    raster  row by row, as the reference recipe has it

    The network works on patches. Under `block` reading order *is* patch order, so that nothing is ever permuted.
    """

    def __init__(self, img_size: int, patch_size: int, scan: str = "block"):
        super().__init__()
        if scan not in SCANS:
            raise UserError(f"unknown scan {scan!r}; choose from {', '.join(SCANS)}")
        self.img_size, self.patch_size, self.scan = img_size, patch_size, scan
        self.num_positions = img_size * img_size
        # texts are padded to a multiple of this: whole patches, or whole rows of patches
        self.multiple = patch_size**2 if scan == "block" else img_size * patch_size
        grid = img_size // patch_size
        pixel = torch.arange(self.num_positions).view(grid, patch_size, grid, patch_size).transpose(1, 2).reshape(-1)
        self.register_buffer("pixel_of_patch_position", pixel, persistent=False)
        self.register_buffer("patch_position_of_pixel", torch.argsort(pixel), persistent=False)

    def to_patches(self, values: torch.Tensor) -> torch.Tensor:
        """(B, N, ...) from reading order to patch order; N is a multiple of `multiple`."""
        return values if self.scan == "block" else values[:, self.pixel_of_patch_position[: values.shape[1]]]

    def from_patches(self, values: torch.Tensor) -> torch.Tensor:
        """(B, N, ...) from patch order back to reading order."""
        return values if self.scan == "block" else values[:, self.patch_position_of_pixel[: values.shape[1]]]

    def to_image(self, values: torch.Tensor) -> torch.Tensor:
        """Values in reading order (B, N) or (B, N, C), N at most img_size^2, to an image (B, H, W) or (B, C, H, W)."""
        whole = values.new_zeros(len(values), self.num_positions, *values.shape[2:])
        whole[:, : values.shape[1]] = values
        if self.scan == "block":
            whole = whole[:, self.patch_position_of_pixel]
        image = whole.unflatten(1, (self.img_size, self.img_size))
        return image.permute(0, 3, 1, 2) if values.ndim == 3 else image

    def from_image(self, image: torch.Tensor) -> torch.Tensor:
        """The way back: (B, H, W) or (B, C, H, W) to values in reading order (B, H * W) or (B, H * W, C)."""
        values = image.flatten(-2)
        if self.scan == "block":
            values = values[..., self.pixel_of_patch_position]
        return values.transpose(1, 2) if image.ndim == 4 else values
