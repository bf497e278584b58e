"""Training learns, stops in time, and goes on exactly where it was stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from kit.runlog import read_log
from tests.runs import ROOT, TWO_PROCESSES, load, rows, run_stopped, run_whole, same_tensors
from tests.vit_cifar10.conftest import SHORT, TINY
from vit_cifar10 import train

MODULE = [sys.executable, "-m", "vit_cifar10.train"]


def test_a_tiny_model_learns_real_images(call, real_images, tmp_path):
    """It knows 500 images by heart, which takes position, attention and gradients that work."""
    options = ("--val_images", 100, "--batch_size", 50, "--epochs", 30, "--crop_padding", 0, "--label_smoothing", 0)
    assert call(train, "--data_path", real_images, *TINY, *options, "--lr", "4e-3", "--output_dir", tmp_path) == 0
    losses = list(rows(tmp_path, "train_loss").values())
    assert losses[0] > 1.9 and losses[-1] < 0.8
    assert max(rows(tmp_path, "val_accuracy").values()) > 0.25


def test_a_run_ends_with_one_look_at_the_test_set(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"best_model.pth", "last.pth", "config.json", "env.json", "log.jsonl", "report"} <= names
    assert {p.name for p in (trained / "report").iterdir()} == {
        "report.json", "report.html", "confusion.png", "calibration.png", "mistakes.png", "attention.png",
    }  # fmt: skip
    best = load(trained / "best_model.pth")
    accuracy = rows(trained, "val_accuracy")
    assert best["best_val_accuracy"] == [max(accuracy.values()), best["step"]] and accuracy[best["step"]] == max(
        accuracy.values()
    )
    assert not any("test" in key for row in read_log(trained / "log.jsonl") for key in row)


OPTIONS = (*SHORT, "--save_steps", "3", "--dropout", "0.1", "--drop_path", "0.1", "--grad_accum", "2", "--mixup", "0.2",
           "--trivial_augment", "--erase_prob", "0.3", "--epochs", "6")  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    run_whole([*MODULE, "--data_path", images, *OPTIONS, "--output_dir", output])
    return output


@pytest.mark.parametrize(("sign", "after"), [(signal.SIGKILL, 9), (signal.SIGTERM, 14)])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(images, uninterrupted, tmp_path, sign, after):
    command = [*MODULE, "--data_path", images, *OPTIONS, "--output_dir", tmp_path]
    run_stopped(command, tmp_path / "log.jsonl", lambda log: log.count("\n") >= after, sign)
    assert 0 < load(tmp_path / "last.pth")["step"] < 24
    run_whole([*command, "--resume", "auto"])
    for key in ("loss", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert rows(uninterrupted, key) == rows(tmp_path, key)
    a, b = load(uninterrupted / "last.pth"), load(tmp_path / "last.pth")
    for part in ("model_state_dict", "ema_state_dict"):
        assert same_tensors(a[part], b[part])
    for first, second in zip(a["optimizer_state_dicts"], b["optimizer_state_dicts"]):
        for index, state in first["state"].items():
            assert all(torch.equal(state[key], second["state"][index][key]) for key in state)


def test_a_time_budget_ends_the_run_and_its_schedule(call, images, tmp_path, capsys):
    start = time.monotonic()
    assert call(train, "--data_path", images, *SHORT, "--time_budget", "6s", "--output_dir", tmp_path) == 0
    assert time.monotonic() - start < 30 and "test accuracy" in capsys.readouterr().out
    rates = list(rows(tmp_path, "lr").values())
    assert len(rates) > 24 and rates[-1] < 0.1 * max(rates)


def test_early_stopping_ends_where_nothing_gets_better(call, images, tmp_path):
    options = (*SHORT, "--epochs", 50, "--patience", 2, "--lr", "1e-9")
    assert call(train, "--data_path", images, *options, "--output_dir", tmp_path) == 0
    accuracy = rows(tmp_path, "val_accuracy")
    assert len(accuracy) == 3 and load(tmp_path / "best_model.pth")["step"] == min(accuracy)


def test_two_processes_train_as_one(images, tmp_path):
    command = [*TWO_PROCESSES, *MODULE[1:]]
    options = ["--data_path", images, *SHORT, "--grad_accum", "2", "--epochs", "2", "--output_dir", tmp_path]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows(tmp_path, "loss")) == 4 and len(rows(tmp_path, "val_accuracy")) == 2


def test_a_loss_that_is_no_number_stops_the_run(refused, images, tmp_path):
    message = refused(
        train,
        "--data_path",
        images,
        *SHORT,
        "--optimizer",
        "adamw",
        "--lr",
        "1e30",
        "--warmup_fraction",
        0,
        "--output_dir",
        tmp_path,
    )
    assert "at step" in message and "--grad_clip" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_path", "absent"], "no data at absent"),
        (["--data_path", "empty"], "holds neither"),
        (["--data_path", "hollow"], "no folder of images for each class"),
        (["--patch_size", "5"], "no multiple of --patch_size"),
        (["--num_heads", "5"], "no multiple of --num_heads"),
        (["--time_budget", "soon"], "for example 10m"),
        (["--val_images", "500"], "only 200 training images"),
        (["--batch_size", "500"], "fewer than one step"),
        (["--mixup", "-1"], "need 0 or more"),
        (["--dropout", "2"], "number from 0 to below 1"),
        (["--data_path", "half"], "holds neither cifar10_test.npz"),
        (["--resume", "auto"], "there is no"),
        (["--weights", "absent.safetensors"], "no weights at"),
        (["--weights", "no_such_vit"], "timm has no model"),
        (["--weights", "resnet18"], "no plain vision transformer"),
    ],
)
def test_bad_input_is_one_line(refused, images, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "cifar10_train.npz").write_bytes((images / "cifar10_train.npz").read_bytes())
    (tmp_path / "hollow" / "train").mkdir(parents=True)
    given = ["--data_path", images, *TINY, "--val_images", 40, "--output_dir", "out", *options]
    assert message in refused(train, *given)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_network_or_other_classes_is_refused(refused, trained, images, class_folders, tmp_path):
    resume = ("--resume", trained / "last.pth", "--output_dir", tmp_path)
    assert "--embed_dim 64, not 32" in refused(train, "--data_path", images, *SHORT, "--embed_dim", 32, *resume)
    assert "classes differ: ant, bee, cow" in refused(train, "--data_path", class_folders, *SHORT, *resume)
