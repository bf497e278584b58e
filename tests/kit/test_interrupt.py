"""A signal stops all processes of a run at the same step, seconds after it came."""

import os
import signal
from itertools import pairwise

import pytest
import torch

from kit import interrupt as module
from kit.device import Runtime
from kit.interrupt import Interrupt


class Two(Runtime):
    """One of two processes; the other one agrees and has received nothing."""

    def agree(self, number):
        return number

    def any(self, flag):
        return flag


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield now
    for each, handler in previous.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("seconds_per_step, seconds", [(0.01, 5.1), (1.0, 6), (20.0, 20)])
def test_two_processes_look_often_enough_and_not_more(clock, seconds_per_step, seconds):
    interrupt, looks = Interrupt(Two(torch.device("cpu"), torch.float32, 0, 2)), []
    for step in range(2000):
        assert not interrupt.at(step)
        if interrupt.looked:
            looks.append(clock[0])
        clock[0] += seconds_per_step
    assert max(b - a for a, b in pairwise(looks)) <= seconds
    assert len(looks) <= 5 + 2000 * seconds_per_step / 2.5
    os.kill(os.getpid(), signal.SIGTERM)
    stopped = next(step for step in range(2000, 4000) if interrupt.at(step))
    assert (stopped - 2000) * seconds_per_step <= seconds


def test_one_process_stops_at_once(clock):
    interrupt = Interrupt()
    assert not interrupt.at(7) and interrupt.looked
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.received and interrupt.at(8)
