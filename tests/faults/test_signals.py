"""What stops a run politely reaches all its processes at once: it saves within ten seconds, says how to go on, and does.

./test.sh -m faults
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import READER, TINY
from tests.runs import ROOT, TWO_PROCESSES, load, run_whole
from tests.tokcom.conftest import SMALL
from tests.vit_cifar10.conftest import SHORT

pytestmark = pytest.mark.faults
LIMIT = 10.0  # seconds until a run has saved and left
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGHUP": signal.SIGHUP}
LONG = ("--save_steps", "100000", "--log_interval", "1")


@pytest.fixture(scope="session")
def runs(request, tmp_path_factory):
    """name -> a function of the output folder that gives the command of a run of minutes, and its end in a few steps more."""
    data, images, reader = (request.getfixturevalue(name) for name in ("data", "images", "reader"))
    config = tmp_path_factory.mktemp("config") / "train.yaml"
    config.write_text(json.dumps(READER | {"training": READER["training"] | {"max_steps": 5000, "log_interval": 1}}))
    train = [
        "--data_path",
        data,
        *TINY,
        *LONG,
        "--ngram",
        "0",
        "--val_samples",
        "8",
        "--num_workers",
        "1",
        "--max_steps",
        "100000",
    ]

    def module(name, *arguments):
        return lambda output: [sys.executable, "-m", name, *map(str, arguments), "--output_dir", str(output)]

    def with_pairs(output):
        output.mkdir(exist_ok=True)
        if not (output / "train_data").exists():
            os.symlink(reader / "train_data", output / "train_data")
        return module("image_context.train_lora", "--config", config, "--device", "cpu")(output)

    return {
        "train.py": lambda output: [sys.executable, "train.py", *map(str, train), "--output_dir", str(output)],
        "train.py, two processes": lambda output: [*TWO_PROCESSES, "train.py", *map(str, train), "--output_dir", str(output)],
        "tokcom.train": module("tokcom.train", "--data_path", data, *SMALL, *LONG, "--vae_epochs", 1000, "--num_workers", 1),
        "vit_cifar10.train": module("vit_cifar10.train", "--data_path", images, *SHORT, *LONG, "--epochs", 10000),
        "image_context.train_lora": with_pairs,
    }  # fmt: skip


@pytest.mark.parametrize("sign", SIGNALS)
@pytest.mark.parametrize(
    "name", ["train.py", "train.py, two processes", "tokcom.train", "vit_cifar10.train", "image_context.train_lora"]
)
def test_a_signal_to_all_processes_saves_within_ten_seconds(runs, record, tmp_path, name, sign):
    output = tmp_path / "run"
    process = subprocess.Popen(
        runs[name](output), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_steps(output, process, 5)
    start = time.monotonic()
    os.killpg(process.pid, SIGNALS[sign])
    said, errors = process.communicate(timeout=60)
    seconds = time.monotonic() - start
    saved = (output / "last.pth").exists() and bool(load(output / "last.pth"))
    launcher = "two processes" in name and errors.count("SignalException")  # torchrun's own way to leave
    quiet = "Traceback" not in errors or launcher
    fine = seconds < LIMIT and saved and "--resume auto" in said and quiet
    record("signals", f"{name}, {sign}", tried=1, wrong=int(not fine))
    assert fine, (seconds, process.returncode, said[-500:], errors[-2000:])


def test_a_launcher_that_is_told_to_stop_lets_its_processes_save(runs, record, tmp_path):
    """torchrun alone gets the signal, as from a batch system."""
    output = tmp_path / "run"
    process = subprocess.Popen(
        runs["train.py, two processes"](output), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_steps(output, process, 5)
    process.terminate()
    said, errors = process.communicate(timeout=60)
    fine = (output / "last.pth").exists() and "--resume auto" in said
    record("signals", "torchrun, SIGTERM to the launcher", tried=1, wrong=int(not fine))
    assert fine, (said[-500:], errors[-2000:])


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGHUP"])
def test_train_sh_hands_a_signal_on(text_folder, record, tmp_path, sign):
    environment = os.environ | {
        "DATA_PATH": str(text_folder), "OUTPUT_DIR": str(tmp_path / "run"), "MODEL": "JiT-Ti/4", "IMG_SIZE": "8", "VOCAB_SIZE": "300",
        "MIN_TOKENS": "16", "MAX_STEPS": "100000", "NGRAM": "0", "PYTHON": sys.executable, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }  # fmt: skip
    process = subprocess.Popen(
        ["./train.sh"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    wait_for_steps(tmp_path / "run", process, 1)
    start = time.monotonic()
    os.killpg(process.pid, SIGNALS[sign])
    said, errors = process.communicate(timeout=60)
    fine = time.monotonic() - start < LIMIT and "--resume auto" in said and "Traceback" not in errors
    record("signals", f"train.sh, {sign}", tried=1, wrong=int(not fine))
    assert fine, (said[-800:], errors[-2000:])


def test_a_run_whose_terminal_was_closed_goes_on(runs, record, tmp_path):
    """SIGHUP, with nobody left to read what it says; then the same command with --resume auto and an end in reach."""
    output = tmp_path / "run"
    reading, writing = os.pipe()
    process = subprocess.Popen(
        runs["train.py"](output), cwd=ROOT, stdout=writing, stderr=writing, start_new_session=True
    )  # fmt: skip
    os.close(writing)
    wait_for_steps(output, process, 5)
    os.close(reading)
    os.killpg(process.pid, signal.SIGHUP)
    process.wait(timeout=60)
    step = load(output / "last.pth")["step"] if (output / "last.pth").exists() else 0
    if step:
        run_whole([*runs["train.py"](output), "--max_steps", str(step + 2), "--resume", "auto"])
    fine = step > 0 and load(output / "last.pth")["step"] == step + 2
    record("signals", "train.py, terminal closed", tried=1, wrong=int(not fine))
    assert fine


def wait_for_steps(output, process, count: int) -> None:
    log = output / "log.jsonl"
    while not log.exists() or log.read_text().count("loss") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
