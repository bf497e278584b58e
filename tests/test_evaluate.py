"""The report counts what it says it counts."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train
from corpus.chunks import open_built, reported
from tests.conftest import TINY, run_main, sentences

CPU = ("--device", "cpu", "--precision", "fp32", "--num_inference_steps", 4)
CLASSICAL = ("nearest", "unigram", "bigram", "trigram")


@pytest.fixture(scope="module")
def report(trained, data, tmp_path_factory):
    output = tmp_path_factory.mktemp("report")
    run_main(evaluate, "--checkpoint", trained / "best_model.pth", "--data_path", data, "--output_dir", output, *CPU)
    return output


@pytest.fixture(scope="module")
def found(report):
    return json.loads((report / "report.json").read_text())


def test_the_report_has_the_promised_keys(found):
    keys = {
        "checkpoint", "data", "num_chunks", "num_tokens", "vocab_size", "passes", "recovery", "at_nearest_50", "sampled",
        "exact_match", "char_error_rate", "throughput", "training", "ngram_bits", "environment",
    }  # fmt: skip
    assert keys <= found.keys() and found["vocab_size"] == 300 and found["training"]["ngram"] == 3
    for row in [*found["recovery"], found["at_nearest_50"]]:
        columns = {
            "t",
            "sigma",
            "model",
            *CLASSICAL,
            "nll_bits",
            "unigram_bits",
            "bigram_bits",
            "trigram_bits",
            "passes",
        }
        assert columns <= row.keys() and row["sigma"] == pytest.approx((1 - row["t"]) / row["t"])
        assert row["model"] == pytest.approx(row["passes"][str(found["passes"])]) and row["passes"].keys() >= {
            "1",
            "2",
            "4",
        }


def test_the_report_is_made_on_the_test_split(found, data):
    test = open_built(data / "test")
    assert (found["num_chunks"], found["num_tokens"]) == (len(test), int(test.lengths.sum()))


def test_recovery_falls_with_noise_and_the_model_beats_what_needs_no_model(found):
    for name in ("model", *CLASSICAL):
        shares = [row[name] for row in found["recovery"]]
        assert all(a >= b - 0.03 for a, b in itertools.pairwise(shares)) and shares[0] > (
            0.8 if name == "nearest" else 0.95
        )
        assert all(row[f"{name}_ci"][0] <= row[name] <= row[f"{name}_ci"][1] for row in found["recovery"])
    half = found["at_nearest_50"]
    assert abs(half["nearest"] - 0.5) < 0.03
    assert half["model"] > half["unigram"] + 0.02 > half["nearest"] + 0.02
    for name in ("nll_bits", "unigram_bits", "bigram_bits", "trigram_bits"):
        bits = [row[name] for row in found["recovery"]]
        assert bits == sorted(bits) and bits[-1] < np.log2(300)


def test_longer_histories_recover_more_and_the_model_most(found):
    """Where the unigrams recover half: with less noise these texts are easy, with more nobody knows."""
    row = min(found["recovery"], key=lambda row: abs(row["unigram"] - 0.5))
    assert row["trigram"] > row["bigram"] + 0.005 > row["unigram"] + 0.1
    assert row["model"] > row["bigram"] + 0.005 and row["model"] > row["trigram"] - 0.01
    assert max(row["nll_bits"], row["trigram_bits"]) < row["bigram_bits"] < 0.5 * row["unigram_bits"]
    easier = [row for row in found["recovery"] if row["unigram"] > 0.6]
    model, trigram = (sum(row[name] for row in easier) for name in ("nll_bits", "trigram_bits"))
    assert model < 0.9 * trigram


def test_full_sampling_is_measured_where_nearest_gets_half_by_two_samplers(found):
    rows, half = {row["sampler"]: row for row in found["sampled"]}, found["at_nearest_50"]["sigma"]
    assert list(rows) == ["posterior", "euler"] and all(row["sigma"] == half for row in rows.values())
    assert all({"accuracy", "exact_match", "char_error_rate"} <= row.keys() for row in rows.values())
    middle = rows["posterior"]
    assert (found["exact_match"], found["char_error_rate"]) == (middle["exact_match"], middle["char_error_rate"])
    assert middle["accuracy"] == pytest.approx(found["at_nearest_50"]["passes"]["4"], abs=0.005)  # 4 passes as well
    assert middle["accuracy"] > rows["euler"]["accuracy"] - 0.01


def test_the_ngrams_alone_are_reported_as_language_models(found):
    assert 1 < found["ngram_bits"]["3"] < found["ngram_bits"]["2"] < np.log2(300)


def test_decoders_are_counted_by_chunk_and_without_padding(trained, data):
    """By hand: the unigram, bigram and trigram columns at one noise level, for a few chunks one by one."""
    args = evaluate_args(trained, data)
    runtime = evaluate.device.start("cpu", precision="fp32")
    loaded = evaluate.load_pretrained(args.checkpoint, runtime.device)
    chunks = open_built(data / "test")
    held_out = evaluate.HeldOut(chunks, loaded, args, runtime)
    assert sorted(map(len, held_out.chunks)) == sorted(chunks.lengths[reported(chunks, args.num_samples)])
    with torch.no_grad():
        row = held_out.recovery(0.4)
        right, nll, total = dict.fromkeys(("model", *CLASSICAL), 0), dict.fromkeys(("model", *CLASSICAL[1:]), 0.0), 0
        for batch in held_out.batches():
            z, t = held_out.noisy(batch, 0.4)
            for i, count in enumerate(batch["num_tokens"].tolist()):
                padded = -(-count // 16) * 16
                tokens, mask = batch["tokens"][i : i + 1, :padded], batch["mask"][i : i + 1, :padded]
                one = z[i : i + 1, :padded], t[i : i + 1], mask
                seen = loaded.diffusion.log_likelihood(one[0], one[1][:, None].expand(mask.shape))
                contexts = dict(
                    zip(("bigram", "trigram"), loaded.ngram.contexts(seen, mask, order=3, candidates=(24,)))
                )
                contexts["unigram"] = evaluate.unigram_context(seen, loaded.diffusion.log_unigram)
                for name, context in contexts.items():
                    right[name] += int((context.best(seen) == tokens)[mask].sum())
                    nll[name] -= float((context.dense + seen).gather(-1, tokens[..., None])[..., 0][mask].sum())
                model = loaded.diffusion.recover(*one, tokens=tokens, passes=args.passes)
                right["model"] += int((model.tokens == tokens)[mask].sum())
                nll["model"] += float(model.nll.sum())
                right["nearest"] += int((loaded.diffusion.palette.decode(one[0] / t[0]) == tokens)[mask].sum())
                total += count
    for name, hits in right.items():
        assert row[name] == pytest.approx(hits / total, abs=1e-3), name
    for name, nats in nll.items():
        column = {"model": "nll_bits"}.get(name, f"{name}_bits")
        assert row[column] == pytest.approx(nats / total / np.log(2), rel=1e-2), name


def evaluate_args(trained, data, *options):
    import sys

    previous = sys.argv
    sys.argv = [
        "evaluate.py",
        "--checkpoint",
        str(trained / "best_model.pth"),
        "--num_samples",
        "12",
        "--batch_size",
        "5",
    ]
    sys.argv += [*options, "--data_path", str(data)]
    try:
        return evaluate.parse_args()
    finally:
        sys.argv = previous


def test_figures_are_pictures_with_something_on_them(report):
    for name in ("recovery.png", "pixels.png"):
        pixels = np.array(Image.open(report / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


SHORT = ("--num_samples", 8, "--t", 0.7, "--num_inference_steps", 2)


def test_raw_text_can_be_evaluated(call, trained, tmp_path):
    (tmp_path / "book.txt").write_text(sentences(77, 200))
    options = ("--data_path", tmp_path / "book.txt", "--output_dir", tmp_path / "out")
    assert call(evaluate, "--checkpoint", trained / "best_model.pth", *options, *CPU, *SHORT) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["num_chunks"] == 8


def test_a_network_without_ngrams_is_compared_with_them_all_the_same(call, trained_alone, data, tmp_path):
    options = ("--data_path", data, "--output_dir", tmp_path, *CPU, *SHORT)
    assert call(evaluate, "--checkpoint", trained_alone / "best_model.pth", *options) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = report["recovery"]
    assert report["training"]["ngram"] == 0 and row["trigram"] > row["unigram"] + 0.05 and row["model"] > row["unigram"]


@pytest.mark.parametrize(
    "options", [("--ngram", 2), ("--objective", "pixel"), ("--scan", "raster", "--objective", "pixel")]
)
def test_every_kind_of_checkpoint_can_be_evaluated(call, data, tmp_path, options):
    assert call(train, "--data_path", data, *TINY, *options, "--max_steps", 3, "--output_dir", tmp_path / "run") == 0
    given = ("--data_path", data / "val", "--output_dir", tmp_path / "report", *CPU, *SHORT, "--sampler", "heun")
    assert call(evaluate, "--checkpoint", tmp_path / "run" / "last.pth", *given) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    (row,) = report["recovery"]
    assert 0 < row["model"] < 1 and row["trigram"] > row["unigram"]
    assert (row["nll_bits"] is None) == ("pixel" in options)
    assert {sample["sampler"] for sample in report["sampled"]} == {"posterior", "heun"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data_path", "absent"), "no data at absent"),
        (("--checkpoint", "absent.pth"), "no checkpoint at"),
        (("--img_size", "16"), "--img_size 8, not 16"),
        (("--num_samples", "0"), "at least 1"),
        (("--passes", "0"), "at least 1"),
        (("--t", "1.0"), "--t"),
    ],
)
def test_bad_input_is_one_line(refused, trained, data, tmp_path, options, message):
    given = ("--checkpoint", trained / "best_model.pth", "--data_path", data / "val", "--output_dir", tmp_path, *CPU)
    assert message in refused(evaluate, *given, *options)


@pytest.mark.parametrize("lacks", ["ngram", "config"])
def test_a_checkpoint_from_before_the_ngrams_is_refused(refused, trained, data, tmp_path, lacks):
    old = torch.load(trained / "best_model.pth", weights_only=True)
    del old["config"]["ngram"]
    if lacks == "ngram":
        old["log_unigram"] = torch.zeros(300)
        del old["ngram"]
    torch.save(old, tmp_path / "old.pth")
    given = ("--checkpoint", tmp_path / "old.pth", "--data_path", data, "--output_dir", tmp_path / "report", *CPU)
    assert "old.pth" in refused(evaluate, *given)
    assert not (tmp_path / "report").exists()
