"""Small real data and small trained runs of all systems, made once and shared by the tests."""

import json
import os
import random
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import train
from corpus.builder import BuildSettings, build
from kit import errors
from tests.runs import ROOT, made_once

SHARED = Path(os.environ.get("TOKENCOLOR_TEST_DATA", ROOT.parent / "shared" / "data"))
SENTENCE = "the color of a token is a point in space and noise moves it until context brings the word back home"

# files of a few long tests, which would keep one worker alone at the end
LONG_FILES = (
    "tests/test_train.py", "tests/test_train_script.py", "tests/gpu_dry_run/", "tests/test_reference_documents.py",
    "tests/tokcom/test_train.py", "tests/baselines/test_autoregressive.py", "tests/vit_cifar10/test_train.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    def rank(item):
        return next((i for i, name in enumerate(LONG_FILES) if item.nodeid.startswith(name)), len(LONG_FILES))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def shared():
    """The folder of real texts, tokenizers and fonts; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no test data at {SHARED}: set TOKENCOLOR_TEST_DATA")
    return SHARED


@pytest.fixture
def call(monkeypatch):
    """Run an entry point in this process as the command line would; returns its exit code."""

    def run(module, *arguments) -> int:
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        try:
            errors.run(module.main, getattr(module, "LESS_MEMORY", errors.LESS_MEMORY), getattr(module, "KEYS", None))
        except SystemExit as leaving:
            return leaving.code or 0
        return 0

    return run


@pytest.fixture
def refused(call, capsys):
    """Assert that an entry point refuses: exit code 2 and one line, which is returned."""

    def check(module, *arguments) -> str:
        capsys.readouterr()
        code = call(module, *arguments)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert code == 2, f"exit code {code}"
        assert len(lines) == 1, lines
        return lines[0]

    return check


def sentences(seed: int, count: int) -> str:
    rng, words = random.Random(seed), SENTENCE.split()
    return "".join(" ".join(rng.choices(words, k=rng.randint(4, 12))).capitalize() + ".\n" for _ in range(count))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Twenty small text files."""

    def write(folder):
        for index in range(20):
            (folder / f"{index:02d}.txt").write_text(sentences(index, 120), encoding="utf-8")

    return made_once(tmp_path_factory, "texts", write)


@pytest.fixture(scope="session")
def data(text_folder, tmp_path_factory):
    """Chunks of 16 to 64 tokens, vocabulary 300."""
    settings = BuildSettings(input=[str(text_folder)], vocab_size=300, min_tokens=16, max_tokens=64, val_fraction=0.1)
    return made_once(tmp_path_factory, "data", lambda folder: build(settings, folder))


TINY = (
    "--model", "JiT-N/4", "--img_size", "8", "--token_dim", "32", "--batch_size", "16", "--device", "cpu", "--precision", "fp32",
)  # fmt: skip
TRAINED = ("--max_steps", "120", "--ngram_start", "0.4", "--lr", "3e-3", "--val_interval", "30", "--save_interval", "1")
ALONE = (*TRAINED, "--max_steps", "160", "--ngram", "0")


def run_main(module, *arguments) -> None:
    """Run an entry point in this process, outside any test."""
    previous = sys.argv
    sys.argv = [module.__file__, *map(str, arguments)]
    try:
        module.main()
    finally:
        sys.argv = previous


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """A run of 120 steps, most of them beside trigrams: enough to recover more of these texts than they do."""
    make = partial(run_main, train, "--data_path", data, *TINY, *TRAINED, "--output_dir")
    return made_once(tmp_path_factory, "run", make)


@pytest.fixture(scope="session")
def trained_alone(data, tmp_path_factory):
    """A run of 160 steps without n-grams: enough to beat the unigram posterior on these texts by far."""
    make = partial(run_main, train, "--data_path", data, *TINY, *ALONE, "--output_dir")
    return made_once(tmp_path_factory, "alone", make)


READER = {
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
    from tests.tokcom.conftest import SMALL
    from tokcom import train as tokcom_train

    short = ("--vae_epochs", "1", "--diffusion_epochs", "1")
    make = partial(run_main, tokcom_train, "--data_path", data, *SMALL, *short, "--output_dir")
    return made_once(tmp_path_factory, "tokcom", make) / "best_diffusion.pt"


@pytest.fixture(scope="session")
def vit_checkpoint(tmp_path_factory):
    from tests.vit_cifar10.conftest import SHORT, drawn, write_npz
    from vit_cifar10 import train as vit_train

    def make(output):
        for split, count, seed in (("train", 200, 1), ("test", 100, 2)):
            write_npz(output, split, *drawn(count, seed))
        torch.manual_seed(0)
        run_main(vit_train, "--data_path", output, *SHORT, "--epochs", "1", "--output_dir", output / "run")

    return made_once(tmp_path_factory, "vit", make) / "run" / "last.pth"


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """A run of train_lora whose model has hardly begun to learn."""
    from image_context import generate_train_data, train_lora

    def make(folder):
        config = folder / "train.yaml"
        config.write_text(json.dumps(READER), encoding="utf-8")
        run_main(generate_train_data, "--config", config, "--output_dir", folder)
        run_main(train_lora, "--config", config, "--output_dir", folder, "--device", "cpu")

    return made_once(tmp_path_factory, "reader", make)
