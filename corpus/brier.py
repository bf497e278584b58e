"""BrierLM (CALM, arXiv 2510.27688): a score of generated text that needs samples and no probabilities."""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from corpus.chunks import reported
from corpus.shards import Chunks
from kit.errors import UserError
from kit.intervals import middle_95, resamples_of

NGRAMS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_prompts", type=int, default=512, help="prompts continued for BrierLM")
    parser.add_argument("--continuations", type=int, default=2, help="of each prompt")


def check(args: argparse.Namespace) -> None:
    """Raises UserError for numbers that give no score, which is of pairs."""
    for name, least in (("num_prompts", 1), ("continuations", 2)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: need at least {least}")


def brier_lm(samples: Sequence[torch.Tensor], truth: torch.Tensor) -> dict:
    """`brier_lm` in [0, 1], its 95 % interval by resampling the prompts, and `brier`, the score of each length of n-gram, which may be negative.

    samples: two or more independent continuations (B, N) of each prompt; truth (B, N). An n-gram's score is twice the fraction of
    samples that are right, less the fraction of pairs that are alike; BrierLM is the geometric mean over n = 1 to min(4, N), 0 where
    one of them is negative.
    """
    samples = torch.stack(list(samples))
    first, second = torch.triu_indices(len(samples), len(samples), 1)
    scores = []
    for n in range(1, min(NGRAMS, truth.shape[1]) + 1):
        part = samples[..., :n]
        right, alike = (part == truth[:, :n]).all(-1), (part[first] == part[second]).all(-1)
        scores.append((2 * right.double().mean(0) - alike.double().mean(0)).cpu().numpy())
    each = np.stack(scores, 1)
    kinds, counts = np.unique(each, axis=0, return_counts=True)  # few, of however many prompts
    resampled = resamples_of(counts) @ kinds / len(each)
    return {
        "brier_lm": float(_mean(each.mean(0))),
        "brier_lm_ci": middle_95(_mean(resampled)),
        "brier": each.mean(0).tolist(),
    }


def _mean(scores: np.ndarray) -> np.ndarray:
    """The geometric mean (...) of scores (..., n)."""
    return scores.clip(0).prod(-1) ** (1 / scores.shape[-1])


def prompts_of(test: Chunks, count: int, window: int) -> torch.Tensor:
    """Held-out text (B, N): a prompt of a quarter of the window and the 4 tokens after it, as `passages` finds them."""
    return passages(test, count, max(NGRAMS, window // 4) + NGRAMS)


def passages(test: Chunks, count: int, length: int) -> torch.Tensor:
    """Up to `count` passages (B, length) of held-out sequences, their beginnings first of all; from fewer sequences, several of each, evenly spaced.

    Raises UserError where no sequence is as long.
    """
    chosen = reported(test, count, length)
    if not len(chosen):
        raise UserError(f"no held-out sequence has the {length} tokens that BrierLM needs")
    each = -(-count // len(chosen))
    places = dict.fromkeys((i, int(s)) for i in chosen for s in np.linspace(0, test.lengths[i] - length, each))
    kept = np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)
    return torch.stack([test[i][start : start + length] for i, start in np.array(list(places))[kept]])
