"""A batch holds its chunks, and False where they end."""

import pytest
import torch

from corpus.chunks import open_built
from corpus.loader import batches, collate


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_carries_tokens_mask_lengths_and_which_chunks_they_are(data, num_workers):
    chunks = open_built(data / "val")
    (batch,) = batches(chunks, iter([[4, 1]]), 16, num_workers)
    assert batch["index"].tolist() == [4, 1]
    for row, index in enumerate((4, 1)):
        count = int(chunks.lengths[index])
        assert batch["num_tokens"][row] == count == batch["mask"][row].sum()
        assert torch.equal(batch["tokens"][row, :count], chunks[index]) and batch["mask"][row, :count].all()
        assert not batch["tokens"][row, count:].any()


@pytest.mark.parametrize(("multiple", "padded"), [(1, 5), (4, 8), (5, 5), (16, 16)])
def test_texts_are_padded_to_the_longest_rounded_up(multiple, padded):
    batch = collate([torch.tensor([7]), torch.tensor([5, 6, 7, 8, 9])], multiple)
    assert batch["tokens"].shape == batch["mask"].shape == (2, padded)


def test_collate_pads_with_false():
    batch = collate([torch.tensor([5, 6]), torch.tensor([7])], 4)
    assert batch["tokens"].tolist() == [[5, 6, 0, 0], [7, 0, 0, 0]]
    assert batch["mask"].tolist() == [[True, True, False, False], [True, False, False, False]]
