"""Small diffusions over texts with structure, and batches of them, for the tests."""

import numpy as np
import torch
from torch import nn

from corpus.ngram import ALL, NGram
from diffusion import Diffusion
from model import build_jit_model
from palette import Layout, build_palette

VOCAB = 64


def texts(vocab_size=VOCAB, seed=0, count=40, length=60):
    """Tokens (count, length) in which u is followed by one of three tokens."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(vocab_size, size=count)]
    for _ in range(length - 1):
        rows.append((5 * rows[-1] + 1 + rng.integers(3, size=count)) % vocab_size)
    return np.stack(rows, axis=1)


def counted(order=3, folds=1, vocab_size=VOCAB):
    """An n-gram model of such texts."""
    parts = [texts(vocab_size, seed) for seed in range(folds)]
    return NGram([[(part.ravel(), np.arange(0, part.size, part.shape[1]))] for part in parts], vocab_size, order)


def make(objective="token", predict_clean=True, ngram=None, scan="block", vocab_size=VOCAB):
    """A new network; beside n-grams, with zero logits of its own, and gate 1 for them and for the highest order."""
    torch.manual_seed(0)
    network = build_jit_model(
        "JiT-Ti/4", 8, predict_clean, vocab_size if objective == "token" else None,
        ngram=ngram.order if ngram else 0, token_dim=16, token_depth=1,
    )  # fmt: skip
    if ngram:
        nn.init.zeros_(network.gate.bias)
        network.gate.bias.data[[0, -1]] = 1
    log_unigram = ngram.log_unigram[ALL] if ngram else None
    palette, layout = build_palette("shuffled", vocab_size), Layout(8, 4, scan)
    return Diffusion(network, palette, layout, objective, log_unigram, ngram)


def opened(diffusion):
    """Open the gates of the network, so that every part of it speaks."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in diffusion.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return diffusion.eval()


def batch(seed=0, size=4, vocab_size=VOCAB):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab_size, (size, 64), generator=generator)
    mask = torch.arange(64)[None] < torch.tensor([[64], [40], [17], [3]])[:size]
    return tokens, mask, torch.rand(size, generator=generator), torch.randn(size, 64, 3, generator=generator)


def real_batch(sigma=0.3, size=4, vocab_size=VOCAB):
    """Unseen texts of the kind that `counted` has counted, at one noise level."""
    tokens, mask, t, noise = batch(size=size)
    tokens[:, :60] = torch.from_numpy(texts(vocab_size, seed=99, count=size))
    return tokens, mask, torch.full_like(t, 1 / (1 + sigma)), noise
