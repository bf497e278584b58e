"""SIGTERM, SIGINT and SIGHUP as a flag: the loop finishes its step, saves and leaves."""

import signal
import time

from kit.device import Runtime

PATIENCE = 3.0  # seconds in which a repeated signal counts as the same one: torchrun passes Ctrl-C on a second time
GRACE = 10  # seconds
LOOK_SECONDS = (
    5.0  # between two looks of several processes; a launcher that stops a run waits half a minute before it kills
)


SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP


def outlive_signals(worker: int) -> None:
    """For the processes of a loader: what stops a run reaches all its processes, and the run's last step still wants its batch.

    SIGTERM, by which Python also ends processes that are left over at its own end, lets them live for GRACE seconds.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


class Interrupt:
    """`received` turns true at the first signal; one that comes later than PATIENCE acts as it always did.

    Processes of one run ask `at(step)`, which is true for all of them at the same step.
    """

    def __init__(self, runtime: Runtime | None = None):
        self.received = False
        self.looked = True  # whether the last `at` compared notes
        self._runtime, self._step, self._next, self._time = runtime, 0, 0, time.monotonic()
        self._since = 0.0
        self._previous = {s: signal.signal(s, self._note) for s in SIGNALS}

    def at(self, step: int) -> bool:
        """Whether to stop at `step`. Several processes compare notes every few steps, as many as pass in LOOK_SECONDS."""
        if self._runtime is None or self._runtime.world_size == 1:
            return self.received
        self.looked = step >= self._next
        if not self.looked:
            return False
        now, steps = time.monotonic(), step - self._step
        pace = int(LOOK_SECONDS * steps / max(now - self._time, 1e-6)) if self._next else 1
        self._step, self._time, self._next = step, now, step + self._runtime.agree(max(1, pace))
        return self._runtime.any(self.received)

    def _note(self, number, frame):
        if not self.received:
            self.received, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > PATIENCE:
            for each, handler in self._previous.items():
                signal.signal(each, handler)
            signal.raise_signal(number)
