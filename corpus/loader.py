"""Chunks of tokens -> batches of token ids, padding masks and lengths."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader

from corpus.shards import Chunks
from kit.interrupt import outlive_signals


def collate(items: Sequence[torch.Tensor], multiple: int = 1) -> dict:
    """Chunks to a batch in reading order: tokens (B, N) long, mask (B, N) bool True = real token, num_tokens (B,) long.

    N is the longest chunk's length, rounded up to a multiple of `multiple` (Layout.multiple).
    """
    num_tokens = torch.tensor([len(item) for item in items])
    padded = -(-int(num_tokens.max()) // multiple) * multiple
    tokens = torch.zeros(len(items), padded, dtype=torch.long)
    for row, item in zip(tokens, items):
        row[: len(item)] = item
    return {"tokens": tokens, "mask": torch.arange(padded) < num_tokens[:, None], "num_tokens": num_tokens}


def batches(chunks: Chunks, order: Iterator[list[int]], multiple: int, num_workers: int = 0) -> DataLoader:
    """A loader that reads the batches that `order` names; "index" (B,) gives the chunks' numbers."""
    return DataLoader(
        _Numbered(chunks), batch_sampler=order, num_workers=num_workers, pin_memory=torch.cuda.is_available(),
        worker_init_fn=outlive_signals,
        collate_fn=partial(_collate_numbered, multiple=multiple),  # a lambda could not be sent to a spawned worker
    )  # fmt: skip


def _collate_numbered(items: list[tuple[int, torch.Tensor]], multiple: int) -> dict:
    index, chunks = zip(*items)
    return {**collate(chunks, multiple), "index": torch.tensor(index)}


class _Numbered:
    """Chunks with their numbers."""

    def __init__(self, chunks: Chunks):
        self.chunks = chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, self.chunks[index]
