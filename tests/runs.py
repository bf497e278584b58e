"""A training run from outside: start it, stop it at a place, read what it wrote."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from kit.runlog import read_log

ROOT = Path(__file__).parent.parent
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def made_once(factory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of pytest's `tmp_path_factory`, filled by `make` in the first of the processes that share the tests; the others wait."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_suffix(".done")
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def rows(folder: Path, key: str) -> dict:
    """step -> value of one quantity in a run's log."""
    return {row["step"]: row[key] for row in read_log(folder / "log.jsonl") if key in row}


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def run_whole(command: Sequence) -> None:
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def run_stopped(command: Sequence, log: Path, is_time: Callable[[str], bool], sign: int) -> None:
    """Send `sign` to a run once `is_time(text of its log)`; asked politely it saves and says how to go on."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    while not (log.exists() and is_time(log.read_text())):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, sign)  # as a terminal does
    output, _ = process.communicate()
    if sign == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 0 and "--resume auto" in output
    assert not (log.parent / "finished").exists()  # by which recipes would take it for whole


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it, the launcher first, as when a machine loses power."""
    found = [process.pid]
    for parent in found:
        children = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True).stdout.split()
        found += map(int, children)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    """Until a program listens there; fails if it ends before."""
    for _ in range(600):
        assert process.poll() is None
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens on {port}")


def same_tensors(first: dict, second: dict) -> bool:
    """Whether two flat dicts hold the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
