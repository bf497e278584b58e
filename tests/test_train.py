"""Training learns, and goes on exactly where it was stopped, however it was stopped."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from rapidfuzz.distance import Levenshtein

import settings
import train
from corpus.chunks import open_built
from corpus.ngram import ALL
from diffusion import Diffusion
from kit import device
from kit.errors import UserError
from model import build_jit_model
from palette import Layout
from pretrained import load_pretrained
from tests.conftest import ALONE, TINY, TRAINED
from tests.runs import ROOT, TWO_PROCESSES, load, rows, run_stopped, run_whole, same_tensors
from validation import Validation


def same_run(first, second):
    assert (first / "finished").exists() and (second / "finished").exists()
    for key in ("loss", "val_loss"):
        assert rows(first, key) == rows(second, key)
    a, b = load(first / "last.pth"), load(second / "last.pth")
    for part in ("model_state_dict", "ema_state_dict"):
        assert same_tensors(a[part], b[part])
    for one, other in zip(a["optimizer_state_dict"], b["optimizer_state_dict"], strict=True):
        for name, state in one["state"].items():
            assert all(torch.equal(state[k], other["state"][name][k]) for k in state)
    assert all(
        torch.equal(a["time_sampler"][k], b["time_sampler"][k]) for k in ("loss_sum", "weight", "density")
    )  # fitted by now


def test_a_short_run_beats_the_unigram_posterior(trained_alone, data):
    """The untrained network is the unigram posterior, and so is its validation loss: a broken model stays there."""
    found = rows(trained_alone, "val_loss")
    assert min(found.values()) < 0.9 * validation_loss_of_an_untrained_network(trained_alone, data, order=0)
    best = load(trained_alone / "best_model.pth")
    assert best["best_val_loss"] == min(found.values()) and found[best["step"]] == min(found.values())


def test_a_short_run_beside_trigrams_beats_them(trained, data):
    """So does the checkpoint: what was counted travels in it."""
    best = load(trained / "best_model.pth")["best_val_loss"]
    untrained = validation_loss_of_an_untrained_network(trained, data, order=3)
    assert best < untrained - 0.01
    assert untrained < 0.9 * validation_loss_of_an_untrained_network(trained, data, order=0)
    assert measure(load_pretrained(trained / "best_model.pth", torch.device("cpu")).diffusion, data) == pytest.approx(
        best
    )


def validation_loss_of_an_untrained_network(run, data, order):
    """The posterior of the n-grams of that order, or of the unigrams."""
    loaded = load_pretrained(run / "best_model.pth", torch.device("cpu"))
    network = build_jit_model("JiT-Ti/4", 8, vocab_size=300, ngram=order)
    log_unigram = loaded.ngram.log_unigram[ALL]
    if order:
        network.gate.bias.data = torch.tensor([0.0] * (order - 1) + [1.0])
    else:
        network.head.bias.data.copy_(log_unigram)
    ngram = loaded.ngram if order else None
    return measure(Diffusion(network, loaded.diffusion.palette, Layout(8, 4), "token", log_unigram, ngram), data)


def measure(diffusion, data):
    validation = Validation(open_built(data / "val"), 256, 16, 16, device.start("cpu", precision="fp32"))
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
        "time_sampler",
        "ngram",
    }
    assert keys <= state.keys() and state["step"] == 120
    assert json.loads((trained / "config.json").read_text()) == state["config"]
    assert any(trained.glob("checkpoint_epoch_*.pth"))


OPTIONS = (
    "--token_dim", "16", "--token_depth", "1", "--batch_size", "8", "--grad_accum", "2", "--dropout", "0.1", "--max_steps", "60",
    "--lr", "2e-3", "--save_steps", "11", "--val_interval", "15", "--val_samples", "32", "--log_interval", "4", "--optimizer", "muon",
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    command = [sys.executable, "train.py", "--data_path", data, *TINY, *OPTIONS, "--output_dir", output]
    run_whole(command)
    return output


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(((signal.SIGKILL, 14), (signal.SIGKILL, 30)), id="killed"),
        pytest.param(((signal.SIGTERM, 20), (signal.SIGINT, 40)), id="asked", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_twice_goes_on_bit_for_bit(data, uninterrupted, tmp_path, stops):
    command = [sys.executable, "train.py", "--data_path", data, *TINY, *OPTIONS, "--output_dir", tmp_path]
    steps = [0]
    for sign, after in stops:
        run_stopped(command, tmp_path / "log.jsonl", lambda log, after=after: log.count("\n") >= after, sign)
        steps.append(load(tmp_path / "last.pth")["step"])
        command = [*command, "--resume", "auto"] if len(steps) == 2 else command
    assert 0 < steps[1] < steps[2] < 60
    run_whole(command)
    same_run(uninterrupted, tmp_path)


def test_a_run_that_goes_on_in_another_folder_has_its_best_weights_there(
    call, data, trained_alone, tmp_path, monkeypatch
):
    """Also where no validation is as good as those of the folder it comes from."""
    options = ("--data_path", data, *TINY, *ALONE, "--output_dir", tmp_path, "--resume", trained_alone / "last.pth")
    measured = train.Validation.measure
    monkeypatch.setattr(train.Validation, "measure", lambda *given: {**measured(*given), "val_loss": 1e9})
    assert call(train, *options, "--max_steps", 162) == 0
    assert load(tmp_path / "best_model.pth")["step"] == 162


def test_resuming_a_finished_run_changes_nothing(call, data, trained):
    before = load(trained / "last.pth")
    log = rows(trained, "loss")
    assert call(train, "--data_path", data, *TINY, *TRAINED, "--output_dir", trained, "--resume", "auto") == 0
    after = load(trained / "last.pth")
    assert rows(trained, "loss") == log and after["step"] == 120
    assert all(
        torch.equal(before["model_state_dict"][k], after["model_state_dict"][k]) for k in before["model_state_dict"]
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--objective", "pixel"),
        ("--objective", "pixel", "--no-predict_clean"),
        ("--scan", "raster", "--palette", "digits", "--optimizer", "muon"),
        ("--ngram", "0", "--palette", "spread"),
    ],
)
def test_every_objective_scan_and_palette_trains(call, data, tmp_path, options):
    options = ("--time_sampling", "uniform", "--self_cond_prob", "0.5", "--max_steps", 20, "--lr", "2e-3", *options)
    assert call(train, "--data_path", data, *TINY, *options, "--val_interval", 10, "--output_dir", tmp_path) == 0
    found = list(rows(tmp_path, "val_loss").values())
    assert len(found) == 3 and found[-1] < found[0]


@pytest.mark.parametrize("order", [2, 3])
def test_the_network_learns_alone_until_the_ngrams_join(call, data, tmp_path, order):
    options = ("--ngram", order, "--ngram_start", "0.5", "--token_depth", 1, "--max_steps", 4, "--val_interval", 1)
    assert call(train, "--data_path", data, *TINY, *options, "--output_dir", tmp_path) == 0
    losses = rows(tmp_path, "val_loss")
    unigram = validation_loss_of_an_untrained_network(tmp_path, data, order=0)
    assert losses[1] == pytest.approx(unigram, rel=0.02) and losses[2] == pytest.approx(unigram, rel=0.02)
    assert losses[3] < 0.92 * unigram and losses[4] < 0.92 * unigram


def test_raw_text_trains_without_a_separate_build(call, text_folder, tmp_path):
    options = ("--vocab_size", 280, "--min_tokens", 16, "--max_steps", 3)
    assert call(train, "--data_path", text_folder, *TINY, *options, "--output_dir", tmp_path) == 0
    assert (tmp_path / "data" / "stats.json").exists() and len(rows(tmp_path, "loss")) == 3


@pytest.mark.parametrize(
    "kind", [pytest.param((), marks=pytest.mark.slow), ("--ngram", "0")], ids=["trigrams", "alone"]
)
def test_two_processes_train_as_one(data, tmp_path, kind):
    command = [*TWO_PROCESSES, "train.py"]
    command += [
        "--data_path",
        data,
        *TINY,
        *kind,
        "--self_cond_prob",
        "0.5",
        "--val_interval",
        "4",
        "--output_dir",
        tmp_path,
    ]
    runs = [("--max_steps", "8")] if kind else [("--max_steps", "8"), ("--max_steps", "10", "--resume", "auto")]
    for options in runs:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        steps = int(options[1])
        assert list(rows(tmp_path, "loss")) == list(range(1, steps + 1)) and steps in rows(tmp_path, "val_loss")
        assert load(tmp_path / "last.pth")["step"] == steps


def test_a_step_is_the_same_on_one_process_or_two_at_once_or_in_two_parts(call, data, tmp_path):
    options = (
        "--data_path",
        data,
        *TINY,
        "--ngram",
        0,
        "--self_cond_prob",
        0.5,
        "--infill_prob",
        0.5,
        "--max_steps",
        3,
    )
    half = ("--batch_size", 8)
    assert call(train, *options, "--output_dir", tmp_path / "one") == 0
    assert call(train, *options, *half, "--grad_accum", 2, "--output_dir", tmp_path / "parts") == 0
    command = [*TWO_PROCESSES, "train.py"]
    command += [*map(str, options), *map(str, half), "--output_dir", str(tmp_path / "two")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    expected = [rows(tmp_path / "one", key) for key in ("loss", "grad_norm")]
    for name in ("parts", "two"):
        for key, values in zip(("loss", "grad_norm"), expected):
            assert rows(tmp_path / name, key) == pytest.approx(values, rel=1e-4), (name, key)


def test_tokens_in_a_step_do_not_grow_with_the_devices(call, data, tmp_path):
    def split(devices, tokens, samples=None, batch_size=32):
        args = argparse.Namespace(tokens_per_step=tokens, batch_size=batch_size)
        runtime = device.Runtime(torch.device("cpu"), torch.float32, 0, devices)
        settings.split_step(args, 100.0, samples, runtime)
        return args.batch_size, args.grad_accum

    assert split(1, 6400) == (32, 2) and split(2, 6400) == (32, 1) and split(8, 6400) == (8, 1)
    assert split(1, 10) == (1, 1) and split(4, 12_900) == (17, 2)  # 136 chunks, where 129 would do
    assert split(2, 6400, samples=64) == (32, 1) and split(1, 1, samples=64, batch_size=20) == (16, 4)
    with pytest.raises(UserError, match="3 devices cannot share"):
        split(3, 6400, samples=64)
    options = ("--data_path", data, *TINY, "--tokens_per_step", 1500, "--max_steps", 2, "--ngram", 0)
    assert call(train, *options, "--output_dir", tmp_path) == 0
    saved = load(tmp_path / "last.pth")["config"]
    mean = open_built(data / "train").lengths.mean()
    assert saved["batch_size"] <= 16 and abs(saved["batch_size"] * saved["grad_accum"] * mean - 1500) < 3 * mean
    assert call(train, *options, "--max_steps", 3, "--resume", "auto", "--output_dir", tmp_path) == 0


@pytest.mark.slow
def test_a_run_whose_process_was_killed_goes_on_by_itself(data, tmp_path):
    """torchrun starts all processes again, and they continue from last.pth."""
    command = [*TWO_PROCESSES, "--max_restarts", "1"]
    command += ["train.py", "--data_path", str(data), *TINY, "--ngram", "0", "--save_steps", "5", "--max_steps", "60"]
    command += ["--log_interval", "1", "--output_dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not (tmp_path / "last.pth").exists():
        assert launcher.poll() is None
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[1]), signal.SIGKILL)
    output, errors = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, errors[-2000:]
    starts = [int(line.split("from step ")[1].split(";")[0]) for line in output.splitlines() if "from step " in line]
    assert starts[0] == 0 and 5 <= starts[1] < 60
    assert list(rows(tmp_path, "loss")) == list(range(1, 61)) and load(tmp_path / "last.pth")["step"] == 60


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(refused, data, tmp_path):
    message = refused(train, "--data_path", data, *TINY, "--max_steps", 200, "--lr", "1e12", "--warmup_steps", 0, "--grad_clip", "1e30",
                      "--save_steps", 1, "--output_dir", tmp_path)  # fmt: skip
    assert "at step" in message and "last.pth" in message and "--grad_clip" in message
    weights = load(tmp_path / "last.pth")["model_state_dict"]
    assert all(torch.isfinite(w).all() for w in weights.values())


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
        (("--val_path", "recipes"), "is no folder of chunks"),
        (("--t_std", "0"), "--t_std"),
        (("--objective", "pixel", "--ngram", "3"), "--objective token"),
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


def test_a_resume_with_another_model_and_a_second_fresh_start_are_refused(refused, data, trained, trained_alone):
    options = ("--data_path", data, *TINY, *TRAINED, "--output_dir", trained)
    assert "--scan block, not raster" in refused(train, *options, "--resume", "auto", "--scan", "raster")
    assert "--ngram 3, not 0" in refused(train, *options, "--resume", "auto", "--ngram", 0)
    assert "--ngram 3, not 2" in refused(train, *options, "--resume", "auto", "--ngram", 2)
    assert "--token_dim 32, not 64" in refused(train, *options, "--resume", "auto", "--token_dim", 64)
    assert "not 3.0; pass the same" in refused(train, *options, "--resume", "auto", "--t_mean", 3.0)
    assert "adamw, not muon; pass the same" in refused(train, *options, "--resume", "auto", "--optimizer", "muon")
    assert "grid, not order; pass the same" in refused(train, *options, "--resume", "auto", "--rope", "order")
    assert "16 samples a step" in refused(train, *options, "--resume", "auto", "--batch_size", 8)
    assert "already holds a run" in refused(train, *options)
    alone = ("--data_path", data, *TINY, *ALONE, "--output_dir", trained_alone, "--resume", "auto")
    assert "--ngram 0, not 3" in refused(train, *alone, "--ngram", 3)


def test_a_run_goes_on_from_what_another_network_had_learned(call, data, trained_alone, tmp_path):
    begun = (
        "--data_path",
        data,
        *TINY,
        "--max_steps",
        1,
        "--lr",
        "1e-9",
        "--init_from",
        trained_alone / "best_model.pth",
    )
    learned = load(trained_alone / "best_model.pth")["best_val_loss"]
    losses = {}
    for start in ("1", "0"):
        options = ("--ngram_start", start, "--self_cond_prob", 0, "--output_dir", tmp_path / start)
        assert call(train, *begun, *options) == 0
        losses[start] = rows(tmp_path / start, "val_loss")[1]
        assert load(tmp_path / start / "last.pth")["config"]["ngram"] == 3
    assert losses["1"] == pytest.approx(learned, rel=1e-4)
    for start, loss in losses.items():  # the checkpoint knows whether they had joined
        loaded = load_pretrained(tmp_path / start / "best_model.pth", torch.device("cpu"))
        assert measure(loaded.diffusion, data) == pytest.approx(loss, rel=1e-4)
    assert losses["0"] < learned - 0.05  # joined by what the n-grams know


def test_a_run_shows_from_its_first_moment_what_comes_back(trained):
    """Validated before the first step too; each time with a line of recovered text, which is right in the end."""
    shown = [json.loads(line) for line in (trained / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in shown] == list(rows(trained, "val_loss")) == [0, 30, 60, 90, 120]
    assert len({row["text"] for row in shown}) == len({row["nearest"] for row in shown}) == 1
    right = [Levenshtein.normalized_similarity(row["recovered"], row["text"]) for row in shown]
    assert "\n" not in shown[0]["text"] and right[-1] > max(right[0], 0.5)


def test_a_start_from_another_kind_of_network_is_refused(refused, data, trained, tmp_path):
    options = ("--data_path", data, *TINY, "--output_dir", tmp_path / "run", "--init_from")
    assert "best_model.pth" in refused(train, *options, trained / "best_model.pth", "--token_dim", 64)
    assert "best_model.pth" in refused(train, *options, trained / "best_model.pth", "--ngram", 0)
    assert "--rope grid, not order" in refused(train, *options, trained / "best_model.pth", "--rope", "order")
    assert "absent.pth" in refused(train, *options, tmp_path / "absent.pth")


def test_a_checkpoint_that_lacks_an_optimizer_of_its_run_is_refused(refused, data, trained, tmp_path):
    torch.save(load(trained / "last.pth") | {"optimizer_state_dict": []}, tmp_path / "last.pth")
    told = refused(train, "--data_path", data, *TINY, *TRAINED, "--output_dir", tmp_path, "--resume", "auto")
    assert "state of 0 optimizers, not of 1" in told


def test_a_checkpoint_from_before_the_ngrams_is_refused(refused, data, trained, tmp_path):
    old = load(trained / "last.pth")
    del old["ngram"], old["config"]["ngram"]
    torch.save(old, tmp_path / "old.pth")
    options = ("--data_path", data, *TINY, "--output_dir", tmp_path / "run", "--resume", tmp_path / "old.pth")
    assert "old.pth" in refused(train, *options)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half"])
def test_a_corrupt_checkpoint_is_refused(refused, data, tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    assert "x.pth" in refused(
        train, "--data_path", data, *TINY, "--output_dir", tmp_path / "run", "--resume", tmp_path / "x.pth"
    )


def test_the_best_model_is_not_gone_on_from(refused, data, trained, tmp_path):
    options = ("--data_path", data, *TINY, "--output_dir", tmp_path / "run", "--resume", trained / "best_model.pth")
    assert "continue from last.pth" in refused(train, *options)


def test_weights_of_another_palette_or_layout_are_not_begun_from(refused, data, trained_alone, tmp_path):
    begun = ("--data_path", data, *TINY, "--init_from", trained_alone / "best_model.pth", "--output_dir", tmp_path)
    assert "--palette context, not digits" in refused(train, *begun, "--palette", "digits")
    assert "--scan block, not raster" in refused(train, *begun, "--scan", "raster")
