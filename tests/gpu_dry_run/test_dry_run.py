"""What a GPU would be asked to do, without one: no tensor on the wrong device, no wait inside a step, no more traffic than recorded."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

import train
from tests.conftest import TINY, run_main
from tests.runs import ROOT, load
from tests.tokcom.conftest import SMALL
from tokcom import train as tokcom_train
from tokcom.config import PRESETS, ModelArgs, from_dict, to_saved
from tokcom.model import TokComVAE

pytestmark = [
    pytest.mark.dry_run,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the stub of a GPU's guard needs g++"),
]


def dry_run(program, *arguments):
    """What reached the pretended device while `program` ran."""
    command = [sys.executable, "-m", "tests.gpu_dry_run.run", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """A checkpoint of the pixels' system that has learned nothing."""
    output = tmp_path_factory.mktemp("checkpoint")
    run_main(train, "--data_path", data, *TINY, "--max_steps", 1, "--ngram", 0, "--output_dir", output)
    return output / "best_model.pth"


@pytest.mark.parametrize("self_conditioning, megabytes, launches", [(0, 2450, 1570), (1, 3200, 1930)])
def test_a_step_waits_for_nothing(data, tmp_path, self_conditioning, megabytes, launches):
    """The bounds are what was recorded, and a tenth more."""
    found = dry_run(
        "train", "--data_path", data, *TINY, "--device", "cuda", "--ngram", 0, "--max_steps", 4, "--val_interval", 100,
        "--log_interval", 100, "--batch_size", 256, "--self_cond_prob", self_conditioning, "--output_dir", tmp_path,
    )  # fmt: skip
    assert len(found["steps"]) == 3
    for step in found["steps"]:
        assert not step["waits"]
        assert step["bytes"] < megabytes * 1e6 and step["launches"] < launches


def test_a_step_of_tokcom_waits_for_nothing(data, tmp_path):
    options = (
        "--data_path",
        data,
        *SMALL,
        "--batch_size",
        80,
        "--vae_epochs",
        1,
        "--diffusion_epochs",
        1,
        "--log_interval",
        100,
    )
    run_main(tokcom_train, *options, "--stage", "vae", "--output_dir", tmp_path / "vae")
    options = (*options, "--device", "cuda", "--self_cond_prob", 1)
    stages = [
        dry_run("tokcom.train", *options, "--stage", "vae", "--output_dir", tmp_path / "again"),
        dry_run(
            "tokcom.train", *options, "--stage", "diffusion", "--vae_checkpoint", tmp_path / "vae" / "best_vae.pt",
            "--output_dir", tmp_path / "diffusion",
        ),
    ]  # fmt: skip
    for found in stages:
        assert len(found["steps"]) > 5 and not any(step["waits"] for step in found["steps"])


@pytest.mark.parametrize("preset", ["base", "v5.2"])
def test_steps_of_the_large_presets_wait_for_nothing(data, tokcom_checkpoint, tmp_path, preset):
    sizes = {"max_length": 64, "vocab_size": 300}
    options = ("--preset", preset, "--data_path", data, "--batch_size", 200, "--log_interval", 100, "--device", "cuda")
    options += ("--max_length", 64, "--vae_epochs", 1, "--diffusion_epochs", 1, "--num_sample_steps", 2)
    untrained = tmp_path / "untrained.pt"
    model_args = ModelArgs(**{**asdict(from_dict(ModelArgs, PRESETS[preset])), **sizes})
    state = load(tokcom_checkpoint.parent / "best_vae.pt")
    weights = TokComVAE(model_args).state_dict()
    torch.save({**state, "model_args": to_saved(model_args), "vae_model_state_dict": weights}, untrained)
    for stage, given in (("vae", ()), ("diffusion", ("--vae_checkpoint", untrained))):
        found = dry_run("tokcom.train", *options, "--stage", stage, *given, "--output_dir", tmp_path / stage)
        assert len(found["steps"]) > 1 and not any(step["waits"] for step in found["steps"])


def test_evaluation_and_sampling_run(data, checkpoint, tmp_path):
    options = ("--checkpoint", checkpoint, "--device", "cuda", "--num_inference_steps", 2, "--output_dir", tmp_path)
    sampled = dry_run("inference", *options, "--num_samples", 1)
    evaluated = dry_run(
        "evaluate",
        *options,
        "--data_path",
        data,
        "--num_samples",
        4,
        "--t",
        0.8,
        "--passes",
        1,
        "--likelihood_levels",
        2,
    )
    assert (tmp_path / "generate.json").exists() and (tmp_path / "report.json").exists()
    assert 0 < sampled["total"]["launches"] < evaluated["total"]["launches"]  # both computed on the device
