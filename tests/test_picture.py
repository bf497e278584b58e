"""Image files: what is written comes back, with its mask and the fingerprint of what wrote it."""

import numpy as np
import pytest
import torch
from PIL import Image

from kit.errors import UserError
from picture import find_images, load_image, save_animation, save_png, save_strip


def test_a_png_brings_back_its_colors_mask_and_fingerprint(tmp_path):
    image = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    mask = torch.arange(64).view(8, 8) < 20
    save_png(tmp_path / "p.png", image, mask, "0123456789abcdef")
    found, shown, fingerprint = load_image(tmp_path / "p.png", 8)
    assert torch.allclose(found[:, mask], image[:, mask], atol=1e-6)
    assert torch.equal(shown, mask) and fingerprint == "0123456789abcdef"


def test_an_enlarged_png_is_read_like_a_small_one_and_a_jpeg_of_it_nearly(tmp_path):
    image = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    mask = torch.arange(64).view(8, 8) < 20
    save_png(tmp_path / "p.png", image, mask, "0123456789abcdef", pixel_size=6)
    assert Image.open(tmp_path / "p.png").size == (48, 48)
    found, shown, fingerprint = load_image(tmp_path / "p.png", 8)
    assert torch.allclose(found[:, mask], image[:, mask], atol=1e-6)
    assert torch.equal(shown, mask) and fingerprint == "0123456789abcdef"
    save_png(tmp_path / "p.png", image, torch.ones_like(mask), "", pixel_size=8)
    Image.open(tmp_path / "p.png").convert("RGB").save(tmp_path / "p.jpg", quality=95, subsampling=0)
    found, _, _ = load_image(tmp_path / "p.jpg", 8)
    assert (found - image).abs().max() < 0.05


def test_a_jpeg_has_neither_mask_nor_fingerprint(tmp_path):
    Image.new("RGB", (8, 8), (10, 200, 30)).save(tmp_path / "p.jpg")
    _, mask, fingerprint = load_image(tmp_path / "p.jpg", 8)
    assert mask is None and fingerprint is None


def test_padding_is_transparent(tmp_path):
    mask = torch.arange(64).view(8, 8) < 20
    save_png(tmp_path / "p.png", torch.ones(3, 8, 8), mask, "")
    alpha = np.array(Image.open(tmp_path / "p.png"))[..., 3]
    assert np.array_equal(alpha > 0, mask.numpy())


def test_a_picture_of_another_size_or_kind_is_refused(tmp_path):
    Image.new("RGB", (10, 8)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (8 * 65, 8 * 65)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="10x8 pixels; this checkpoint reads 8x8"):
        load_image(tmp_path / "small.png", 8)
    with pytest.raises(UserError, match="520x520 pixels; this checkpoint reads 8x8"):
        load_image(tmp_path / "large.png", 8)
    with pytest.raises(UserError, match="no readable image"):
        load_image(tmp_path / "text.png", 8)
    with pytest.raises(UserError, match="no image at"):
        load_image(tmp_path / "absent.png", 8)


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for name in ("page_10.png", "page_9.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_images([tmp_path])] == ["page_9.png", "page_10.png"]


def test_strip_and_animation_show_the_frames_enlarged_and_padding_white(tmp_path):
    frames = [torch.full((3, 8, 8), level) for level in torch.linspace(-1, 1, 20).tolist()]
    mask = torch.arange(64).view(8, 8) < 32
    save_strip(tmp_path / "s.png", frames, mask)
    strip = np.array(Image.open(tmp_path / "s.png"))
    assert strip.shape == (256, 8 * 264 - 8, 3)
    assert strip[0, 0].tolist() == [0, 0, 0] and strip[0, -1].tolist() == [255] * 3 and (strip[255] == 255).all()
    save_animation(tmp_path / "a.gif", frames[:3], mask)
    assert Image.open(tmp_path / "a.gif").n_frames >= 3
