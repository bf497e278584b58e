"""Chunks of tokens -> batches of token ids, padding masks and lengths."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from kit.chunks import Chunks


def collate(items: list[torch.Tensor], num_positions: int) -> dict:
    """Chunks to a batch: tokens (B, N) long, mask (B, N) bool, num_tokens (B,) long; N = num_positions."""
    num_tokens = torch.tensor([len(item) for item in items])
    tokens = torch.zeros(len(items), num_positions, dtype=torch.long)
    for row, item in zip(tokens, items):
        row[: len(item)] = item
    return {"tokens": tokens, "mask": torch.arange(num_positions) < num_tokens[:, None], "num_tokens": num_tokens}


def batches(chunks: Chunks, order: Iterator[list[int]], num_positions: int, num_workers: int = 0) -> DataLoader:
    """A loader that reads the batches that `order` names."""
    return DataLoader(
        chunks, batch_sampler=order, num_workers=num_workers, pin_memory=torch.cuda.is_available(),
        collate_fn=lambda items: collate(items, num_positions),
    )  # fmt: skip
