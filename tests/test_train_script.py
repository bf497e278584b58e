"""train.sh from another folder: relative paths are the caller's, a second call continues, a finished run is reported again."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.runs import ROOT, load

SETTINGS = {
    "NUM_GPUS": "0", "IMG_SIZE": "8", "VOCAB_SIZE": "300", "MIN_TOKENS": "16", "MAX_TOKENS": "64", "BATCH_SIZE": "16",
    "MAX_STEPS": "3", "EVAL_SAMPLES": "4", "OMP_NUM_THREADS": "1",
}  # fmt: skip


@pytest.fixture
def run(tmp_path, text_folder):
    """Call train.sh from a folder beside `texts`, with relative paths."""
    (tmp_path / "texts").symlink_to(text_folder)
    (tmp_path / "work").mkdir()
    given = {**os.environ, "PYTHON": sys.executable, "DATA_PATH": "../texts", "OUTPUT_DIR": "run", **SETTINGS}

    def call(stop_when=None, **changes) -> subprocess.CompletedProcess:
        process = subprocess.Popen(
            [str(ROOT / "train.sh")], cwd=tmp_path / "work", env={**given, **changes},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if stop_when:
            while not stop_when():
                assert process.poll() is None
                time.sleep(0.05)
            process.terminate()
        output, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return call


def test_three_steps_and_later_two_more(run, tmp_path):
    first = run()
    assert first.returncode == 0, first.stderr[-2000:]
    folder = tmp_path / "work" / "run"
    assert load(folder / "last.pth")["step"] == 3 and (folder / "report" / "recovery.png").exists()
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["num_chunks"] == 4 and (folder / "samples" / "generate_000.gif").exists()
    again = run(MAX_STEPS="5")
    assert again.returncode == 0 and "continuing the run in" in again.stdout, again.stderr[-2000:]
    assert load(folder / "last.pth")["step"] == 5


def test_a_stopped_run_is_saved_and_data_of_another_text_is_refused(run, tmp_path):
    """SIGTERM to the script, as a cluster sends it, reaches the training."""
    folder = tmp_path / "work" / "run"
    stopped = run(stop_when=lambda: (folder / "best_model.pth").exists(), MAX_STEPS="5000")
    assert stopped.returncode == 130 and "stopped early" in stopped.stdout
    assert 0 < load(folder / "last.pth")["step"] < 5000 and not (folder / "report").exists()
    other = run(DATA_PATH="")
    assert other.returncode == 2 and "choose another OUTPUT_DIR" in other.stderr
