"""The four trainers, each with a run of a minute at most that saves at every second step."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import READER, TINY
from tests.runs import read_log, run_whole
from tests.tokcom.conftest import SMALL
from tests.vit_cifar10.conftest import SHORT

TRAINERS = ("train.py", "tokcom.train", "vit_cifar10.train", "image_context.train_lora")
OFTEN = ("--save_steps", "2", "--log_interval", "1")


@dataclass
class Trainer:
    """`arguments`: without --output_dir; `tensors`: all weights of a last.pth, in one flat dict."""

    name: str
    arguments: list
    tensors: Callable[[dict], dict]
    config: Path  # of image_context.train_lora

    @property
    def command(self) -> list:
        """As after the interpreter, or after torchrun."""
        return [*([self.name] if self.name.endswith(".py") else ["-m", self.name]), *self.arguments]

    @property
    def module(self):
        return importlib.import_module(self.name.removesuffix(".py"))

    def prepare(self, folder: Path) -> None:
        """What has to lie in a run folder beforehand: the readers' training data."""
        if self.name == "image_context.train_lora":
            generate = [sys.executable, "-m", "image_context.generate_train_data", "--config", self.config]
            run_whole([*generate, "--output_dir", folder])


@pytest.fixture
def trainer(request, tmp_path) -> Trainer:
    """The one that a test's parameter names; "trainer" is to be parametrized with indirect=True."""
    get, name, config = request.getfixturevalue, request.param, tmp_path / "train.yaml"
    training = READER["training"] | {"max_steps": 40, "save_steps": 2, "log_interval": 1}
    config.write_text(json.dumps(READER | {"training": training}), encoding="utf-8")

    def averaged(state):
        return {**state["model_state_dict"], **{f"ema.{k}": v for k, v in state["ema_state_dict"].items()}}

    def of_both_stages(state):
        return {**state["vae_model_state_dict"], **state["denoised_model_state_dict"], **state["training"]["weights"]}

    arguments, tensors = {
        "train.py": lambda: (["--data_path", get("data"), *TINY, *OFTEN, "--max_steps", "90", "--val_interval", "15"], averaged),
        "tokcom.train": lambda: (
            ["--data_path", get("data"), *SMALL, *OFTEN, "--vae_epochs", "3", "--diffusion_epochs", "3"], of_both_stages
        ),
        "vit_cifar10.train": lambda: (["--data_path", get("images"), *SHORT, "--epochs", "12", *OFTEN], averaged),
        "image_context.train_lora": lambda: (["--config", config, "--device", "cpu"], lambda state: state["weights"]),
    }[name]()  # fmt: skip
    return Trainer(name, arguments, tensors, config)


def logged(folder: Path) -> list[int]:
    """Steps with a training loss in a run's log, in its order."""
    return [row["step"] for row in read_log(folder / "log.jsonl") if "loss" in row or "train_loss" in row]
