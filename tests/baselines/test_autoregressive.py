"""The autoregressive baseline learns, is scored, and refuses what it cannot use."""

import json
import math

import torch

from baselines import autoregressive

SMALL = (
    "--hidden_size", "32", "--num_hidden_layers", "2", "--intermediate_size", "64", "--max_length", "64", "--batch_size", "8",
    "--lr", "5e-3", "--device", "cpu", "--precision", "fp32", "--num_prompts", "40",
)  # fmt: skip


def test_it_learns_and_reports(data, call, tmp_path):
    assert call(autoregressive, "--data_path", data, "--output_dir", tmp_path, *SMALL, "--epochs", 2) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nll"] < 0.75 * math.log(300)
    assert 0 <= report["brier_lm"] < 1 and report["calls_per_token"] == 1
    assert report["flops_per_token_and_call"] > 2 * (report["parameters"] - 2 * 301 * 32)


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
    model = autoregressive.build(args, 50)
    runtime = autoregressive.device.start("cpu", 0, "fp32")
    short, long = torch.randint(0, 50, (5,)), torch.randint(0, 50, (12,))
    together = autoregressive.nll(model, [short, long], runtime)
    assert len(together) == 17
    assert torch.allclose(together[:5], autoregressive.nll(model, [short], runtime), atol=1e-5)


def test_what_cannot_be_used_is_refused(refused, data, tmp_path):
    assert "does not give" in refused(
        autoregressive, "--data_path", data, "--output_dir", tmp_path, *SMALL, "--num_attention_heads", 5
    )
    assert "--epochs 0" in refused(autoregressive, "--data_path", data, "--output_dir", tmp_path, *SMALL, "--epochs", 0)
