"""Chunks of tokens -> batches of token ids, padding masks and lengths."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from corpus.chunks import Chunks


def collate(items: list[torch.Tensor], multiple: int = 1) -> dict:
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
    numbered = _Numbered(chunks)
    return DataLoader(
        numbered, batch_sampler=order, num_workers=num_workers, pin_memory=torch.cuda.is_available(),
        collate_fn=lambda items: {
            **collate([item for _, item in items], multiple), "index": torch.tensor([index for index, _ in items])
        },
    )  # fmt: skip


class _Numbered:
    """Chunks with their numbers."""

    def __init__(self, chunks: Chunks):
        self.chunks = chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        return index, self.chunks[index]
