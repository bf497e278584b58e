"""SIGTERM and SIGINT as a flag: the loop finishes its step, saves and leaves."""

import signal


class Interrupt:
    """`received` turns true at the first signal; a second one ends the process in the usual way."""

    def __init__(self):
        self.received = False
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number, frame):
        self.received = True
        for each, handler in self._previous.items():
            signal.signal(each, handler)
