"""Killed at any moment, a run that is started again ends with the weights, and the log, of one that was left alone.

./test.sh -m faults        # KILLS=50 for each trainer in one process and in two, an hour; KILLS=5 for less
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import READER, TINY, sentences
from tests.runs import ROOT, TWO_PROCESSES, kill_tree, load, read_log, run_whole, same_tensors
from tests.tokcom.conftest import SMALL
from tests.vit_cifar10.conftest import SHORT

KILLS = int(os.environ.get("KILLS", "50"))
STARTED = (
    3.0  # seconds that a program needs until it trains, at least; it is killed in the WINDOW after these, or earlier
)
WINDOW = 9.0
TRAINERS = ("train.py", "tokcom.train", "vit_cifar10.train", "image_context.train_lora")
pytestmark = pytest.mark.faults


def trainers(data, images, reader_config):
    """name -> (command without the interpreter and --output_dir, flat tensors of a last.pth)."""
    often = ("--save_steps", "2", "--log_interval", "1")
    return {
        "train.py": (
            ["train.py", "--data_path", data, *TINY, *often, "--max_steps", "90", "--val_interval", "15"],
            lambda state: {**state["model_state_dict"], **{f"ema.{k}": v for k, v in state["ema_state_dict"].items()}},
        ),
        "tokcom.train": (
            ["-m", "tokcom.train", "--data_path", data, *SMALL, *often, "--vae_epochs", "3", "--diffusion_epochs", "3"],
            lambda state: {**state["vae_model_state_dict"], **state["denoised_model_state_dict"], **state["training"]["weights"]},
        ),
        "vit_cifar10.train": (
            ["-m", "vit_cifar10.train", "--data_path", images, *SHORT, "--epochs", "12", "--log_interval", "1"],
            lambda state: {**state["model_state_dict"], **{f"ema.{k}": v for k, v in state["ema_state_dict"].items()}},
        ),
        "image_context.train_lora": (
            ["-m", "image_context.train_lora", "--config", reader_config, "--device", "cpu"],
            lambda state: state["weights"],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", TRAINERS)
def test_kills_change_nothing(name, processes, request, record, tmp_path):
    data = request.getfixturevalue("data") if name in ("train.py", "tokcom.train") else None
    images = request.getfixturevalue("images") if name == "vit_cifar10.train" else None
    config = tmp_path / "train.yaml"
    if name == "image_context.train_lora":
        write_reader_config(config)
    command, tensors = trainers(data, images, config)[name]
    command = [*([sys.executable] if processes == 1 else TWO_PROCESSES), *command]
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
            patience = STARTED * processes + rng.random() * WINDOW if tried < KILLS else None
            try:
                _, errors = process.communicate(timeout=patience)
                assert process.returncode == 0, errors.decode()[-2000:]
                finished = True
            except subprocess.TimeoutExpired:
                kill_tree(process)
                tried += 1
        differing += not same_tensors(truth, tensors(load(folder / "last.pth"))) or logged(folder) != steps
    record("kills", name + ", two processes" * (processes == 2), tried=tried, differing=differing, runs=runs)
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
        if (output / "stats.json").exists():
            differing += contents(output) != truth
        else:
            run_whole([*command, output])
            differing += contents(output) != truth
        shutil.rmtree(output)
    record("kills", "build_pretrain_data.py", tried=KILLS, differing=differing)
    assert not differing


def contents(folder) -> dict:
    """name -> bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
