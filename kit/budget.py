"""Training for a given time: how long a run may take, and how many steps that allows."""

import re
import time
from contextlib import contextmanager

from kit.device import Runtime
from kit.errors import UserError

UNITS = {"s": 1, "m": 60, "h": 3600}
FIRST_STEPS = 5  # the first steps are slower than the rest and no measure of it


class TimeBudget:
    """`text` is a number with s, m or h ("10m"; plain seconds without), or None for no limit.

    `spent`: seconds that earlier sessions of the run took. `fraction`: the part of the time that this stage of the run
    gets. Raises UserError for any other text.
    """

    def __init__(self, text: str | None, spent: float = 0.0, fraction: float = 1.0):
        self.limit = None if text is None else fraction * parse_duration(text)
        self._start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        """Seconds since the run began, over all its sessions."""
        return time.monotonic() - self._start

    @contextmanager
    def paused(self):
        """Context whose time does not count, such as a validation's."""
        begun = time.monotonic()
        yield
        self._start += time.monotonic() - begun

    def total_steps(self, step: int, planned: int, runtime: Runtime) -> int:
        """Steps the whole run will have: `planned`, or what the budget allows at the pace so far where that is less; ranks agree on it."""
        if self.limit is None:
            return planned
        if step < FIRST_STEPS:
            return planned
        estimate = step if self.spent >= self.limit else max(step + 1, round(step * self.limit / self.spent))
        return runtime.agree(min(planned, estimate))


def parse_duration(text: str) -> float:
    """Seconds of "90", "90s", "10m", "1.5h". Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not match or not float(match[1]):
        raise UserError(f"`time_budget` {text}: write a number with s, m or h, for example 10m")
    return float(match[1]) * UNITS[match[2] or "s"]
