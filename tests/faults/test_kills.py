"""Killed at any moment, a run that is started again ends with the weights, and the log, of one that was left alone.

./test.sh -m faults        # KILLS=50 for each trainer, half an hour; KILLS=5 for less
"""

import json
import os
import random
import signal
import subprocess
import sys

import pytest

from tests.conftest import READER, TINY
from tests.runs import ROOT, load, read_log, run_whole, same_tensors
from tests.tokcom.conftest import SMALL
from tests.vit_cifar10.conftest import SHORT

KILLS = int(os.environ.get("KILLS", "50"))
STARTED = (
    3.0  # seconds that a program needs until it trains, at least; it is killed in the WINDOW after these, or earlier
)
WINDOW = 9.0
pytestmark = pytest.mark.faults


def trainers(data, images, reader_config):
    """name -> (command without --output_dir, flat tensors of a last.pth)."""
    module = [sys.executable, "-m"]
    often = ("--save_steps", "2", "--log_interval", "1")
    return {
        "train.py": (
            [sys.executable, "train.py", "--data_path", data, *TINY, *often, "--max_steps", "90", "--val_interval", "15"],
            lambda state: {**state["model_state_dict"], **{f"ema.{k}": v for k, v in state["ema_state_dict"].items()}},
        ),
        "tokcom.train": (
            [*module, "tokcom.train", "--data_path", data, *SMALL, *often, "--vae_epochs", "3", "--diffusion_epochs", "3"],
            lambda state: {**state["vae_model_state_dict"], **state["denoised_model_state_dict"], **state["training"]["weights"]},
        ),
        "vit_cifar10.train": (
            [*module, "vit_cifar10.train", "--data_path", images, *SHORT, "--epochs", "12", "--log_interval", "1"],
            lambda state: {**state["model_state_dict"], **{f"ema.{k}": v for k, v in state["ema_state_dict"].items()}},
        ),
        "image_context.train_lora": (
            [*module, "image_context.train_lora", "--config", reader_config, "--device", "cpu"],
            lambda state: state["weights"],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["train.py", "tokcom.train", "vit_cifar10.train", "image_context.train_lora"])
def test_kills_change_nothing(name, request, record, tmp_path):
    data = request.getfixturevalue("data") if name in ("train.py", "tokcom.train") else None
    images = request.getfixturevalue("images") if name == "vit_cifar10.train" else None
    config = tmp_path / "train.yaml"
    if name == "image_context.train_lora":
        write_reader_config(config)
    command, tensors = trainers(data, images, config)[name]
    prepare(name, config, tmp_path / "whole")
    run_whole([*command, "--output_dir", tmp_path / "whole"])
    truth, steps = tensors(load(tmp_path / "whole" / "last.pth")), logged(tmp_path / "whole")
    rng, tried, differing, runs = random.Random(0), 0, 0, 0
    while tried < KILLS:
        folder = tmp_path / f"run{runs}"
        prepare(name, config, folder)
        runs += 1
        finished = False
        while not finished:
            resume = ["--resume", "auto"] if (folder / "last.pth").exists() else []
            process = subprocess.Popen(
                [*command, "--output_dir", folder, *resume], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            patience = STARTED + rng.random() * WINDOW if tried < KILLS else None
            try:
                _, errors = process.communicate(timeout=patience)
                assert process.returncode == 0, errors.decode()[-2000:]
                finished = True
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                tried += 1
        differing += not same_tensors(truth, tensors(load(folder / "last.pth"))) or logged(folder) != steps
    record("kills", name, tried=tried, differing=differing, runs=runs)
    assert not differing


def logged(folder) -> list[int]:
    """Steps with a training loss in a run's log, in its order."""
    return [row["step"] for row in read_log(folder / "log.jsonl") if "loss" in row or "train_loss" in row]


def write_reader_config(path) -> None:
    training = READER["training"] | {"max_steps": 40, "save_steps": 2, "log_interval": 1}
    path.write_text(json.dumps(READER | {"training": training}), encoding="utf-8")


def prepare(name, config, folder) -> None:
    """The readers' training data lie in the run folder."""
    if name == "image_context.train_lora":
        run_whole(
            [sys.executable, "-m", "image_context.generate_train_data", "--config", config, "--output_dir", folder]
        )
