"""Colors, pictures and files carry token ids without loss, and palettes keep the promises of their names."""

import numpy as np
import pytest
import torch
from PIL import Image

from kit.corpus import documents, find_sources
from kit.errors import UserError
from kit.tokenizer import load_tokenizer
from palette import (
    MAX_VOCAB,
    PALETTES,
    SCANS,
    Canvas,
    Palette,
    build_palette,
    levels_per_channel,
    load_picture,
    save_png,
)


def zipf_counts(vocab_size):
    return (1e6 / np.arange(1, vocab_size + 1)).astype(np.int64)


def through_png(ids, palette, path, img_size=64, patch_size=4, scan="block"):
    """ids -> pictures -> PNG files -> ids."""
    canvas, found = Canvas(img_size, patch_size, scan), []
    for start in range(0, len(ids), canvas.num_positions):
        part = ids[start : start + canvas.num_positions]
        tokens = torch.zeros(1, canvas.num_positions, dtype=torch.long)
        tokens[0, : len(part)] = part
        mask = torch.arange(canvas.num_positions)[None] < len(part)
        save_png(path, canvas.paint(palette.encode(tokens))[0], canvas.paint(mask)[0])
        picture, shown = load_picture(path, img_size)
        found.append(palette.decode(canvas.read(picture[None]))[canvas.read(shown[None])])
    return torch.cat(found)


@pytest.mark.parametrize("vocab_size", [2, 7, 8, 9, 512, 4096, 32768, 32769, 151665])
def test_levels_are_the_smallest_cube_that_holds_the_vocabulary(vocab_size):
    k = levels_per_channel(vocab_size)
    assert (k - 1) ** 3 < vocab_size <= k**3


@pytest.mark.parametrize("vocab_size", [512, 4096, 32768, 151665])
@pytest.mark.parametrize("name", ["digits", "shuffled", "spread"])
def test_every_token_survives_png(vocab_size, name, tmp_path):
    palette = build_palette(name, vocab_size, zipf_counts(vocab_size))
    ids = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(through_png(ids, palette, tmp_path / "p.png", img_size=128), ids)


def test_the_largest_vocabulary_survives_eight_bits():
    palette = build_palette("digits", MAX_VOCAB)
    ids = torch.randint(MAX_VOCAB, (5000,), generator=torch.Generator().manual_seed(0))
    pixels = ((palette.encode(ids) + 1) * 127.5).round()
    assert torch.equal(palette.decode(pixels / 127.5 - 1), ids)


@pytest.mark.parametrize("vocab_size", [2, 5, 27, 30, 61, 512, 700])
def test_decode_finds_the_nearest_color_of_all(vocab_size):
    palette = build_palette("shuffled", vocab_size, seed=3)
    points = torch.randn(4000, 3, generator=torch.Generator().manual_seed(1)) * 1.2
    distance = torch.cdist(points.double(), palette.colors.double())
    chosen = distance.gather(1, palette.decode(points)[:, None])[:, 0]
    assert torch.allclose(chosen, distance.min(1).values, atol=1e-6)


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama2", "qwen2.5"])
@pytest.mark.parametrize("book", ["zh_novels/xiyou_ji_simplified.txt", "en_text/gutenberg/pg2701_moby_dick.txt"])
def test_whole_books_survive_png(shared, tokenizer, book, tmp_path):
    tokenizer = load_tokenizer(shared / "tokenizers" / tokenizer)
    (document,) = documents(find_sources([shared / book])[0])
    pieces = list(document.pieces())
    ids = np.concatenate(tokenizer.encode_pieces(pieces, [i == 0 for i in range(len(pieces))])).astype(np.int64)
    palette = build_palette("spread", tokenizer.vocab_size, np.bincount(ids, minlength=tokenizer.vocab_size))
    ids = torch.from_numpy(ids)
    assert torch.equal(through_png(ids, palette, tmp_path / "p.png", img_size=512), ids)


