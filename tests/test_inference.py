"""Each mode does what it says with nothing but a checkpoint."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from tests.conftest import sentences

TEXT = sentences(99, 30)
CPU = ("--device", "cpu", "--precision", "fp32", "--num_inference_steps", 8)


@pytest.fixture
def use(call, trained, tmp_path):
    """Run a mode of the trained checkpoint; returns what it wrote into MODE.json."""

    def run(mode, *options):
        assert (
            call(
                inference,
                "--checkpoint",
                trained / "best_model.pth",
                "--mode",
                mode,
                "--output_dir",
                tmp_path,
                *(() if mode == "encode" else ("--overwrite",)),
                *CPU,
                *options,
            )
            == 0
        )
        return json.loads((tmp_path / f"{mode}.json").read_text())

    return run


def test_encode_and_decode_return_a_text_of_any_length(use, tmp_path):
    text = TEXT * 4 + "和中文 🙂 too"
    (tmp_path / "in.txt").write_text(text, encoding="utf-8")
    encoded = use("encode", "--input_file", tmp_path / "in.txt")
    assert (
        len(encoded["files"]) == -(-encoded["num_tokens"] // 64) or len(encoded["files"]) > encoded["num_tokens"] // 64
    )
    use("decode", "--image", *[tmp_path / name for name in encoded["files"]])
    assert (tmp_path / "decode_000.txt").read_text(encoding="utf-8") == text


def test_a_second_text_never_mixes_with_the_first(use, refused, trained, tmp_path):
    """A long text, then a short one into the same folder, then the folder decoded."""
    use("encode", "--input_text", TEXT)
    again = ("--checkpoint", trained / "best_model.pth", "--mode", "encode", "--output_dir", tmp_path, *CPU)
    assert "encode_000.png of an earlier call" in refused(inference, *again, "--input_text", "a new text")
    assert "empty" in refused(inference, *again, "--overwrite", "--input_text", " ")
    assert (tmp_path / "encode_001.png").exists()  # nothing is removed for an input that is refused
    (tmp_path / "encode_notes.png").write_bytes(b"mine")
    use("encode", "--overwrite", "--input_text", "a new text")
    assert not (tmp_path / "encode_001.png").exists()
    (tmp_path / "encode_notes.png").unlink()  # which was let alone
    use("decode", "--image", tmp_path)
    assert (tmp_path / "decode_000.txt").read_text() == "a new text"


def test_what_earlier_calls_wrote_stays_where_no_folder_is_named(call, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = (inference, "--checkpoint", trained / "best_model.pth", "--mode", "encode", *CPU)
    for text in ("one", "two"):
        assert call(*command, "--input_text", text) == 0
    first, second = (json.loads((tmp_path / name / "encode.json").read_text()) for name in ("outputs", "outputs-2"))
    assert (first["settings"]["input_text"], second["settings"]["input_text"]) == ("one", "two")
    assert second["settings"]["output_dir"] == "outputs-2"
    assert call(*command, "--input_text", "three", "--overwrite") == 0
    assert json.loads((tmp_path / "outputs" / "encode.json").read_text())["settings"]["input_text"] == "three"
    assert call(*command[: -len(CPU)], "--mode", "decode", "--image", "outputs", *CPU) == 0  # another mode, beside it
    assert (tmp_path / "outputs" / "decode_000.txt").read_text() == "three"


def test_an_image_says_which_tokenizer_palette_and_layout_it_is_of(use, refused, trained, tmp_path, capsys):
    use("encode", "--input_text", "the color of a token")
    capsys.readouterr()
    use("decode", "--image", tmp_path / "encode_000.png")
    assert "note:" not in capsys.readouterr().err
    pixels = Image.open(tmp_path / "encode_000.png")
    pixels.save(tmp_path / "unsigned.png")  # Pillow drops text chunks
    use("decode", "--image", tmp_path / "unsigned.png")
    assert "unsigned.png does not say which tokenizer" in capsys.readouterr().err
    other = torch.load(trained / "best_model.pth", weights_only=True)
    other["palette"]["slots"] = other["palette"]["slots"].roll(1)
    torch.save(other, tmp_path / "other.pth")
    options = ("--mode", "decode", "--image", tmp_path / "encode_000.png", "--output_dir", tmp_path / "out", *CPU)
    assert "another tokenizer, palette or layout" in refused(
        inference, "--checkpoint", tmp_path / "other.pth", *options
    )


def test_decode_takes_a_folder_and_pictures_without_transparency(use, tmp_path):
    use("encode", "--input_text", "the color of a token")
    (tmp_path / "flat").mkdir()
    Image.open(tmp_path / "encode_000.png").convert("RGB").save(tmp_path / "flat" / "a.png")
    use("decode", "--image", tmp_path / "flat")
    assert (tmp_path / "decode_000.txt").read_text() == "the color of a token"


def accuracy_of(path, truth):
    found = np.load(path)
    count = min(len(found), len(truth))
    return (found[:count] == truth[:count]).mean()


@pytest.mark.parametrize("damage", ["noise", "jpeg"])
def test_denoising_repairs_a_damaged_picture(use, tmp_path, damage):
    use("encode", "--input_text", TEXT[:190])
    use("decode", "--image", tmp_path / "encode_000.png")
    truth = np.load(tmp_path / "decode_000_tokens.npy")
    picture = np.array(Image.open(tmp_path / "encode_000.png"))
    if damage == "noise":
        noisy = picture[..., :3] + np.random.default_rng(0).normal(0, 22, picture[..., :3].shape)
        damaged = tmp_path / "damaged.png"
        Image.fromarray(np.dstack([noisy.clip(0, 255).astype(np.uint8), picture[..., 3]])).save(damaged)
    else:
        damaged = tmp_path / "damaged.jpg"
        Image.fromarray(picture).convert("RGB").save(damaged, quality=40, subsampling=0)
    shares = []
    for options in ((), ("--denoise",)):
        use("decode", "--image", damaged, "--num_tokens", len(truth), *options)
        shares.append(accuracy_of(tmp_path / "decode_000_tokens.npy", truth))
    assert shares[0] < 0.97 and shares[1] > shares[0] + 0.02


def test_reconstruction_beats_the_nearest_color(use, tmp_path):
    report = use("reconstruct", "--input_text", TEXT)
    assert report["nearest_accuracy"] + 0.1 < report["accuracy"] <= 1
    assert (tmp_path / "reconstruct.txt").read_text() and (tmp_path / "reconstruct_000_noisy.png").exists()
    clean = use("reconstruct", "--input_text", TEXT, "--t", "0.999")
    assert clean["accuracy"] == 1 and (tmp_path / "reconstruct.txt").read_text() == TEXT


def test_reconstruction_takes_the_likeliest_tokens_by_default_as_at_temperature_zero(use, tmp_path):
    report = use("reconstruct", "--input_text", TEXT, "--num_inference_steps", 2)
    default = (tmp_path / "reconstruct.txt").read_text()
    assert report["settings"]["sampler"] == "posterior"
    for options in (("--temperature", 0, "--sampler", "stochastic"), ("--sampler", "posterior", "--batch_size", 1)):
        again = use("reconstruct", "--input_text", TEXT, "--num_inference_steps", 2, *options)
        if "--batch_size" not in options:  # which draws other noise
            assert (tmp_path / "reconstruct.txt").read_text() == default
        assert again["accuracy"] == pytest.approx(report["accuracy"], abs=0.04)


@pytest.mark.parametrize(
    ("mode", "sampler", "steps"),
    [("reconstruct", "posterior", 4), ("decode", "posterior", 4), ("generate", "stochastic", 32)],
)
def test_each_mode_has_its_own_sampler_and_number_of_passes(mode, sampler, steps):
    args = argparse.Namespace(mode=mode, sampler=None, num_inference_steps=None, t=None, temperature=1.0, num_samples=1)
    args = argparse.Namespace(
        **vars(args), batch_size=1, num_tokens=None, input_text="a", input_file=None, image=["a.png"], pixel_size=1, churn=0,
        noise_scale=1, guidance=0, guide=None,
    )  # fmt: skip
    inference.check(args)
    assert (args.sampler, args.num_inference_steps) == (sampler, steps)


@pytest.mark.parametrize("sampler", ["posterior", "euler", "heun"])
def test_every_sampler_reconstructs_and_generates(use, sampler):
    assert use("reconstruct", "--input_text", TEXT[:200], "--sampler", sampler)["accuracy"] > 0.9
    (sample,) = use("generate", "--num_tokens", 20, "--sampler", sampler, "--gif")["samples"]
    assert sample["num_tokens"] == 20 and use("generate", "--num_tokens", 20, "--sampler", sampler)["samples"] == [
        sample
    ]


def test_a_network_without_ngrams_does_all_this_alone(call, trained_alone, tmp_path):
    options = ("--checkpoint", trained_alone / "best_model.pth", "--output_dir", tmp_path, *CPU)
    assert call(inference, *options, "--mode", "reconstruct", "--input_text", TEXT) == 0
    report = json.loads((tmp_path / "reconstruct.json").read_text())
    assert report["accuracy"] > report["nearest_accuracy"] + 0.05
    assert call(inference, *options, "--mode", "infill", "--input_text", "The color of [[6]] home.") == 0
    (sample,) = json.loads((tmp_path / "infill.json").read_text())["samples"]
    assert sample["text"].startswith("The color of")


def test_generation_writes_text_pictures_and_the_way_there(use, tmp_path):
    report = use("generate", "--num_tokens", 40, "--num_samples", 3, "--batch_size", 2, "--gif", "--strip")
    assert len(report["samples"]) == 3 and all(s["num_tokens"] == 40 for s in report["samples"])
    alpha = np.array(Image.open(tmp_path / "generate_002.png"))[..., 3]
    assert (alpha > 0).sum() == 40
    assert Image.open(tmp_path / "generate_000.gif").n_frames > 4 and (tmp_path / "generate_000_strip.png").exists()
    again = use("generate", "--num_tokens", 40, "--num_samples", 3, "--batch_size", 2)
    other = use("generate", "--num_tokens", 40, "--num_samples", 3, "--batch_size", 2, "--seed", 1)
    assert again["samples"] == report["samples"] != other["samples"]


def test_infill_keeps_what_was_given(use):
    report = use("infill", "--input_text", "The color of [[6]] back home.", "--num_samples", 2)
    assert all(
        s["text"].startswith("The color of") and s["text"].endswith("back home.")
        for s in report["samples"]
        if not s["ended"]
    )
    report = use("infill", "--input_text", "The color", "--num_tokens", 30)
    assert report["samples"][0]["text"].startswith("The color") and report["samples"][0]["num_tokens"] == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mode", "encode"), "needs --input_text or --input_file"),
        (("--mode", "encode", "--input_text", "  "), "empty"),
        (("--mode", "encode", "--input_file", "absent.txt"), "no file at"),
        (("--mode", "decode"), "needs --image"),
        (("--mode", "decode", "--image", "absent.png"), "no image at"),
        (("--mode", "decode", "--image", "wide.png"), "9x8 pixels; this checkpoint reads 8x8"),
        (("--mode", "decode", "--image", "text.png"), "no readable image"),
        (("--mode", "decode", "--image", "blank.png"), "wholly transparent"),
        (("--mode", "decode", "--image", "."), "no image in"),
        (("--mode", "generate", "--num_tokens", "65"), "holds 64"),
        (("--mode", "generate", "--img_size", "64"), "--img_size 8, not 64"),
        (("--mode", "generate", "--temperature", "-1"), "--temperature"),
        (("--mode", "generate", "--churn", "-1"), "--churn"),
        (("--mode", "generate", "--guidance", "nan", "--guide", "absent.pth"), "--guidance"),
        (("--mode", "generate", "--guide", "absent.pth"), "no checkpoint at absent.pth"),
        (("--mode", "encode", "--input_text", "x", "--pixel_size", "65"), "at most 64"),
        (("--mode", "reconstruct", "--input_text", "x", "--t", "1.5"), "--t 1.5"),
        (("--mode", "reconstruct", "--input_text", "x", "--churn", "4"), "of texts that are drawn"),
        (("--mode", "infill", "--input_text", "the " * 200), "leaves nothing to fill"),
        (("--mode", "infill", "--input_text", "a [[900]] b"), "holds 64"),
        (("--mode", "infill", "--input_text", "a [[0]] b"), "every gap is empty"),
    ],
)
def test_bad_input_is_one_line(refused, trained, tmp_path, monkeypatch, options, message):
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path / "pictures")
    if "." not in options:
        Image.new("RGB", (9, 8)).save("wide.png")
        Image.new("RGBA", (8, 8)).save("blank.png")
        (tmp_path / "pictures" / "text.png").write_text("no image")
    assert message in refused(
        inference, "--checkpoint", trained / "best_model.pth", "--output_dir", tmp_path / "out", *CPU, *options
    )


def test_a_picture_of_large_pixels_survives_a_jpeg(use, tmp_path):
    """Sent on as people do: enlarged, without transparency, lossy."""
    use("encode", "--input_text", TEXT[:300], "--pixel_size", 8, "--overwrite")
    sent = Image.open(tmp_path / "encode_000.png")
    assert sent.size == (64, 64)
    sent.convert("RGB").save(tmp_path / "sent.jpg", quality=90)
    written = inference.read_input(argparse.Namespace(input_text=TEXT[:300], input_file=None))
    use("decode", "--image", tmp_path / "sent.jpg", "--denoise")
    found = (tmp_path / "decode_000.txt").read_text()
    assert written.startswith(found[:20]) and len(found) > 100


def test_churn_and_guidance_change_what_is_drawn(use, trained_alone, tmp_path):
    plain, *others = (
        use("generate", "--sampler", "euler", *options)["samples"][0]["text"]
        for options in ((), ("--churn", 8), ("--guide", trained_alone / "last.pth", "--guidance", 1))
    )
    assert all(plain != other for other in others)
    assert np.load(tmp_path / "generate_tokens.npy").shape == (1, 64)


def test_texts_are_guided_by_the_network_without_its_ngrams_where_it_has_any(
    call, refused, trained, trained_alone, tmp_path
):
    def text(checkpoint, *options):
        given = (
            "--checkpoint",
            checkpoint / "best_model.pth",
            "--num_inference_steps",
            8,
            "--output_dir",
            tmp_path,
            "--overwrite",
            *CPU,
        )
        assert call(inference, *given, "--mode", "generate", *options) == 0
        return json.loads((tmp_path / "generate.json").read_text())["samples"][0]["text"]

    assert text(trained) == text(trained, "--guidance", 0.5) != text(trained, "--guidance", 0)
    assert text(trained_alone) == text(trained_alone, "--guidance", 0)
    given = (
        "--checkpoint",
        trained_alone / "best_model.pth",
        "--mode",
        "generate",
        "--output_dir",
        tmp_path / "x",
        *CPU,
    )
    assert "without n-grams is guided by a weaker checkpoint" in refused(inference, *given, "--guidance", 1)


def test_a_checkpoint_of_something_else_is_refused(refused, tmp_path):
    torch.save({"model_state_dict": {}, "config": {}}, tmp_path / "other.pth")
    for name, message in (("other.pth", "lacks ema_state_dict"), ("absent.pth", "no checkpoint at")):
        assert message in refused(
            inference, "--checkpoint", tmp_path / name, "--mode", "generate", "--output_dir", tmp_path
        )


def test_a_checkpoint_from_before_the_ngrams_is_refused(refused, trained, tmp_path):
    old = torch.load(trained / "best_model.pth", weights_only=True)
    del old["config"]["ngram"]
    torch.save(old, tmp_path / "older.pth")
    old["log_unigram"] = torch.zeros(300)
    del old["ngram"]
    torch.save(old, tmp_path / "oldest.pth")
    for name in ("older.pth", "oldest.pth"):
        options = ("--checkpoint", tmp_path / name, "--mode", "generate", "--output_dir", tmp_path / "out")
        assert name in refused(inference, *options)
    assert not (tmp_path / "out").exists()
