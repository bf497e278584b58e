"""What a checkpoint is good for: reports, predictions, pictures, fine-tuning, export."""

import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.vit_cifar10.conftest import SHORT, drawn
from vit_cifar10 import evaluate, export, finetune, predict, visualize_attention
from vit_cifar10.dataset import CIFAR_CLASSES
from vit_cifar10.pretrained import load_pretrained
from vit_cifar10.report import measure


@pytest.fixture
def photos(tmp_path):
    """Three image files of other sizes and kinds."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels, _ = drawn(3, 9)
    Image.fromarray(pixels[0]).resize((300, 200)).save(folder / "a.jpg")
    Image.fromarray(pixels[1]).convert("L").save(folder / "b.png")
    Image.fromarray(pixels[2]).resize((20, 70)).convert("RGBA").save(folder / "c.webp")
    return folder


def test_the_numbers_of_a_report_are_right():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    report = measure(probabilities, torch.tensor([0, 1, 1, 0]), ["a", "b"])
    assert report["accuracy"] == 0.75 and report["per_class"] == {"a": 1.0, "b": 0.5}
    assert report["confusion"] == [[2, 0], [1, 1]]
    assert report["loss"] == pytest.approx(-np.log([0.9, 0.2, 0.7, 0.6]).mean(), rel=1e-5)
    assert report["calibration"]["expected_error"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.4) / 4, rel=1e-5)
    sure = measure(torch.eye(2)[[0, 1, 0]], torch.tensor([0, 1, 0]), ["a", "b"])
    assert sure["calibration"]["expected_error"] == 0 and sure["accuracy"] == 1


def test_evaluate_repeats_the_report_of_the_run(call, images, trained, tmp_path):
    options = ("--checkpoint", trained / "last.pth", "--data_path", images, "--device", "cpu", "--precision", "fp32")
    assert call(evaluate, *options, "--output_dir", tmp_path) == 0
    first, second = (json.loads((p / "report.json").read_text()) for p in (trained / "report", tmp_path))
    assert first["confusion"] == second["confusion"] and first["accuracy"] > 0.5
    assert call(evaluate, *options, "--output_dir", tmp_path, "--tta") == 0
    mirrored = json.loads((tmp_path / "report.json").read_text())
    assert mirrored["tta"] and mirrored["loss"] != second["loss"]
    for figure in second["figures"]:
        picture = np.asarray(Image.open(tmp_path / figure).convert("L"))
        assert min(picture.shape) > 300 and picture.std() > 20


def test_predict_names_a_class_for_images_of_any_size(call, photos, trained, capsys):
    capsys.readouterr()
    assert (
        call(predict, photos, photos / "a.jpg", "--checkpoint", trained / "last.pth", "--json", "--device", "cpu") == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"].rsplit("/", 1)[1] for line in lines] == ["a.jpg", "b.png", "c.webp", "a.jpg"]
    for line in lines:
        values = list(line["probabilities"].values())
        assert (
            len(values) == 3
            and values == sorted(values, reverse=True)
            and line["probabilities"].keys() <= set(CIFAR_CLASSES)
        )


def test_attention_is_drawn_for_every_image_and_head(call, photos, trained, tmp_path):
    options = ("--checkpoint", trained / "last.pth", "--output_dir", tmp_path / "out", "--heads", "--device", "cpu")
    assert call(visualize_attention, photos, *options) == 0
    names = ["attention_000.png", "heads_000.png", "heads_001.png", "heads_002.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names


def test_both_exports_give_the_originals_logits(call, trained, tmp_path):
    assert call(export, "--checkpoint", trained / "last.pth", "--output_dir", tmp_path) == 0
    loaded = load_pretrained(trained / "last.pth", torch.device("cpu"))
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = loaded.model(loaded.preprocess(images))
        program = torch.export.load(tmp_path / "model.pt2").module()(images / 255)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    onnx = session.run(None, {"images": (images / 255).numpy()})[0]
    assert torch.allclose(program, expected, atol=1e-4) and np.allclose(onnx, expected.numpy(), atol=1e-4)
    assert json.loads((tmp_path / "classes.json").read_text()) == CIFAR_CLASSES


def test_fine_tuning_starts_from_timms_weights(call, images, tmp_path):
    theirs = timm.models.VisionTransformer(
        img_size=64, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=11
    )
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    options = (*SHORT[2:], "--weights", tmp_path / "vit.safetensors", "--img_size", 48, "--lr", "1e-9", "--epochs", 1)
    options = (*options, "--data_path", images, "--output_dir", tmp_path / "run", "--ema_decay", 0)
    assert call(finetune, *options) == 0
    tuned = load_pretrained(tmp_path / "run" / "last.pth", torch.device("cpu"))
    assert tuned.model.grid == 6 and len(tuned.classes) == 10 and tuned.preprocess.mean == [0.5] * 3
    for name, value in theirs.state_dict().items():
        if not name.startswith(("head", "pos_embed")):
            assert torch.allclose(tuned.model.state_dict()[name], value, atol=1e-6), name
    assert call(finetune, *options, "--resume", "auto") == 0


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (predict, ["broken.png"], "no readable image"),
        (predict, ["absent.png"], "no image at"),
        (predict, ["empty"], "no images under"),
        (visualize_attention, ["broken.png"], "no readable image"),
        (visualize_attention, ["fine.png", "--output_dir", "fine.png/x"], "cannot create --output_dir"),
    ],
)
def test_files_that_are_no_images_are_refused(refused, trained, tmp_path, monkeypatch, module, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 30)
    Image.new("RGB", (8, 8)).save("fine.png")
    assert message in refused(module, *options, "--checkpoint", trained / "last.pth", "--device", "cpu")


def test_wrong_checkpoints_and_classes_are_refused(refused, trained, images, class_folders, tmp_path):
    torch.save({"model_state_dict": {}, "config": {}}, tmp_path / "other.pth")
    (tmp_path / "torn.pth").write_bytes((trained / "last.pth").read_bytes()[:5000])
    assert "lacks ema_state_dict" in refused(evaluate, "--checkpoint", tmp_path / "other.pth", "--data_path", images)
    assert "damaged" in refused(export, "--checkpoint", tmp_path / "torn.pth")
    assert "no checkpoint at" in refused(predict, "x.png", "--checkpoint", tmp_path / "none.pth")
    assert "classes differ: ant, bee, cow" in refused(
        evaluate, "--checkpoint", trained / "last.pth", "--data_path", class_folders
    )
    taken = ("--checkpoint", trained / "last.pth", "--output_dir", tmp_path / "torn.pth")
    assert "cannot create --output_dir" in refused(evaluate, *taken, "--data_path", images)
    assert "cannot create --output_dir" in refused(export, *taken)
    assert "name the weights" in refused(finetune, "--data_path", images)