def test_spread_puts_frequent_tokens_farther_apart_than_chance():
    counts = zipf_counts(1000)
    spread = build_palette("spread", 1000, counts).colors[:8]
    shuffled = build_palette("shuffled", 1000).colors[:8]
    nearest = [torch.pdist(colors).min() for colors in (spread, shuffled)]
    assert nearest[0] > 0.9 > 2 * nearest[1] or nearest[0] > 2 * nearest[1]


def test_context_separates_tokens_that_follow_the_same_token():
    """Tokens 2i and 2i+1 always stand in the same context: context has to tear them apart more than spread does."""
    rng = np.random.default_rng(0)
    pairs = np.stack([rng.integers(0, 30, 60000), np.zeros(60000, dtype=np.int64)], axis=1)
    pairs[:, 1] = 30 + pairs[:, 0] * 2 + rng.integers(0, 2, 60000)
    counts = np.bincount(pairs.ravel(), minlength=125)
    gaps = []
    for name in ("spread", "context"):
        colors = build_palette(name, 125, counts, pairs).colors
        gaps.append((colors[30:90:2] - colors[31:90:2]).norm(dim=1).min().item())
    assert gaps[1] > gaps[0]


@pytest.mark.parametrize("name", PALETTES)
def test_palettes_are_deterministic_and_travel_in_a_checkpoint(name):
    pairs = np.random.default_rng(0).integers(0, 100, (5000, 2))
    first = build_palette(name, 100, zipf_counts(100), pairs, seed=5)
    again = build_palette(name, 100, zipf_counts(100), pairs, seed=5)
    assert torch.equal(first.slots, again.slots)
    assert torch.equal(Palette.from_state(first.state()).colors, first.colors)


@pytest.mark.parametrize("scan", SCANS)
def test_reading_undoes_painting(scan):
    canvas = Canvas(12, 4, scan)
    values = torch.randn(2, 144, 5)
    assert torch.equal(canvas.read(canvas.paint(values)), values)
    assert torch.equal(canvas.read(canvas.paint(values[..., 0])), values[..., 0])


def test_block_scan_keeps_consecutive_tokens_in_one_patch():
    picture = Canvas(8, 4, "block").paint(torch.arange(64)[None])[0]
    assert set(picture[:4, :4].flatten().tolist()) == set(range(16))
    assert torch.equal(Canvas(8, 4, "raster").paint(torch.arange(64)[None])[0], torch.arange(64).view(8, 8))


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 33, 143, 144])
def test_leading_patches_hold_all_tokens(scan, num_tokens):
    canvas = Canvas(12, 4, scan)
    mask = canvas.paint(torch.arange(144)[None] < num_tokens)
    patches = mask.view(3, 4, 3, 4).transpose(1, 2).reshape(9, 16).any(1)
    count = canvas.patches_for(num_tokens)
    assert patches[:count].sum() == patches.sum() and patches[count - (1 if scan == "block" else 3)]


def test_padding_is_transparent(tmp_path):
    mask = torch.arange(64).view(8, 8) < 20
    save_png(tmp_path / "p.png", torch.ones(3, 8, 8), mask)
    alpha = np.array(Image.open(tmp_path / "p.png"))[..., 3]
    assert np.array_equal(alpha > 0, mask.numpy())


def test_ids_outside_the_palette_and_unknown_names_are_refused():
    palette = build_palette("digits", 300)
    for ids in ([300], [-1, 4]):
        with pytest.raises(UserError, match="do not fit a palette of 300"):
            palette.encode(torch.tensor(ids))
    with pytest.raises(UserError, match="unknown palette"):
        build_palette("rainbow", 300)
    with pytest.raises(UserError, match="unknown scan"):
        Canvas(8, 4, "spiral")


def test_a_picture_of_another_size_or_kind_is_refused(tmp_path):
    Image.new("RGB", (10, 8)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="10x8 pixels; this checkpoint reads 8x8"):
        load_picture(tmp_path / "small.png", 8)
    with pytest.raises(UserError, match="no readable image"):
        load_picture(tmp_path / "text.png", 8)
    with pytest.raises(UserError, match="no image at"):
        load_picture(tmp_path / "absent.png", 8)
