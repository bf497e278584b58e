"""Losses that stay on the device until they are read, so that no step waits for one."""

import math
from pathlib import Path

import torch

from kit.checkpoint import LAST
from kit.device import Runtime
from kit.errors import UserError
from kit.runlog import RunLog


class Losses:
    """Loss, gradient norm and learning rate of the steps since the last `write`."""

    def __init__(self, log: RunLog, runtime: Runtime, output_dir: Path):
        self.log, self.runtime, self.output_dir = log, runtime, output_dir
        self._pending = []

    def add(self, step: int, loss: torch.Tensor, norm: torch.Tensor, lr: float) -> None:
        """Note a step's loss and gradient norm (tensors of one number, not read yet)."""
        self._pending.append((step, loss, norm, lr))

    def write(self, **values) -> float:
        """Log the pending steps, each with `values`; returns their mean loss over all ranks.

        Raises UserError on every rank if one loss or gradient norm is not finite.
        """
        numbers = torch.stack([torch.stack([loss, norm]) for _, loss, norm, _ in self._pending]).float()
        numbers = (self.runtime.sum(numbers) / self.runtime.world_size).tolist()
        for (step, _, _, lr), (loss, norm) in zip(self._pending, numbers):
            self.log.log(step, loss=loss, grad_norm=norm, lr=lr, **values)
            if not math.isfinite(loss) or not math.isfinite(norm):
                last = self.output_dir / LAST
                kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
                raise UserError(
                    f"loss {loss}, gradient norm {norm} at step {step}; {kept}; lower --lr or --grad_clip, or use --precision fp32"
                )
        self._pending = []
        return sum(loss for loss, _ in numbers) / len(numbers)
