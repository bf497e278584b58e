"""BrierLM (CALM, arXiv 2510.27688): a score of generated text that needs samples and no probabilities."""

import math

import torch

from corpus.chunks import reported
from corpus.shards import Chunks
from kit.errors import UserError

NGRAMS = 4


def brier_lm(first: torch.Tensor, second: torch.Tensor, truth: torch.Tensor) -> dict:
    """`brier_lm` in [0, 1], and `brier`, the score of each length of n-gram, which may be negative.

    first, second: two independent continuations (B, N) of each prompt; truth (B, N). An n-gram's score is the fraction of samples
    that are right, less the fraction of pairs that are alike; BrierLM is the geometric mean over n = 1 to min(4, N), 0 where
    one of them is negative.
    """
    scores = []
    for n in range(1, min(NGRAMS, truth.shape[1]) + 1):
        a, b, true = first[:, :n], second[:, :n], truth[:, :n]
        right = (a == true).all(1).float() + (b == true).all(1).float()
        scores.append(float((right - (a == b).all(1).float()).mean()))
    return {"brier_lm": math.prod(max(score, 0.0) for score in scores) ** (1 / len(scores)), "brier": scores}


def prompts_of(test: Chunks, count: int, window: int) -> torch.Tensor:
    """The first tokens (B, N) of held-out sequences: a prompt of a quarter of the window and the 4 after it.

    Raises UserError where no sequence is as long.
    """
    length = max(NGRAMS, window // 4) + NGRAMS
    rows = [test[i][:length] for i in reported(test, count, length)]
    if not rows:
        raise UserError(f"no held-out sequence has the {length} tokens that BrierLM needs")
    return torch.stack(rows)
