"""What the page's tabs answer, without a browser."""

import re

import gradio
import numpy as np
import pytest
import torch
from PIL import Image

import demo
from image_context.augment import AUGMENTATIONS
from kit import device
from kit.errors import UserError
from pretrained import load_pretrained
from tabs import image_context, show, tokcom, token_picture, vit
from tests.conftest import SENTENCE

CPU = torch.device("cpu")
HOSTILE = "<script>alert(1)</script> the color of a token & 'more' \"quotes\""


@pytest.fixture(scope="module")
def loaded(trained):
    return load_pretrained(trained / "best_model.pth", CPU)


def bars(html: str) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in re.findall(r"<span>([^<]+)</span><div[^>]*>.*?</div><span>([\d.]+)%", html)
    }


def test_little_noise_is_recovered_and_much_is_marked(loaded):
    pictures, result, files = token_picture.recover(loaded, SENTENCE, 0.05, 2, 0)
    assert bars(result)["the model"] == 100 and "class='wrong'" not in result
    assert pictures.count("<figure>") == 3 * len(files)
    _, result, _ = token_picture.recover(loaded, SENTENCE, 1.0, 2, 0)
    shares = bars(result)
    assert shares["nearest color"] < shares["the model"] < 100 and "class='wrong'" in result


def test_the_downloaded_picture_is_read_back_and_so_is_its_jpeg(loaded, tmp_path):
    text = SENTENCE[:40]
    _, _, files = token_picture.recover(loaded, text, 0.1, 1, 0)
    assert text in token_picture.read(loaded, files[0], False)
    Image.open(files[0]).convert("RGB").save(tmp_path / "sent.jpg", quality=95)
    told = token_picture.read(loaded, str(tmp_path / "sent.jpg"), True)
    assert "does not say which checkpoint" in told and "cleaned from noise" in told


def test_gaps_are_filled_around_what_is_given(loaded):
    calls = []
    written, way = token_picture.write(
        loaded, "the color [[3]] token", 32, 4, 1.0, 0, lambda done, unit: calls.append(done)
    )
    assert "the color" in written and "token" in written and "class='new'" in written
    assert calls[-1] == (4, 4) and "data:image/gif" in way
    assert "class='new'" in token_picture.write(loaded, "", 16, 4, 1.0, 0, lambda *_, **__: None)[0]
    assert "data:image/gif" in token_picture.animate(loaded, SENTENCE, 0.2, 0)


def test_what_users_write_stays_text(loaded):
    for html in token_picture.recover(loaded, HOSTILE, 0.02, 1, 0)[:2]:
        assert "<script" not in html
    assert "<script" not in token_picture.write(loaded, HOSTILE + "[[2]]", 64, 2, 1.0, 0, lambda *_, **__: None)[0]
    assert "<script" not in image_context.carry(HOSTILE, "QR code", "clean", 0, loaded.tokenizer)[1]


@pytest.mark.parametrize("text", ["", "   ", "x" * 5000])
def test_empty_and_long_texts_are_refused(text):
    with pytest.raises(UserError):
        show.checked(text)


def test_mistakes_become_messages_without_a_path(loaded, tmp_path):
    Image.new("RGB", (5, 5)).save(tmp_path / "small.png")
    (tmp_path / "no.png").write_text("text")
    for path, told in (
        (tmp_path / "small.png", "5x5 pixels"),
        (tmp_path / "no.png", "no readable image"),
        (None, "choose a picture"),
    ):
        with pytest.raises(gradio.Error, match=told) as error:
            show.guarded(token_picture.read)(loaded, path and str(path), False)
        assert str(tmp_path) not in str(error.value)

    def broken():
        raise ValueError(f"at {tmp_path}")

    with pytest.raises(gradio.Error, match="This failed") as error:
        show.guarded(broken)()
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("damage", AUGMENTATIONS)
def test_the_robust_code_is_read_back_after_all_damage(loaded, damage):
    images, result = image_context.carry(SENTENCE, "color code, robust", damage, 0, loaded.tokenizer)
    assert "Read back to the letter" in result and "data:image/png" in images


def test_the_other_codecs_answer(loaded):
    for name in image_context.CODECS:
        assert "visual tokens" in image_context.carry(SENTENCE, name, "clean", 0, loaded.tokenizer)[1]
    assert (
        "Read back to the letter"
        not in image_context.carry(SENTENCE, "color code, clean", "heavy", 0, loaded.tokenizer)[1]
    )


def test_a_trained_reader_answers(reader):
    opened = image_context.load(reader, device.start("cpu", 0, "fp32"))
    images, result = image_context.ask(opened, "codebook", "the token", "clean", 0)
    assert "data:image/png" in images and "tokens restored" in bars(result)
    with pytest.raises(UserError, match="is no run of"):
        image_context.load(reader / "final", device.start("cpu", 0, "fp32"))


def test_tokcom_reads_back_what_has_no_noise_and_continues(tokcom_checkpoint):
    opened = tokcom.Pretrained.load(tokcom_checkpoint, CPU)
    vectors, result, chart = tokcom.recover(opened, SENTENCE[:50], 1.0, 0)
    assert set(bars(result)) == {"vectors alone", "after the noise"} and "data:image/png" in vectors and "<svg" in chart
    assert "class='new'" in tokcom.continued(opened, SENTENCE[:40], 2, 2, 0)
    with pytest.raises(UserError, match="window holds"):
        tokcom.recover(opened, SENTENCE * 5, 0.5, 0)
    with pytest.raises(UserError, match="holds a VAE only"):
        tokcom.Pretrained.load(tokcom_checkpoint.parent / "best_vae.pt", CPU)


def test_vit_names_classes_and_where_it_looks(vit_checkpoint, tmp_path):
    opened = vit.load_pretrained(vit_checkpoint, CPU)
    pixels = np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    chances, looked = vit.classify(opened, str(tmp_path / "image.png"))
    assert sum(chances.values()) == pytest.approx(1, abs=1e-4) and looked.count("data:image/png") == 2


def test_a_wrong_checkpoint_is_told_before_the_page_opens(refused, tmp_path, trained):
    assert "no checkpoint" in refused(demo, "--checkpoint", tmp_path / "missing.pth")
    assert "it lacks stage" in refused(demo, "--tokcom", trained / "best_model.pth")
