"""n-grams counted and smoothed, and the tables that hold them.

Smoothing: interpolated modified Kneser-Ney (Chen & Goodman, 1999).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

DENSE_TABLE = 1 << 27  # lookups by plain index up to so many cells, by hash beyond


# ----------------------------------------------------------------------------------------------------------------------
# Counting


@dataclass
class Counts:
    """Distinct n-grams as integers (`keys`, sorted: first token most significant) and how often each was seen."""

    keys: np.ndarray
    counts: np.ndarray


def count_ngrams(parts: Iterable[tuple[np.ndarray, np.ndarray]], vocab_size: int, order: int) -> Counts:
    """Counts of all n-grams inside chunks. `parts`: (tokens (n,), first (m,)): chunks back to back and where each begins."""
    found = []
    for tokens, first in parts:
        if len(tokens) < order:
            continue
        tokens = tokens.astype(np.int64)
        windows = np.lib.stride_tricks.sliding_window_view(tokens, order)
        inside = np.ones(len(windows), dtype=bool)
        for begin in first[first > 0]:
            inside[max(0, begin - order + 1) : begin] = False
        keys = windows[inside] @ (vocab_size ** np.arange(order - 1, -1, -1, dtype=np.int64))
        found.append(np.unique(keys, return_counts=True))
    if not found:
        return Counts(np.empty(0, np.int64), np.empty(0, np.int64))
    keys, inverse = np.unique(np.concatenate([k for k, _ in found]), return_inverse=True)
    return Counts(keys, np.bincount(inverse, weights=np.concatenate([c for _, c in found])).astype(np.int64))


def kneser_ney(keys: np.ndarray, counts: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Discounted relative frequencies (n,) of n-grams, and each distinct history with its back-off weight.

    p(w | h) = frequency(h, w) + backoff(h) * p_lower(w); a history never seen has back-off weight 1.
    """
    ones, twos, threes, fours = (max(1, int((counts == c).sum())) for c in (1, 2, 3, 4))
    base = ones / (ones + 2 * twos)
    discounts = np.array([0, 1 - 2 * base * twos / ones, 2 - 3 * base * threes / twos, 3 - 4 * base * fours / threes])
    discounts = np.clip(discounts, [0, 0.1, 0.1, 0.1], [0, 0.95, 1.9, 2.9])  # few n-grams give wild estimates
    taken = discounts[np.minimum(counts, 3)]
    histories, inverse = np.unique(keys // vocab_size, return_inverse=True)
    totals = np.bincount(inverse, weights=counts, minlength=len(histories))
    return (counts - taken) / totals[inverse], histories, np.bincount(inverse, weights=taken) / totals


def merge(parts: list[Counts]) -> Counts:
    if len(parts) == 1:
        return parts[0]
    keys, inverse = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
    counts = np.concatenate([part.counts for part in parts])
    return Counts(keys, np.bincount(inverse, weights=counts, minlength=len(keys)).astype(np.int64))


# ----------------------------------------------------------------------------------------------------------------------
# Tables


class Table(nn.Module):
    """A map from integers below `size` to float32 or int32 that is `default` nearly everywhere: an array, or a hash table."""

    def __init__(self, keys: np.ndarray, values: np.ndarray, size: int, default: float = 0.0):
        super().__init__()
        values = torch.from_numpy(np.asarray(values, np.int32 if values.dtype == np.int64 else np.float32))
        keys = torch.from_numpy(np.asarray(keys, np.int64))
        default = torch.tensor(default, dtype=values.dtype)
        self.dense = size <= DENSE_TABLE
        self.register_buffer("default", default, persistent=False)
        if self.dense:
            self.register_buffer("values", default.repeat(size).scatter_(0, keys, values), persistent=False)
            return
        self.bits = max(4, (4 * len(keys)).bit_length())
        slots, stored = torch.full((1 << self.bits,), -1), default.repeat(1 << self.bits)
        waiting, self.depth = torch.arange(len(keys)), 0
        while len(waiting):
            place = self._slot(keys[waiting], self.depth)
            free = slots[place] < 0
            slots[place[free]] = keys[waiting[free]]  # of several keys for one slot, one stays
            placed = slots[place] == keys[waiting]
            stored[place[placed]] = values[waiting[placed]]
            waiting, self.depth = waiting[~placed], self.depth + 1
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("values", stored, persistent=False)

    def _slot(self, keys: torch.Tensor, probe: int) -> torch.Tensor:
        return ((keys * -7046029254386353131 >> (64 - self.bits)) + probe) & ((1 << self.bits) - 1)

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        """Values of keys (...)."""
        if self.dense:
            return self.values.index_select(0, keys.flatten()).view(keys.shape)
        place = self._slot(keys, 0)
        found = self.slots[place]
        result = torch.where(found == keys, self.values[place], self.default)
        missing = ((found != keys) & (found >= 0)).nonzero(as_tuple=True)
        for probe in range(1, self.depth):
            if not len(missing[0]):
                break
            wanted = keys[missing]
            place = self._slot(wanted, probe)
            found = self.slots[place]
            result[missing] = torch.where(found == wanted, self.values[place], result[missing])
            missing = tuple(each[(found != wanted) & (found >= 0)] for each in missing)
        return result
