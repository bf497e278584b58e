"""The autoregressive baseline learns, is scored, and refuses what it cannot use."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from baselines import autoregressive
from corpus.chunks import open_built, reported
from tests.runs import rows

SMALL = (
    "--hidden_size", "32", "--num_hidden_layers", "2", "--intermediate_size", "64", "--max_length", "64", "--batch_size", "8",
    "--lr", "5e-3", "--device", "cpu", "--precision", "fp32", "--num_prompts", "40",
)  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_and_reports(optimizer, data, call, refused, tmp_path):
    trained = ("--data_path", data, "--output_dir", tmp_path, *SMALL, "--epochs", 2, "--optimizer", optimizer)
    assert call(autoregressive, *trained) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nll"] < 0.75 * math.log(300)
    assert 0 <= report["brier_lm"] < 1 and report["nfe_per_token"] == 1
    assert report["flops_per_token_and_pass"] > 2 * (report["parameters"] - 2 * 301 * 32)

    model = autoregressive.LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    runtime = autoregressive.device.start("cpu", 0, "fp32")
    val, test = (open_built(data / split) for split in ("val", "test"))
    loss = {}
    for chunks in (val, test):
        texts = [chunks[i] for i in reported(chunks, 128)]
        loss[chunks] = autoregressive.nats_per_sequence(model, texts, runtime).sum() / sum(map(len, texts))
    assert min(rows(tmp_path, "val_loss").values()) == pytest.approx(loss[val], rel=1e-5)
    assert report["nll"] == pytest.approx(loss[test], rel=1e-5) and report["num_tokens"] == sum(map(len, texts))
    assert report["read_from"] == str(data / "test") and report["nll"] != pytest.approx(loss[val], rel=1e-5)
    assert "holds a finished run" in refused(autoregressive, *trained)


def test_raw_text_is_split_on_the_spot(call, tmp_path):
    text = tmp_path / "cubes.txt"
    text.write_text("".join(f"{number**3} is the cube of {number}.\n" for number in range(3000)))
    assert call(autoregressive, "--data_path", text, "--output_dir", tmp_path, *SMALL, "--max_steps", 7) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["read_from"] == str(tmp_path / "data" / "test") and report["steps"] == 7


def test_likelihood_counts_real_tokens_alone():
    args = type(
        "Args",
        (),
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "max_length": 16,
        },
    )
    torch.manual_seed(0)
    model = autoregressive.build(args, SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=50)))
    runtime = autoregressive.device.start("cpu", 0, "fp32")
    short, long = torch.randint(0, 50, (5,)), torch.randint(0, 50, (12,))
    together = autoregressive.nll(model, [short, long], runtime)
    assert len(together) == 17
    assert torch.allclose(together[:5], autoregressive.nll(model, [short], runtime), atol=1e-5)


def test_what_cannot_be_used_is_refused(refused, data, tmp_path):
    assert "does not give" in refused(
        autoregressive, "--data_path", data, "--output_dir", tmp_path, *SMALL, "--num_attention_heads", 5
    )
    both = ("--max_steps", 3, "--time_budget", "1m")
    assert "--max_steps 3" in refused(autoregressive, "--data_path", data, "--output_dir", tmp_path, *SMALL, *both)
    assert "--epochs 0" in refused(autoregressive, "--data_path", data, "--output_dir", tmp_path, *SMALL, "--epochs", 0)
