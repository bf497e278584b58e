"""The report counts what it says it counts."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

import evaluate
from tests.conftest import sentences

CPU = ("--device", "cpu", "--precision", "fp32", "--num_inference_steps", 6)


@pytest.fixture(scope="module")
def report(trained, data, tmp_path_factory):
    import sys

    output = tmp_path_factory.mktemp("report")
    previous = sys.argv
    sys.argv = [
        "evaluate.py",
        "--checkpoint",
        str(trained / "best_model.pth"),
        "--data_path",
        str(data / "val"),
        "--output_dir",
        str(output),
    ]
    sys.argv += [str(o) for o in CPU]
    try:
        evaluate.main()
    finally:
        sys.argv = previous
    return output


def test_the_report_has_the_promised_keys(report):
    found = json.loads((report / "report.json").read_text())
    keys = {
        "checkpoint",
        "data",
        "num_chunks",
        "num_tokens",
        "vocab_size",
        "recovery",
        "sampled",
        "exact_match",
        "char_error_rate",
    }
    assert keys <= found.keys() and found["vocab_size"] == 300
    for row in found["recovery"]:
        assert {"t", "sigma", "model", "nearest", "unigram", "nll_bits"} <= row.keys()
        assert row["sigma"] == pytest.approx((1 - row["t"]) / row["t"])


def test_recovery_falls_with_noise_and_the_model_beats_what_needs_no_model(report):
    found = json.loads((report / "report.json").read_text())
    for name in ("model", "nearest", "unigram"):
        shares = [row[name] for row in found["recovery"]]
        assert all(a >= b - 0.03 for a, b in itertools.pairwise(shares)) and shares[0] > 0.95
        assert all(row[f"{name}_ci"][0] <= row[name] <= row[f"{name}_ci"][1] for row in found["recovery"])
    half = found["at_nearest_50"]
    assert abs(half["nearest"] - 0.5) < 0.03
    assert half["model"] > half["unigram"] + 0.02 > half["nearest"] + 0.02
    bits = [row["nll_bits"] for row in found["recovery"]]
    assert bits == sorted(bits) and bits[-1] < np.log2(300)


def test_figures_are_pictures_with_something_on_them(report):
    for name in ("recovery.png", "pixels.png"):
        pixels = np.array(Image.open(report / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 500 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        out_of = rng.integers(50, 200, 60)
        share, (low, high) = evaluate.share_with_interval(rng.binomial(out_of, 0.7), out_of)
        covered += low <= 0.7 <= high
        assert abs(share - 0.7) < 0.05
    assert covered >= 85


def test_raw_text_can_be_evaluated(call, trained, tmp_path):
    (tmp_path / "book.txt").write_text(sentences(77, 200))
    options = ("--data_path", tmp_path / "book.txt", "--output_dir", tmp_path / "out", "--num_samples", 8)
    assert call(evaluate, "--checkpoint", trained / "best_model.pth", *options, *CPU) == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["num_chunks"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data_path", "absent"), "no data at absent"),
        (("--checkpoint", "absent.pth"), "no checkpoint at"),
        (("--img_size", "16"), "--img_size 8, not 16"),
        (("--num_samples", "0"), "at least 1"),
        (("--t", "1.0"), "--t"),
    ],
)
def test_bad_input_is_one_line(refused, trained, data, tmp_path, options, message):
    given = ("--checkpoint", trained / "best_model.pth", "--data_path", data / "val", "--output_dir", tmp_path, *CPU)
    assert message in refused(evaluate, *given, *options)
