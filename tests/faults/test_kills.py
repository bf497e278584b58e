"""Killed at any moment, a run that is started again ends with the weights, and the log, of one that was left alone.

./test.sh -m faults        # KILLS=50 for each trainer in one process and in two, an hour; KILLS=5 for less
"""

import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import sentences
from tests.faults.trainers import TRAINERS, logged
from tests.runs import ROOT, TWO_PROCESSES, kill_tree, load, run_whole, same_tensors

KILLS = int(os.environ.get("KILLS", "50"))
STARTED = (
    3.0  # seconds that a program needs until it trains, at least; it is killed in the WINDOW after these, or earlier
)
WINDOW = 9.0
pytestmark = pytest.mark.faults


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("trainer", TRAINERS, indirect=True)
def test_kills_change_nothing(trainer, processes, record, tmp_path):
    command = [*([sys.executable] if processes == 1 else TWO_PROCESSES), *trainer.command]
    trainer.prepare(tmp_path / "whole")
    run_whole([*command, "--output_dir", tmp_path / "whole"])
    truth, steps = trainer.tensors(load(tmp_path / "whole" / "last.pth")), logged(tmp_path / "whole")
    rng, tried, differing, runs = random.Random(0), 0, 0, 0
    while tried < KILLS:
        folder = tmp_path / f"run{runs}"
        trainer.prepare(folder)
        runs += 1
        finished = False
        while not finished:
            resume = ["--resume", "auto"] if (folder / "last.pth").exists() else []
            process = subprocess.Popen(
                [*command, "--output_dir", folder, *resume], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            patience = STARTED * processes + rng.random() * WINDOW if tried < KILLS else None
            try:
                _, errors = process.communicate(timeout=patience)
                assert process.returncode == 0, errors.decode()[-2000:]
                finished = True
            except subprocess.TimeoutExpired:
                kill_tree(process)
                tried += 1
        differing += not same_tensors(truth, trainer.tensors(load(folder / "last.pth"))) or logged(folder) != steps
    record("kills", trainer.name + ", two processes" * (processes == 2), tried=tried, differing=differing, runs=runs)
    assert not differing


def test_a_build_that_was_killed_anywhere_is_the_same_when_done_again(record, tmp_path):
    text = tmp_path / "texts"
    text.mkdir()
    for index in range(40):
        (text / f"{index}.txt").write_text(sentences(index, 400), encoding="utf-8")
    command = [sys.executable, "build_pretrain_data.py", "--input", text, "--vocab_size", "300", "--output_dir"]
    start = time.monotonic()
    run_whole([*command, tmp_path / "whole"])
    seconds, truth = time.monotonic() - start, contents(tmp_path / "whole")
    rng, differing = random.Random(0), 0
    for kill in range(KILLS):
        output = tmp_path / str(kill)
        process = subprocess.Popen([*command, output], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(seconds * rng.random())
        kill_tree(process)
        if not (output / "stats.json").exists():
            run_whole([*command, output])
        differing += contents(output) != truth
        shutil.rmtree(output)
    record("kills", "build_pretrain_data.py", tried=KILLS, differing=differing)
    assert not differing


def contents(folder) -> dict:
    """name -> bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
