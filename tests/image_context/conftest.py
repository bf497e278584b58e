"""A small tokenizer and a reader with random weights."""

import pytest
import torch

from corpus.tokenizer import train_bpe
from image_context.model import build_reader
from image_context.reader import python_text


@pytest.fixture(scope="session")
def bpe():
    return train_bpe(python_text(), 504)


@pytest.fixture(scope="session")
def reader(bpe):
    torch.manual_seed(0)
    return build_reader("tiny", bpe)
