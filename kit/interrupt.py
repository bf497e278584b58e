"""SIGTERM and SIGINT as a flag: the loop finishes its step, saves and leaves."""

import signal
import time

PATIENCE = 3.0  # seconds in which a repeated signal counts as the same one: torchrun passes Ctrl-C on a second time


class Interrupt:
    """`received` turns true at the first signal; one that comes later than PATIENCE acts as it always did."""

    def __init__(self):
        self.received = False
        self._since = 0.0
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number, frame):
        if not self.received:
            self.received, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > PATIENCE:
            for each, handler in self._previous.items():
                signal.signal(each, handler)
            signal.raise_signal(number)
