"""Small n-gram models over texts drawn from a Markov chain, for tests."""

import numpy as np
import torch

from corpus.ngram import NGram


def stretch(*chunks):
    """Chunks of token ids as one part of one stretch."""
    lengths = np.array([len(chunk) for chunk in chunks])
    return [(np.concatenate(chunks).astype(np.int32), np.cumsum(lengths) - lengths)]


def markov_chunks(vocab_size, count, length, seed, likely=0.7):
    """Texts in which u is followed by 2u + 1 or 3u + 2 (modulo V) most of the time."""
    rng, chunks = np.random.default_rng(seed), []
    for _ in range(count):
        text = [int(rng.integers(vocab_size))]
        for _ in range(int(rng.integers(length // 2, length + 1)) - 1):
            usual = (2 * text[-1] + 1, 3 * text[-1] + 2)[int(rng.integers(2))] % vocab_size
            text.append(usual if rng.random() < likely else int(rng.integers(vocab_size)))
        chunks.append(np.array(text))
    return chunks


def tables(vocab_size, order=3, stretches=2, seed=0, count=8, length=12):
    """An n-gram model of a few Markov texts, and its stretches."""
    parts = [stretch(*markov_chunks(vocab_size, count, length, seed * 100 + s)) for s in range(stretches)]
    return NGram(parts, vocab_size, order), parts


def p_bigram(ngram, fold):
    """(V, V) in float64."""
    v = torch.arange(ngram.vocab_size)
    return ngram.p_bigram(torch.tensor(fold), v[:, None], v).double()


def p_trigram(ngram, fold):
    """(V, V, V) in float64."""
    v = torch.arange(ngram.vocab_size)
    return ngram.p_trigram(torch.tensor(fold), v[:, None, None], v[:, None], v).double()


def likelihoods(vocab_size, shape, sigma, seed=0):
    """Log-likelihoods (..., V) of noisy points on a line, one place per token."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(vocab_size, shape, generator=generator)
    seen = truth + sigma * 2 * torch.randn(shape, generator=generator)
    return -(seen[..., None] - torch.arange(vocab_size)).square() / (2 * (2 * sigma) ** 2), truth


def solve(ngram, *arguments, **settings):
    """The context of the highest order asked for."""
    return ngram.contexts(*arguments, **settings)[-1]
