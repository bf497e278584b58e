"""Every program that writes files, with a small input: what the tests of disks run."""

import json
import shutil
import sys

import pytest

from tests.conftest import READER, TINY
from tests.tokcom.conftest import SMALL
from tests.vit_cifar10.conftest import SHORT

NAMES = (
    "build_pretrain_data.py", "train.py", "train.py on raw text", "evaluate.py", "inference.py", "inference.py, a picture", "release.py",
    "compare.py", "baselines.autoregressive", "baselines.masked", "tokcom.train", "tokcom.evaluate", "tokcom.calm", "tokcom.inference", "vit_cifar10.train",
    "vit_cifar10.evaluate", "image_context.generate_train_data", "image_context.train_lora", "image_context.run_exp",
)  # fmt: skip
SHORTEST = ("--max_steps", "4", "--val_interval", "2", "--val_samples", "8", "--ngram", "0")
BASELINE = (
    "--hidden_size",
    "32",
    "--num_hidden_layers",
    "1",
    "--intermediate_size",
    "64",
    "--max_length",
    "64",
    "--epochs",
    "1",
)
CPU = ("--device", "cpu")


@pytest.fixture(scope="session")
def programs(request, tmp_path_factory):
    """name -> a function of the output folder that gives the command."""
    get = request.getfixturevalue
    data, texts, images, run = get("data"), get("text_folder"), get("images"), get("trained_alone")
    tokcom, vit, reader = get("tokcom_checkpoint"), get("vit_checkpoint"), get("reader")
    model = run / "best_model.pth"
    config = tmp_path_factory.mktemp("config") / "train.yaml"
    config.write_text(json.dumps(READER), encoding="utf-8")

    def module(name, *arguments):
        return lambda output: [sys.executable, "-m", name, *map(str, arguments), "--output_dir", str(output)]

    def script(name, *arguments):
        return lambda output: [sys.executable, name, *map(str, arguments), "--output_dir", str(output)]

    def file(name, flag, suffix, *arguments):
        return lambda output: [sys.executable, *name, *map(str, arguments), flag, str(output / f"made{suffix}")]

    def with_pairs(output):
        output.mkdir(exist_ok=True)
        if not (output / "train_data").exists():
            shutil.copytree(reader / "train_data", output / "train_data")
        return module("image_context.train_lora", "--config", config, *CPU)(output)

    return {
        "build_pretrain_data.py": script("build_pretrain_data.py", "--input", texts, "--vocab_size", 300, "--min_tokens", 16, "--max_tokens", 64),
        "train.py": script("train.py", "--data_path", data, *TINY, *SHORTEST),
        "train.py on raw text": script("train.py", "--data_path", texts, "--vocab_size", 300, "--min_tokens", 16, *TINY, *SHORTEST),
        "evaluate.py": script("evaluate.py", "--checkpoint", model, "--data_path", data, "--num_samples", 2, *CPU),
        "inference.py": script("inference.py", "--checkpoint", model, "--num_inference_steps", 2, *CPU),
        "inference.py, a picture": script("inference.py", "--checkpoint", model, "--mode", "encode", "--input_text", "the color of a token", *CPU),
        "release.py": file(["release.py"], "--output_file", ".safetensors", "--checkpoint", model),
        "compare.py": script("compare.py", "--checkpoint", f"network={model}", "--data_path", data, "--parts", "likelihood", "--num_samples", 2, *CPU),
        "baselines.autoregressive": module("baselines.autoregressive", "--data_path", data, *BASELINE, "--num_samples", 2, "--num_prompts", 2, *CPU),
        "baselines.masked": module("baselines.masked", "--data_path", data, *BASELINE, *CPU),
        "tokcom.train": module("tokcom.train", "--data_path", data, *SMALL, "--vae_epochs", 1, "--diffusion_epochs", 1),
        "tokcom.evaluate": module("tokcom.evaluate", "--checkpoint", tokcom, "--data_path", data, "--num_samples", 2, "--num_prompts", 2, *CPU),
        "tokcom.calm": module("tokcom.calm", "--vae_checkpoint", tokcom, "--data_path", data, *BASELINE, "--num_samples", 2, "--num_prompts", 2, *CPU),
        "tokcom.inference": file(
            ["-m", "tokcom.inference"], "--output_file", ".pt", "--checkpoint", tokcom, "--mode", "encode", "--input_text", "the color of a token", *CPU
        ),
        "vit_cifar10.train": module("vit_cifar10.train", "--data_path", images, *SHORT, "--epochs", 1),
        "vit_cifar10.evaluate": module("vit_cifar10.evaluate", "--checkpoint", vit, "--data_path", images, *CPU),
        "image_context.generate_train_data": module("image_context.generate_train_data", "--config", config),
        "image_context.train_lora": with_pairs,
        "image_context.run_exp": module("image_context.run_exp", "--config", config, "--lora_path", reader / "final", *CPU),
    }  # fmt: skip
