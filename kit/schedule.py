"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math
from collections.abc import Iterable

import torch

SCHEDULES = ("cosine", "onecycle", "constant")


def lr_at(step: int, lr: float, warmup_steps: int, total_steps: int, schedule: str = "cosine") -> float:
    """Learning rate of `step` (0-based): linear warm-up to `lr`, then as `schedule` says.

    `cosine` falls to a hundredth of `lr`, `onecycle` in a straight line to zero (give it a long warm-up; after Smith,
    arXiv 1708.07120), `constant` stays.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "onecycle":
        return lr * (1 - progress)
    return lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def set_lr(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Give every group of parameters of some optimizers one learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
