"""What a text costs, in the units that other work reports."""

import math

import numpy as np
import torch

from corpus.tokenizer import Tokenizer
from kit.intervals import ratio_with_interval


def per_byte(nats: np.ndarray, chunks: list[torch.Tensor], tokenizer: Tokenizer) -> dict:
    """Nats (S,) of chunks as nats per token and bits per byte of their text, each with its interval over chunks."""
    tokens = np.array([len(chunk) for chunk in chunks])
    sizes = np.array([len(text.encode()) for text in tokenizer.decode_batch(chunks)])
    result = {"num_chunks": len(chunks), "num_tokens": int(tokens.sum()), "num_bytes": int(sizes.sum())}
    result["nll"], result["nll_ci"] = ratio_with_interval(nats, tokens)
    result["bits_per_byte"], result["bits_per_byte_ci"] = ratio_with_interval(nats / math.log(2), sizes)
    return result
