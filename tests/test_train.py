"""Training learns, and goes on exactly where it was stopped, however it was stopped."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import train
from model import build_jit_model
from tests.conftest import TINY, TRAINED
from tests.runs import ROOT, load, rows, run_stopped, run_whole, same_tensors


def same_run(first, second):
    for key in ("loss", "val_loss"):
        assert rows(first, key) == rows(second, key)
    a, b = load(first / "last.pth"), load(second / "last.pth")
    for part in ("model_state_dict", "ema_state_dict"):
        assert same_tensors(a[part], b[part])
    for name, state in a["optimizer_state_dict"]["state"].items():
        assert all(torch.equal(state[k], b["optimizer_state_dict"]["state"][name][k]) for k in state)
    assert all(
        torch.equal(a["time_sampler"][k], b["time_sampler"][k]) for k in ("loss_sum", "weight", "density")
    )  # fitted by now


def test_a_short_run_beats_the_unigram_posterior(trained, data):
    """The untrained network is the unigram posterior, and so is its validation loss: a broken model stays there."""
    found = rows(trained, "val_loss")
    untrained = train_untrained(trained, data)
    assert min(found.values()) < 0.9 * untrained
    best = load(trained / "best_model.pth")
    assert best["best_val_loss"] == min(found.values()) and found[best["step"]] == min(found.values())


def train_untrained(trained, data):
    """Validation loss of step 0."""
    from diffusion import Diffusion
    from kit import device
    from kit.chunks import open_built
    from palette import Canvas, Palette
    from validation import Validation

    state = load(trained / "best_model.pth")
    network = build_jit_model("JiT-Ti/4", 8, vocab_size=300)
    network.head.bias.data.copy_(state["log_unigram"])
    diffusion = Diffusion(network, Palette.from_state(state["palette"]), Canvas(8, 4))
    validation = Validation(open_built(data / "val"), 256, 16, 64, device.start("cpu", precision="fp32"))
    return validation.measure(diffusion)["val_loss"]


def test_a_checkpoint_carries_all_it_needs(trained):
    state = load(trained / "last.pth")
    keys = {
        "model_state_dict",
        "ema_state_dict",
        "optimizer_state_dict",
        "config",
        "step",
        "epoch",
        "best_val_loss",
        "palette",
        "tokenizer",
    }
    assert keys <= state.keys() and state["step"] == 200
    assert json.loads((trained / "config.json").read_text()) == state["config"]
    assert any(trained.glob("checkpoint_epoch_*.pth"))


OPTIONS = (
    "--max_steps",
    "60",
    "--lr",
    "2e-3",
    "--save_steps",
    "11",
    "--val_interval",
    "15",
    "--log_interval",
    "4",
    "--dropout",
    "0.1",
    "--grad_accum",
    "2",
)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    command = [sys.executable, "train.py", "--data_path", data, *TINY, *OPTIONS, "--output_dir", output]
    run_whole(command)
    return output


@pytest.mark.parametrize(
    ("sign", "after"), [(signal.SIGKILL, 14), (signal.SIGKILL, 30), (signal.SIGTERM, 20), (signal.SIGINT, 20)]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(data, uninterrupted, tmp_path, sign, after):
    command = [sys.executable, "train.py", "--data_path", data, *TINY, *OPTIONS, "--output_dir", tmp_path]
    run_stopped(command, tmp_path / "log.jsonl", lambda log: log.count("\n") >= after, sign)
    assert 0 < load(tmp_path / "last.pth")["step"] < 60
    run_whole([*command, "--resume", "auto"])
    same_run(uninterrupted, tmp_path)


def test_resuming_a_finished_run_changes_nothing(call, data, trained):
    before = load(trained / "last.pth")
    log = rows(trained, "loss")
    assert call(train, "--data_path", data, *TINY, *TRAINED, "--output_dir", trained, "--resume", "auto") == 0
    after = load(trained / "last.pth")
    assert rows(trained, "loss") == log and after["step"] == 200
    assert all(
        torch.equal(before["model_state_dict"][k], after["model_state_dict"][k]) for k in before["model_state_dict"]
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--objective", "pixel"),
        ("--objective", "pixel", "--no-predict_clean"),
        ("--scan", "raster", "--palette", "digits"),
    ],
)
def test_every_objective_scan_and_palette_trains(call, data, tmp_path, options):
    options = (*options, "--time_sampling", "uniform", "--self_cond_prob", "0.5", "--max_steps", 30, "--lr", "2e-3")
    assert call(train, "--data_path", data, *TINY, *options, "--val_interval", 10, "--output_dir", tmp_path) == 0
    found = list(rows(tmp_path, "val_loss").values())
    assert len(found) == 3 and found[-1] < found[0]


def test_raw_text_trains_without_a_separate_build(call, text_folder, tmp_path):
    options = ("--vocab_size", 280, "--min_tokens", 16, "--max_steps", 3)
    assert call(train, "--data_path", text_folder, *TINY, *options, "--output_dir", tmp_path) == 0
    assert (tmp_path / "data" / "stats.json").exists() and len(rows(tmp_path, "loss")) == 3


def test_two_processes_train_as_one(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--data_path", data, *TINY, "--max_steps", "12", "--val_interval", "6", "--output_dir", tmp_path]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(rows(tmp_path, "loss")) == 12 and len(rows(tmp_path, "val_loss")) == 2
    again = subprocess.run(
        [*command, *options[:-3], "6", "--output_dir", tmp_path, "--resume", "auto"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert again.returncode == 0, again.stderr[-2000:]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(refused, data, tmp_path):
    message = refused(train, "--data_path", data, *TINY, "--max_steps", 200, "--lr", "1e12", "--warmup_steps", 0, "--grad_clip", "1e30",
                      "--save_steps", 1, "--output_dir", tmp_path)  # fmt: skip
    assert "at step" in message and "last.pth" in message and "--lr" in message
    weights = load(tmp_path / "last.pth")["model_state_dict"]
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_given_pixels_come_as_prefixes_gaps_and_runs():
    torch.manual_seed(0)
    count = torch.full((400,), 50)
    known = train.draw_known(count, 64, probability=1.0)
    assert not known[:, 50:].any() and (~known[:, :50]).any(1).all() and known.any(1).float().mean() > 0.9
    prefixes = [(row[:50].diff() != 0).sum() == 1 and row[0] for row in known.int()]
    assert 0.2 < sum(map(bool, prefixes)) / 400 < 0.6
    assert not train.draw_known(count, 64, probability=0.0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data_path", "absent"), "no data at absent"),
        (("--model", "JiT-Q/4"), "unknown model"),
        (("--img_size", "10"), "not a multiple"),
        (("--img_size", "4"), "raise --img_size"),
        (("--batch_size", "100000"), "lower --batch_size"),
        (("--batch_size", "0"), "need at least 1"),
        (("--lr", "-1"), "--lr"),
        (("--device", "cuda:77"), "CUDA"),
        (("--resume", "auto"), "there is no"),
        (("--resume", "absent.pth"), "there is no"),
        (("--val_path", "absent"), "no validation data"),
        (("--t_std", "0"), "--t_std"),
        (("--output_dir", "/proc/none"), "cannot create"),
    ],
)
def test_bad_input_is_one_line(refused, data, tmp_path, options, message):
    given = ["--data_path", data, *TINY, "--max_steps", 2, "--output_dir", tmp_path / "run", *options]
    assert message in refused(train, *given)
    assert not list(tmp_path.rglob("*.pth"))


def test_folders_without_usable_data_are_refused(refused, data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"PAR1")
    for folder, message in (("empty", "no .txt"), ("broken", "no readable Parquet")):
        assert message in refused(train, "--data_path", tmp_path / folder, *TINY, "--output_dir", tmp_path / "run")


def test_a_resume_with_another_model_and_a_second_fresh_start_are_refused(refused, data, trained):
    options = ("--data_path", data, *TINY, *TRAINED, "--output_dir", trained)
    assert "--scan block, not raster" in refused(train, *options, "--resume", "auto", "--scan", "raster")
    assert "already holds a run" in refused(train, *options)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half"])
def test_a_corrupt_checkpoint_is_refused(refused, data, tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    assert "x.pth" in refused(
        train, "--data_path", data, *TINY, "--output_dir", tmp_path / "run", "--resume", tmp_path / "x.pth"
    )
