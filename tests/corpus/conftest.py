"""n-grams of the small training texts."""

import pytest
import torch

from corpus.chunks import open_built
from corpus.ngram import NGram


@pytest.fixture(scope="module")
def english(data):
    """Tables of the small training texts (V = 300), and held-out texts of 200 tokens."""
    ngram = NGram(open_built(data / "train").folds(2), 300)
    held_out = open_built(data / "val")
    tokens = torch.cat([held_out[i] for i in range(len(held_out))])[: 8 * 200].view(8, 200)
    return ngram, tokens
