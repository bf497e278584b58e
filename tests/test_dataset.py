"""A batch holds its chunks, and False where they end."""

import torch

from dataset import batches, collate
from kit.chunks import open_built


def test_a_batch_carries_tokens_mask_and_lengths(data):
    chunks = open_built(data / "val")
    batch = next(iter(batches(chunks, iter([[0, 1]]), 64)))
    for row in range(2):
        count = int(chunks.lengths[row])
        assert batch["num_tokens"][row] == count == batch["mask"][row].sum()
        assert torch.equal(batch["tokens"][row, :count], chunks[row]) and batch["mask"][row, :count].all()


def test_collate_pads_with_false():
    batch = collate([torch.tensor([5, 6]), torch.tensor([7])], 4)
    assert batch["mask"].tolist() == [[True, True, False, False], [True, False, False, False]]
