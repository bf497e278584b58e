"""Both stages learn, and go on exactly where they were stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from corpus.chunks import open_built
from kit.device import Runtime
from tests.runs import ROOT, TWO_PROCESSES, load, rows, run_stopped, run_whole, same_tensors
from tests.tokcom.conftest import SMALL
from tokcom import inference, train
from tokcom.config import ModelArgs, TrainConfig
from tokcom.dataset import chosen_batches
from tokcom.model import TokComVAE
from tokcom.stages import VAEStage

MODULE = [sys.executable, "-m", "tokcom.train"]


def test_both_stages_learn(trained):
    vae = list(rows(trained, "vae/val_accuracy").values())
    assert vae[0] < 0.5 and vae[-1] > 0.95
    losses = list(rows(trained, "diffusion/val_loss").values())
    assert losses[-1] < 0.96 * losses[0]
    for name in ("vae/batch_loss", "diffusion/batch_ce_loss", "diffusion/batch_mse_loss"):
        assert len(rows(trained, name)) > 10
    assert {p.name for p in trained.iterdir()} >= {
        "best_vae.pt", "best_diffusion.pt", "last.pth", "config.json", "env.json", "log.jsonl", "samples.jsonl",
    }  # fmt: skip


def test_checkpoints_hold_what_the_seed_says(trained):
    keys = {"epoch", "stage", "val_loss", "model_args", "config", "vae_model_state_dict", "denoised_model_state_dict"}
    for name in ("vae", "diffusion"):
        state = load(trained / f"best_{name}.pt")
        assert keys <= state.keys() and state["stage"] == name
        assert state["model_args"]["vocab_size"] == state["model_args"]["mask_token_id"] == 300
        assert state["val_loss"] == min(rows(trained, f"{name}/val_loss").values())


def test_latents_are_normalized_over_the_training_set(trained):
    state = load(trained / "best_diffusion.pt")["vae_model_state_dict"]
    assert (state["latent_std"] != 1).all() and (state["latent_std"] > 0).all()


OPTIONS = ("--ngram", "3", "--vae_epochs", "2", "--diffusion_epochs", "2", "--save_steps", "4", "--log_interval", "3")


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    run_whole([*MODULE, "--data_path", data, *SMALL, *OPTIONS, "--output_dir", output])
    return output


@pytest.mark.parametrize(
    ("sign", "stage", "after"),
    [
        (signal.SIGKILL, "vae", 12),
        pytest.param(signal.SIGKILL, "diffusion", 12, marks=pytest.mark.slow),
        (signal.SIGTERM, "diffusion", 20),
    ],
)
def test_a_stage_that_was_stopped_goes_on_bit_for_bit(data, uninterrupted, tmp_path, sign, stage, after):
    command = [*MODULE, "--data_path", data, *SMALL, *OPTIONS, "--output_dir", tmp_path]
    run_stopped(command, tmp_path / "log.jsonl", lambda log: log.count(f"{stage}/batch") >= after, sign)
    assert load(tmp_path / "last.pth")["stage"] == stage
    run_whole([*command, "--resume", "auto"])
    for key in ("loss", "vae/val_loss", "diffusion/val_loss", "diffusion/batch_mse_loss"):
        assert rows(uninterrupted, key) == rows(tmp_path, key)
    a, b = load(uninterrupted / "last.pth"), load(tmp_path / "last.pth")
    for part in ("vae_model_state_dict", "denoised_model_state_dict"):
        assert same_tensors(a[part], b[part])
    for part in ("weights", "ema"):
        assert same_tensors(a["training"][part], b["training"][part])


def test_stage_two_alone_starts_from_a_vae(call, refused, data, trained, tmp_path):
    options = (*SMALL, "--stage", "diffusion", "--diffusion_epochs", 1)
    assert "no VAE at" in refused(train, "--data_path", data, *options, "--output_dir", tmp_path / "x")
    options = (*options, "--vae_checkpoint", trained / "best_vae.pt", "--output_dir", tmp_path)
    assert call(train, "--data_path", data, *options) == 0
    first, second = (load(f / "best_diffusion.pt")["vae_model_state_dict"] for f in (trained, tmp_path))
    assert same_tensors(first, second)


def test_stage_two_follows_stage_one_in_its_folder(call, refused, data, tmp_path):
    common = ("--data_path", data, *SMALL, "--vae_epochs", 1, "--diffusion_epochs", 1, "--output_dir", tmp_path)
    assert call(train, *common, "--stage", "vae") == 0
    steps = load(tmp_path / "last.pth")["training"]["step"]
    assert "is of stage vae" in refused(train, *common, "--stage", "diffusion", "--resume", "auto")
    assert call(train, *common, "--stage", "diffusion") == 0
    logged = list(rows(tmp_path, "loss"))
    assert max(logged) == 2 * steps and logged == sorted(set(logged))
    assert "is of stage diffusion" in refused(train, *common, "--stage", "vae", "--resume", "auto")


def test_a_run_goes_on_in_another_folder(call, data, tmp_path, capsys):
    common = ("--data_path", data, *SMALL, "--vae_epochs", 1, "--diffusion_epochs", 1)
    assert call(train, *common, "--stage", "vae", "--output_dir", tmp_path / "a") == 0
    again = (*common, "--vae_epochs", 2, "--output_dir", tmp_path / "b", "--resume", tmp_path / "a" / "last.pth")
    assert call(train, *again) == 0
    assert "changed since" in capsys.readouterr().out and (tmp_path / "b" / "best_diffusion.pt").is_file()


def test_two_processes_build_the_data_once_and_train_as_one(text_folder, tmp_path):
    command = [*TWO_PROCESSES, *MODULE[1:]]
    command += [
        "--data_path",
        text_folder,
        *SMALL,
        "--vae_epochs",
        "1",
        "--diffusion_epochs",
        "1",
        "--output_dir",
        tmp_path,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows(tmp_path, "diffusion/val_loss") and load(tmp_path / "best_diffusion.pt")["times"]["weight"].sum() > 0


def test_a_time_budget_covers_both_stages(call, data, tmp_path):
    start = time.monotonic()
    assert call(train, "--data_path", data, *SMALL, "--time_budget", "10s", "--output_dir", tmp_path) == 0
    assert time.monotonic() - start < 40
    assert rows(tmp_path, "vae/val_loss") and rows(tmp_path, "diffusion/val_loss")


def test_raw_text_and_local_datasets_train_without_a_separate_build(call, text_folder, tmp_path):
    short = ("--vae_epochs", 1, "--diffusion_epochs", 1)
    assert (
        call(train, "--data_path", text_folder, *SMALL, *short, "--stage", "vae", "--output_dir", tmp_path / "a") == 0
    )
    assert (
        call(train, "--dataset_name", text_folder, *SMALL, *short, "--stage", "vae", "--output_dir", tmp_path / "b")
        == 0
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data_path", "absent"], "no data at absent"),
        (["--chunk_size", "0"], "need 1 to 16"),
        (["--max_length", "30"], "no multiple of --chunk_size"),
        (["--max_length", "32"], "rebuild the data with --max_tokens 32"),
        (["--batch_size", "5000"], "lower --batch_size"),
        (["--vae_lr", "0"], "positive number"),
        (["--token_dropout", "2"], "number from 0 to 1"),
        (["--time_budget", "soon"], "for example 10m"),
        (["--resume", "auto"], "there is no"),
        (["--tokenizer_path", "nowhere.json"], "no tokenizer.json at nowhere.json"),
    ],
)
def test_bad_input_is_one_line(refused, data, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(train, "--data_path", data, *SMALL, "--output_dir", "out", *options)


def test_a_checkpoint_of_another_size_is_refused(refused, data, trained, tmp_path):
    given = ("--data_path", data, *SMALL, "--ngram", 3, "--output_dir", trained, "--resume", "auto")
    assert "--latent_dim 24, not 12" in refused(train, *given, "--latent_dim", 12)
    assert "--noise_std 1.0, not 0.5" in refused(train, *given, "--noise_std", 0.5)


def test_a_checkpoint_of_an_older_version_is_refused_and_lends_its_vae(call, refused, data, trained, tmp_path):
    given = ("--data_path", data, *SMALL, "--ngram", 3, "--output_dir", tmp_path)
    for name in ("last.pth", "best_diffusion.pt"):
        saved = load(trained / name)
        del saved["version"]
        torch.save(saved, tmp_path / name)
    assert "reads vectors otherwise" in refused(train, *given, "--resume", "auto")
    older = tmp_path / "best_diffusion.pt"
    assert "reads vectors otherwise" in refused(inference, "--checkpoint", older, "--mode", "generate")
    (tmp_path / "last.pth").unlink()
    assert call(train, *given, "--stage", "diffusion", "--diffusion_epochs", 1, "--vae_checkpoint", older) == 0


def test_stage_one_also_sees_chunks_of_random_tokens(data):
    """As many as the setting says, on real places only by their mask, and none when it says none."""
    chunks = open_built(data / "train")
    batch = next(iter(chosen_batches(chunks, range(64), 64, 4)))
    seen = []

    def module(tokens, mask):
        seen.append(tokens)
        return torch.zeros(()), {"ce": torch.zeros(()), "kl": torch.zeros(())}

    args = ModelArgs(vocab_size=300, mask_token_id=300, hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    for fraction in (0.0, 0.25, 1.0):
        config = TrainConfig(random_chunks=fraction)
        VAEStage(TokComVAE(args), config, Runtime(torch.device("cpu"), torch.float32, 0, 1)).step(
            module, batch, False, 0.0
        )
    kept, some, all_random = ((tokens == seen[0]).all(1).float().mean() for tokens in seen)
    assert kept == 1 and 0.7 < some < 0.8 and all_random < 0.01
    assert seen[2].min() < 5 and seen[2].max() > 294
