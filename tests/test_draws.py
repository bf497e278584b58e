"""What is random in a step: which positions are given and predicted, at which noise, beside whose counts."""

import argparse

import numpy as np
import torch

import draws
from corpus.chunks import open_built
from corpus.loader import batches
from corpus.ngram import NGram
from kit import device
from kit.times import TimeSampler


def test_a_loss_on_some_positions_is_that_of_all_on_average(data):
    chunks, runtime = open_built(data / "train"), device.start("cpu")
    lengths = torch.from_numpy(chunks.lengths[:64])

    def drawn(fraction, step):
        args = argparse.Namespace(seed=0, infill_prob=0.3, infill_blank=0.0, loss_fraction=fraction)
        return draws.draw(lengths, None, 16, TimeSampler("uniform"), step, args, runtime)

    def weight(fraction):  # of each sample in the loss, on average
        parts = (drawn(fraction, step) for step in range(400))
        return torch.stack([part["predicted"].sum(1) / part["count"] for part in parts]).mean(0)

    assert torch.allclose(weight(0.25), weight(1.0), rtol=0.08)
    assert 0.2 < drawn(0.25, 0)["count"] / drawn(1.0, 0)["count"] < 0.3


def test_gaps_are_trained_as_they_are_filled():
    """Of the samples that are partly given, as many as asked for are pure noise elsewhere; the others keep their noise."""
    lengths, times, runtime = torch.full((4000,), 64), TimeSampler("logit_normal", 1.2, 0.9), device.start("cpu")

    def drawn(blank):
        args = argparse.Namespace(seed=0, infill_prob=0.5, infill_blank=blank, loss_fraction=1.0)
        return draws.draw(lengths, None, 16, times, 0, args, runtime)

    usual, half = drawn(0.0), drawn(0.5)
    given, blank = half["cond_mask"].any(1), half["t"] == times.grid(2)[0]
    assert torch.equal(usual["cond_mask"], half["cond_mask"]) and torch.equal(usual["t"][~blank], half["t"][~blank])
    assert not blank[~given].any() and 0.45 < blank[given].float().mean() < 0.55


def test_given_positions_come_as_prefixes_gaps_and_runs():
    torch.manual_seed(0)
    count = torch.full((400,), 50)
    known = draws.sample_cond_mask(count, 64, probability=1.0)
    assert not known[:, 50:].any() and (~known[:, :50]).any(1).all() and known.any(1).float().mean() > 0.9
    prefixes = [(row[:50].diff() != 0).sum() == 1 and row[0] for row in known.int()]
    assert 0.2 < sum(map(bool, prefixes)) / 400 < 0.6
    assert not draws.sample_cond_mask(count, 64, probability=0.0).any()


def test_a_chunk_is_trained_beside_counts_of_other_chunks(data):
    """Its fold is that whose tables were counted without it."""
    chunks = open_built(data / "train")
    folds = chunks.folds(draws.FOLDS)
    ngram = NGram(folds, 300, 2)
    args, runtime = (
        argparse.Namespace(infill_prob=0.0, infill_blank=0.0, loss_fraction=1.0, ngram=3, seed=0),
        device.start("cpu"),
    )
    for index in range(0, len(chunks), 41):
        (batch,) = batches(chunks, iter([[index]]), 16)
        drawn = draws.draw(batch["num_tokens"], None, 16, TimeSampler("uniform"), 0, args, runtime)
        (fold,) = draws.sample_inputs(batch, drawn, slice(None), chunks, 1, args, runtime)["fold"].tolist()
        text = chunks[index].numpy()
        held = [[piece for tokens, first in part for piece in np.split(tokens, first[1:])] for part in folds]
        inside = [any(np.array_equal(text, piece) for piece in pieces) for pieces in held]
        assert inside[fold - 1] and sum(inside) == 1
    assert ngram.folds == 1 + draws.FOLDS
