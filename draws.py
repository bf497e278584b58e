"""What is random in a step of train.py: noise levels, noise, which tokens are given and which are predicted.

Drawn for the whole step from its place in the run, so that a step depends neither on the devices nor on the parts it is split into.
"""

import argparse

import torch

from corpus.shards import Chunks
from kit.device import Runtime
from kit.randomness import step_seed
from kit.times import TimeSampler

FOLDS = 4  # of the n-gram model: what a chunk is trained with was counted from the other three quarters of the data


def draw(
    lengths: torch.Tensor,
    given: torch.Tensor | None,
    multiple: int,
    times: TimeSampler,
    step: int,
    args: argparse.Namespace,
    runtime: Runtime,
) -> dict:
    """The random part of a step for all its chunks, of `lengths` (S,), on all devices, which draw the same.

    So a step does not depend on how its chunks are split. `given` (S,): how many tokens of each are a prompt. Times t (S,), stratified so that a step covers all noise levels;
    noise (S, N, 3), on the device; cond_mask (S, N); predicted (S, N), where the loss falls, and their number, `count`.
    """
    torch.manual_seed(step_seed(args.seed, step, 0, 0))
    S, N = len(lengths), -(-int(lengths.max()) // multiple) * multiple
    t = times.sample((torch.randperm(S) + torch.rand(S)) / S)
    cond_mask = sample_cond_mask(lengths, N, args.infill_prob)
    if args.infill_blank:  # gaps as a sampler finds them
        t[cond_mask.any(1) & (torch.rand(S) < args.infill_blank)] = times.grid(2)[0]
    if given is not None:
        cond_mask |= torch.arange(N) < given[:, None]
    predicted = (torch.arange(N) < lengths[:, None]) & ~cond_mask
    if args.loss_fraction < 1:
        predicted &= torch.rand(S, N) < args.loss_fraction
    noise = torch.randn(S, N, 3, device=runtime.device)
    return {
        "t": t,
        "noise": noise,
        "cond_mask": cond_mask,
        "predicted": predicted,
        "count": max(1, int(predicted.sum())),
    }


def sample_inputs(
    batch: dict, drawn: dict, own: slice, train: Chunks, parts: int, args: argparse.Namespace, runtime: Runtime
) -> dict:
    """A batch, one of `parts` of a step, on the device with its part of what was drawn for the step."""
    N = batch["tokens"].shape[1]
    return {
        "tokens": runtime.to(batch["tokens"]),
        "mask": runtime.to(batch["mask"]),
        "t": runtime.to(drawn["t"][own]),
        "noise": drawn["noise"][own, :N],
        "cond_mask": runtime.to(drawn["cond_mask"][own, :N]),
        "fold": runtime.to(1 + train.fold_of(batch["index"], FOLDS)) if args.ngram else None,
        "predicted": runtime.to(drawn["predicted"][own, :N].flatten().nonzero()[:, 0]),
        "count": drawn["count"] / parts,
    }


def sample_cond_mask(num_tokens: torch.Tensor, num_positions: int, probability: float) -> torch.Tensor:
    """Which positions (B, N) are given clean: with `probability` a sample gets a prefix, or all but a span, or scattered runs."""
    given = torch.zeros(len(num_tokens), num_positions, dtype=torch.bool)
    for index in ((torch.rand(len(num_tokens)) < probability) & (num_tokens >= 4)).nonzero()[:, 0].tolist():
        row, count = given[index], int(num_tokens[index])
        kind, fraction = int(torch.randint(3, ())), float(torch.rand(()))
        length = min(count - 1, max(1, round(fraction * count)))
        if kind == 0:  # a prefix to continue
            row[:length] = True
        elif kind == 1:  # a gap to fill
            start = int(torch.randint(count - length + 1, ()))
            row[:count] = True
            row[start : start + length] = False
        else:  # runs of eight
            row[:count] = (torch.rand(-(-count // 8)) < fraction).repeat_interleave(8)[:count]
            row[int(torch.randint(count, ()))] = False
    return given
