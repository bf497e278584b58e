"""Colors, pictures and files carry token ids without loss, and palettes keep the promises of their names."""

import numpy as np
import pytest
import torch

from corpus.documents import documents, find_sources
from corpus.loader import collate
from corpus.tokenizer import load_tokenizer
from kit.errors import UserError
from palette import (
    MAX_VOCAB,
    PALETTES,
    SCANS,
    Layout,
    Palette,
    build_palette,
    levels_per_channel,
)
from picture import load_image, save_png


def zipf_counts(vocab_size):
    return (1e6 / np.arange(1, vocab_size + 1)).astype(np.int64)


def through_png(ids, palette, path, img_size=64, patch_size=4, scan="block"):
    """ids -> pictures -> PNG files -> ids."""
    layout, found = Layout(img_size, patch_size, scan), []
    for start in range(0, len(ids), layout.num_positions):
        part = ids[start : start + layout.num_positions]
        mask = torch.ones(1, len(part), dtype=torch.bool)
        save_png(path, layout.to_image(palette.encode(part[None]))[0], layout.to_image(mask)[0], "")
        picture, shown, _ = load_image(path, img_size)
        found.append(palette.decode(layout.from_image(picture[None]))[layout.from_image(shown[None])])
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


@pytest.mark.parametrize("vocab_size", [30, 64, 700, 4913, 5000])
@pytest.mark.parametrize("reach", [1, 2])
def test_the_tokens_around_a_color_are_those_on_the_lattice_points_around_it(vocab_size, reach):
    palette = build_palette("shuffled", vocab_size, seed=1)
    k = palette.levels
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) * 0.8
    place = (points + 1) * (k - 1) / 2
    low = place.floor().clamp(reach - 1, k - 1 - reach) - reach + 1  # the cube of 2 reach points stays on the lattice
    digits = (palette.colors + 1) * (k - 1) / 2
    apart = (digits - low[:, None]).round()
    expected = ((apart >= 0) & (apart < 2 * reach)).all(-1)
    ids, exists = palette.around(points, reach)
    for row, there, wanted in zip(ids, exists, expected):
        assert sorted(row[there].tolist()) == wanted.nonzero().flatten().tolist()
    assert (ids[~exists] == 0).all() and (exists.any(1).all() or reach == 1)


@pytest.mark.parametrize("vocab_size", [4913, 5000])
def test_the_nearest_token_is_among_those_around_a_color(vocab_size):
    palette = build_palette("shuffled", vocab_size)
    points = palette.colors + 0.7 * palette.spacing * torch.randn(vocab_size, 3)
    ids, exists = palette.around(points)
    assert ((ids == palette.decode(points)[:, None]) & exists).any(1).all()


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("shape", [(), (5,)])
def test_layouts_are_undone(scan, shape):
    layout = Layout(12, 4, scan)
    values = torch.randn(2, 144, *shape)
    assert torch.equal(layout.from_image(layout.to_image(values)), values)
    for count in range(layout.multiple, 145, layout.multiple):
        part = values[:, :count]
        assert torch.equal(layout.from_patches(layout.to_patches(part)), part)
        assert torch.equal(layout.to_patches(layout.from_patches(part)), part)


@pytest.mark.parametrize("scan", SCANS)
def test_patch_order_is_the_order_of_the_patches_of_the_image(scan):
    layout = Layout(12, 4, scan)
    values = torch.arange(1, 145)[None]
    for count in range(layout.multiple, 145, layout.multiple):
        part = values[:, :count]
        patches = layout.to_image(part).view(3, 4, 3, 4).transpose(1, 2).reshape(1, 144)
        assert torch.equal(layout.to_patches(part), patches[:, :count]) and (patches[:, count:] == 0).all()


def test_block_keeps_consecutive_tokens_in_one_patch_and_raster_has_them_row_by_row():
    image = Layout(8, 4, "block").to_image(torch.arange(64)[None])[0]
    assert image[:4, :4].flatten().tolist() == list(range(16)) and image[:4, 4:].flatten().tolist() == list(
        range(16, 32)
    )
    raster = Layout(8, 4, "raster")
    assert torch.equal(raster.to_image(torch.arange(64)[None])[0], torch.arange(64).view(8, 8))
    rows = [[0, 1, 2, 3], [8, 9, 10, 11], [16, 17, 18, 19], [24, 25, 26, 27]]
    assert raster.to_patches(torch.arange(64)[None])[0, :16].view(4, 4).tolist() == rows


@pytest.mark.parametrize("scan", SCANS)
def test_colors_lie_where_their_tokens_lie(scan):
    palette, layout = build_palette("shuffled", 64), Layout(8, 4, scan)
    tokens = torch.randperm(64, generator=torch.Generator().manual_seed(0))[None]
    image = layout.to_image(palette.encode(tokens))
    assert image.shape == (1, 3, 8, 8)
    assert torch.equal(palette.decode(image.permute(0, 2, 3, 1)), layout.to_image(tokens))


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 33, 48, 49, 143, 144])
def test_a_text_is_padded_to_the_patches_that_hold_it_and_no_further(scan, num_tokens):
    layout = Layout(12, 4, scan)
    mask = collate([torch.ones(num_tokens, dtype=torch.long)], layout.multiple)["mask"]
    patches = layout.to_patches(mask).view(-1, 16).any(1)
    image = layout.to_image(mask)[0]
    assert image.sum() == num_tokens == layout.to_patches(mask).sum()
    whole = image.view(3, 4, 3, 4).transpose(1, 2).reshape(9, 16).any(1)
    assert patches.sum() == whole.sum() and patches[-1 if scan == "block" else -3]


def test_ids_outside_the_palette_and_unknown_names_are_refused():
    palette = build_palette("digits", 300)
    for ids in ([300], [-1, 4]):
        with pytest.raises(UserError, match="do not fit a palette of 300"):
            palette.encode(torch.tensor(ids))
    with pytest.raises(UserError, match="unknown palette"):
        build_palette("rainbow", 300)
    with pytest.raises(UserError, match="unknown scan"):
        Layout(8, 4, "spiral")


@pytest.mark.parametrize("vocab_size", [7, 17**3, 5000])
def test_a_product_over_the_channels_is_summed_over_the_used_slots_alone(vocab_size):
    palette = build_palette("shuffled", vocab_size)
    k = palette.levels
    factors = torch.rand(4, 3, k, dtype=torch.float64)
    digits = torch.stack([palette.slots % k, palette.slots // k % k, palette.slots // (k * k)])
    expected = torch.stack([f[0, digits[0]] * f[1, digits[1]] * f[2, digits[2]] for f in factors]).sum(-1)
    assert torch.allclose(palette.total(factors), expected)
