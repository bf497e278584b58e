"""A small tokenizer and a VLM with random weights."""

import pytest
import torch

from corpus.tokenizer import train_bpe
from image_context.model import build_vlm
from image_context.vlm import python_text


@pytest.fixture(scope="session")
def bpe():
    return train_bpe(python_text(), 504)


@pytest.fixture(scope="session")
def vlm(bpe):
    torch.manual_seed(0)
    return build_vlm("tiny", bpe)
