"""The comparison measures each by the same texts, and refuses what cannot be compared."""

import argparse
import json

import pytest
import torch

import compare
from baselines import autoregressive, masked
from corpus.chunks import open_built
from kit import device
from pretrained import load_pretrained
from tests.baselines.test_masked import SMALL
from tests.conftest import run_main

CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def rivals(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals")
    for name, module in (("autoregressive", autoregressive), ("masked", masked)):
        run_main(module, "--data_path", data, "--output_dir", folder / name, *SMALL, "--epochs", 2, "--num_samples", 16)
    return folder


def test_one_table_of_likelihood_gaps_and_texts(rivals, trained, trained_alone, data, call, tmp_path):
    given = (
        "--checkpoint", f"hybrid={trained / 'best_model.pth'}", f"network={trained_alone / 'best_model.pth'}", "--data_path", data,
        "--autoregressive", rivals / "autoregressive", "--masked", rivals / "masked" / "model", "--output_dir", tmp_path,
        "--num_samples", 24, "--num_texts", 20, "--likelihood_levels", 4, "--passes", 2, 6, "--churn", 2, "--guidance", 1, *CPU,
    )  # fmt: skip
    assert call(compare, *given) == 0
    found = json.loads((tmp_path / "compare.json").read_text())
    systems = {"hybrid", "network", "masked diffusion", "autoregressive"}
    assert found["likelihood"].keys() == systems | {"bigrams", "trigrams"}
    assert {name for name, row in found["likelihood"].items() if row["kind"] == "exact"} == {
        "bigrams", "trigrams", "autoregressive",
    }  # fmt: skip
    assert len({row["num_bytes"] for row in found["likelihood"].values()}) == 1
    nll = {name: row["nll"] for name, row in found["likelihood"].items()}
    assert nll["trigrams"] < nll["bigrams"] and nll["hybrid"] < min(nll["network"], 1.3 * nll["trigrams"])
    gaps = {name: row["accuracy"] for name, row in found["gaps"].items()}
    both = {"hybrid", "network", "masked diffusion", "trigrams"}
    assert gaps.keys() == {f"{n}, both sides" for n in both} | {f"{n}, left side" for n in both | {"autoregressive"}}
    assert gaps["trigrams, both sides"] > 0.2 and gaps["hybrid, both sides"] > gaps["trigrams, both sides"] - 0.1
    assert gaps["trigrams, left side"] < gaps["trigrams, both sides"] and gaps["hybrid, left side"] > 0.1
    rows = [(row["name"], row["passes"]) for row in found["generation"]]
    assert {name for name, passes in rows if passes is None} == {
        "test texts", "trigrams", "tokens by frequency", "autoregressive",
    }  # fmt: skip
    drawn = systems - {"autoregressive"} | {"hybrid, guided"}
    assert {row for row in rows if row[1]} == {(n, p) for n in drawn for p in (2, 6)}
    assert (tmp_path / "frontier.png").stat().st_size > 5000


@pytest.mark.parametrize("sampler, passes", [("euler", 6), ("heun", 6), ("heun", 5)])
def test_texts_take_as_many_passes_as_the_table_says(trained_alone, sampler, passes):
    """Heun takes two for every step but the last, an odd number in all."""
    runtime = device.start("cpu", 0, "fp32")
    args = argparse.Namespace(seed=0, batch_size=2, sampler=sampler, temperature=1.0, churn=0.0, noise_scale=1.0)
    loaded, counted = load_pretrained(trained_alone / "best_model.pth", runtime.device), []
    loaded.diffusion.network.register_forward_pre_hook(lambda *_: counted.append(1))
    found = compare.Setting(args, runtime, loaded, [], 9).draw(
        loaded, None, passes, torch.zeros(2, 9, dtype=torch.long)
    )
    assert found.shape == (2, 9) and len(counted) == (5 if sampler == "heun" else passes)


def test_mauve_is_against_as_many_texts_of_the_validation_split(
    rivals, trained, data, call, refused, monkeypatch, tmp_path
):
    compared = []
    mauve_against = compare.Judge.mauve_against

    def record(self, real):
        compared.extend(real)
        return mauve_against(self, real)

    monkeypatch.setattr(compare.Judge, "mauve_against", record)
    given = (
        "--checkpoint", f"hybrid={trained / 'best_model.pth'}", "--data_path", data, "--autoregressive", rivals / "autoregressive",
        "--output_dir", tmp_path, "--parts", "generation", "--num_samples", 8, "--num_texts", 20, "--passes", 2, "--mauve", *CPU,
    )  # fmt: skip
    assert call(compare, *given) == 0
    rows = json.loads((tmp_path / "compare.json").read_text())["generation"]
    assert [row["texts"] for row in rows] == [20] * len(rows)
    assert all(0 <= row["mauve"] < 1.01 for row in rows), [row["mauve"] for row in rows]
    val = open_built(data / "val")
    begins = {tuple(val[i].tolist()[:20]) for i in range(len(val))}
    assert len(compared) == 20 and all(tuple(text.tolist()[:20]) in begins for text in compared)
    assert "--mauve needs 99999 texts" in refused(compare, *given, "--num_texts", 99999)


def test_confident_tokens_come_first_and_what_stands_stays():
    class Network(torch.nn.Module):
        config = type("Config", (), {"mask_token_id": 4})

        def forward(self, input_ids, attention_mask):
            """Sure of the token after the one before, if that is known; else of little."""
            before = torch.roll(input_ids, 1, 1)
            logits = torch.zeros(*input_ids.shape, 5)
            logits.scatter_(-1, ((before + 1) % 4)[..., None], torch.where(before == 4, 0.1, 9.0)[..., None])
            return type("Output", (), {"logits": logits})

    tokens = (torch.arange(16) % 4)[None]
    missing = ((torch.arange(16) % 8) >= 4)[None]
    found = compare.fill_by_confidence(Network(), tokens, torch.ones_like(missing), missing, 4)
    assert torch.equal(found, tokens)


def test_from_the_left_side_nothing_is_seen_of_the_right():
    tokens, mask = torch.randint(1, 9, (3, 64)), torch.ones(3, 64, dtype=torch.bool)
    mask[2, 20:] = False
    missing = mask & (torch.arange(64) % 32 >= 12) & (torch.arange(64) % 32 < 20)
    seen = []

    def fill(tokens, mask, missing):
        seen.append((tokens * mask * ~missing, missing))
        return torch.full_like(tokens, 9)

    found = compare.fill_from_left(fill, tokens, mask, missing)
    assert torch.equal(found, torch.where(missing, 9, tokens))
    assert [given.shape[0] for given, _ in seen] == [3, 2]
    for (given, gap), end in zip(seen, (20, 52)):
        assert not given[:, end - 8 :].any() and torch.equal(gap.any(0).nonzero()[:, 0], torch.arange(end - 8, end))


def test_what_cannot_be_compared_is_refused(rivals, trained, data, refused, tmp_path):
    given = ("--autoregressive", rivals / "autoregressive", "--data_path", data, "--output_dir", tmp_path, *CPU)
    best = trained / "best_model.pth"
    assert "NAME=PATH" in refused(compare, "--checkpoint", best, *given)
    assert "--passes" in refused(compare, "--checkpoint", f"a={best}", *given, "--passes", 0)
    assert "b has another tokenizer" in refused(compare, "--checkpoint", f"a={best}", "b=english", *given)
    assert "holds no model of a baseline" in refused(compare, "--checkpoint", f"a={best}", *given, "--masked", data)
