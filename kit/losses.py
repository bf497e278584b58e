"""Losses that stay on the device until they are read, so that no step waits for one."""

import math
from pathlib import Path

import torch

from kit.checkpoint import LAST
from kit.device import Runtime
from kit.errors import UserError
from kit.runlog import RunLog


class Losses:
    """Numbers of the steps since the last `write`: "loss" and "grad_norm" at least."""

    def __init__(self, log: RunLog, runtime: Runtime, output_dir: Path):
        self.log, self.runtime, self.output_dir = log, runtime, output_dir
        self._pending: list[tuple[int, float, dict]] = []

    def add(self, step: int, lr: float, **values: torch.Tensor) -> None:
        """Note a step's numbers (tensors of one number each, not read yet; every step the same names)."""
        self._pending.append((step, lr, values))

    def write(self, **values) -> float:
        """Log the pending steps, means over all ranks, each with `values`; returns their mean loss, NaN if there are none.

        Raises UserError on every rank if one loss or gradient norm is not finite.
        """
        if not self._pending:
            return math.nan
        names = list(self._pending[0][2])
        table = torch.stack([torch.stack([step[name] for name in names]).float() for _, _, step in self._pending])
        rows = [dict(zip(names, row)) for row in (self.runtime.sum(table) / self.runtime.world_size).tolist()]
        for (step, lr, _), row in zip(self._pending, rows):
            self.log.log(step, **row, lr=lr, **values)
            if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
                last = self.output_dir / LAST
                kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
                raise UserError(
                    f"loss {row['loss']}, gradient norm {row['grad_norm']} at step {step}; {kept}; "
                    "lower the learning rate or `grad_clip`, or use `precision` fp32"
                )
        self._pending = []
        return sum(row["loss"] for row in rows) / len(rows)
