"""A small trained TokCom, made once."""

from functools import partial

import pytest

from tests.conftest import run_main
from tests.runs import made_once
from tokcom import train

SMALL = (
    "--preset", "tiny", "--hidden_size", "48", "--num_hidden_layers", "2", "--num_attention_heads", "2",
    "--num_key_value_heads", "1", "--intermediate_size", "96", "--latent_dim", "24", "--max_length", "64",
    "--batch_size", "16", "--vocab_size", "300", "--device", "cpu", "--precision", "fp32", "--num_sample_steps", "4",
    "--ngram", "0",
)  # fmt: skip
LEARNING = (
    "--ngram", "3", "--ngram_start", "0.8", "--vae_epochs", "6", "--diffusion_epochs", "6", "--vae_lr", "5e-3", "--diffusion_lr", "5e-3",
)  # fmt: skip


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """Both stages on the small texts: enough for chunks to come back."""
    make = partial(run_main, train, "--data_path", data, *SMALL, *LEARNING, "--output_dir")
    return made_once(tmp_path_factory, "tokcom_trained", make)
