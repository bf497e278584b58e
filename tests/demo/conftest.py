"""Small checkpoints of all four systems."""

import json

import pytest
import torch
import yaml

from image_context import generate_train_data, train_lora
from tests.conftest import run_main
from tests.tokcom.conftest import SMALL
from tests.vit_cifar10.conftest import SHORT, drawn, write_npz
from tokcom import train as tokcom_train
from vit_cifar10 import train as vit_train

CONFIG = {
    "output_dir": "unused",
    "model": {"name": "tiny", "vocab_size": 504},
    "data": {
        "tasks": ["random"], "lengths": [12],
        "codecs": {"codebook": {"codec": "codebook", "options": {
            "payload": "tokens", "tokenizer": "model", "colors": 8, "module": 7, "symbols_per_block": 3, "frame": "none",
        }}},
    },
    "generation": {"num_samples_per_codec": 8},
    "training": {"max_steps": 2, "batch_size": 4, "gradient_accumulation_steps": 1},
}  # fmt: skip


@pytest.fixture(scope="session")
def tokcom_checkpoint(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokcom")
    run_main(
        tokcom_train,
        "--data_path",
        data,
        *SMALL,
        "--vae_epochs",
        "1",
        "--diffusion_epochs",
        "1",
        "--output_dir",
        output,
    )
    return output / "best_diffusion.pt"


@pytest.fixture(scope="session")
def vit_checkpoint(tmp_path_factory):
    images, output = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("vit")
    for split, count, seed in (("train", 200, 1), ("test", 100, 2)):
        write_npz(images, split, *drawn(count, seed))
    torch.manual_seed(0)
    run_main(vit_train, "--data_path", images, *SHORT, "--epochs", "1", "--output_dir", output)
    return output / "last.pth"


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """A run of train_lora whose model has hardly begun to learn."""
    folder = tmp_path_factory.mktemp("reader")
    config = folder / "train.yaml"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(CONFIG))), encoding="utf-8")
    run_main(generate_train_data, "--config", config, "--output_dir", folder)
    run_main(train_lora, "--config", config, "--output_dir", folder, "--device", "cpu")
    return folder
