"""A text that a codec writes comes back to the letter, also from an image that something has happened to."""

import random
import time
from dataclasses import replace

import numpy as np
import pytest
import segno
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from image_context import convert
from image_context.augment import augment
from image_context.codecs import DamagedCode, build_codec
from image_context.codecs.encoded import BLOCK
from image_context.codecs.layout import COLORS, MODULES, Layout
from image_context.codecs.page import Header
from image_context.codecs.rectify import FINDER
from kit.errors import UserError

# any character that is one: everything but halves of surrogate pairs
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
QUICK = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SAMPLE = 'The quick brown fox, 灵根育孕源流出，心性修持大道生。\n\t{"a": [1, null]}\r\n' * 12


# ----------------------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("options", [
    {}, {"frame": "fiducials", "parity": 24}, {"frame": "none"}, {"payload": "zstd"}, {"colors": 64, "module": 2}, {"colors": 2, "module": 7},
], ids=str)  # fmt: skip
@QUICK
@given(text=TEXTS)
@example(text="")
@example(text="\0\ufeff\r\n\u2028e\u0301")
def test_codebook_carries_any_text(options, text):
    codec = build_codec("codebook", **options)
    assert codec.decode(codec.encode(text).images) == text


@QUICK
@given(text=TEXTS)
@example(text="")
def test_qr_carries_any_text(text):
    codec = build_codec("qr", version=12, level="Q", module=2)
    assert codec.decode(codec.encode(text).images) == text


@pytest.mark.parametrize("level", "LMQH")
def test_every_qr_version_and_level_is_filled_and_read(level):
    for version in range(1, 41):
        if version < 3 and level in "QH":
            continue
        codec = build_codec("qr", version=version, level=level, module=2)
        text = (SAMPLE * 30).encode().decode("ascii", "ignore")[: codec.capacity]  # one full symbol
        encoded = codec.encode(text)
        assert len(encoded.images) == 1 and codec.decode(encoded.images) == text, version


@pytest.mark.parametrize("colors", COLORS)
@pytest.mark.parametrize("module", MODULES)
def test_every_palette_and_module_size(colors, module):
    if (BLOCK // module) ** 2 * (colors.bit_length() - 1) < 8:
        with pytest.raises(UserError, match="no symbol of 8 bits"):
            build_codec("codebook", colors=colors, module=module)
    else:
        codec = build_codec("codebook", colors=colors, module=module)
        assert codec.decode(codec.encode(SAMPLE).images) == SAMPLE


def test_token_ids_travel_k_to_a_block_in_reading_order(bpe):
    codec = build_codec(
        "codebook", payload="tokens", tokenizer=bpe, module=7, colors=8, symbols_per_block=4, frame="none"
    )
    encoded = codec.encode(SAMPLE)
    ids = [*bpe.encode(SAMPLE), bpe.vocab_size]
    assert codec.visual_tokens(encoded) >= -(-len(ids) // 4)
    page = np.asarray(encoded.images[0])
    width = page.shape[1] // BLOCK
    for block in (0, width + 1):  # a page of this one block says these four ids
        y, x = block // width * BLOCK, block % width * BLOCK
        part = np.zeros((2 * BLOCK, 2 * BLOCK, 3), np.uint8)
        part[:BLOCK, :BLOCK] = page[y : y + BLOCK, x : x + BLOCK]
        part[:BLOCK, BLOCK:] = np.asarray(codec.encode("").images[0])[:BLOCK, :BLOCK]  # the end symbol
        assert codec.decode([Image.fromarray(part)]) == bpe.decode(ids[4 * block : 4 * block + 4])
    assert codec.decode(encoded.images) == SAMPLE


def test_long_texts_take_pages_that_may_come_in_any_order():
    for codec in (build_codec("codebook", max_side=8, parity=16, frame="fiducials"), build_codec("qr", version=5)):
        images = codec.encode(SAMPLE).images
        assert len(images) > 1
        assert codec.decode(images[::-1]) == SAMPLE


def test_a_header_is_enough_to_read_a_page():
    written = build_codec("codebook", colors=64, module=2, parity=16, frame="fiducials", payload="zstd").encode(SAMPLE)
    assert build_codec("codebook").decode(written.images) == SAMPLE


# ----------------------------------------------------------------------------------------------------------------------
# Images that something has happened to


@pytest.mark.parametrize("level", ["light", "heavy"])
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(st.characters(exclude_categories=("Cs",)), min_size=40, max_size=400), seed=st.integers(0, 999))
def test_codebook_with_parity_survives_augmentation(level, text, seed):
    codec = build_codec("codebook", parity=48, frame="fiducials")
    images = [augment(image, level, seed) for image in codec.encode(text).images]
    assert codec.decode(images) == text


@pytest.mark.parametrize("seed", [13, 31])
@pytest.mark.parametrize(("colors", "parity"), [(16, 16), (32, 32)])
def test_what_noise_and_jpeg_leave_is_read_where_distances_alone_do_not_do(colors, parity, seed):
    """Blur of nearly a pixel and JPEG of quality 50 and 60: by distances of colors one module in thirty is wrong."""
    codec = build_codec("codebook", colors=colors, module=4, parity=parity, frame="fiducials")
    assert (
        codec.decode([augment(image, "heavy", seed) for image in codec.encode(SAMPLE[:1000]).images]) == SAMPLE[:1000]
    )


@settings(max_examples=6, deadline=None, derandomize=True)
@given(text=TEXTS, seed=st.integers(0, 999))
def test_qr_survives_a_scan(text, seed):
    codec = build_codec("qr", version=10, module=4)
    assert codec.decode([augment(image, "light", seed) for image in codec.encode(text).images]) == text


@pytest.mark.parametrize("change", [
    lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.BICUBIC),
    lambda image: image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.BICUBIC),
    lambda image: image.transpose(Image.ROTATE_90),
    lambda image: image.rotate(180),
], ids=["larger", "smaller", "quarter turn", "half turn"])  # fmt: skip
@pytest.mark.parametrize("options", [{"frame": "header"}, {"frame": "fiducials"}, {"columns": 1}], ids=str)
def test_a_page_is_found_scaled_and_turned(change, options):
    codec = build_codec("codebook", parity=32, **options)
    assert codec.decode([change(image) for image in codec.encode(SAMPLE).images]) == SAMPLE


def test_a_turned_page_is_found_by_its_fiducials():
    codec = build_codec("codebook", frame="fiducials", parity=32)
    image = codec.encode(SAMPLE).images[0]
    for angle in (-7, 4, 94):
        turned = image.rotate(angle, Image.BICUBIC, expand=True, fillcolor="white")
        assert codec.decode([turned]) == SAMPLE, angle


def test_augmentations_are_seeded_and_clean_does_nothing():
    image = build_codec("codebook").encode(SAMPLE).images[0]
    assert augment(image, "clean", 3) is image
    first, again, other = (np.asarray(augment(image, "heavy", seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and (first.shape != other.shape or not np.array_equal(first, other))
    with pytest.raises(UserError, match="unknown augmentation 'foggy'"):
        augment(image, "foggy", 0)


# ----------------------------------------------------------------------------------------------------------------------
# Damage


def spoil(image, share):
    """The lowest rows of blocks painted over."""
    pixels = np.asarray(image).copy()
    rows = pixels.shape[0] // BLOCK
    pixels[-max(1, round(rows * share)) * BLOCK :] = 128
    return Image.fromarray(pixels)


def test_parity_corrects_what_is_painted_over():
    codec = build_codec("codebook", parity=96)
    image = codec.encode(SAMPLE * 3).images[0]
    pixels = np.asarray(image).copy()
    pixels[3 * BLOCK : 4 * BLOCK, : 5 * BLOCK] = 90
    assert codec.decode([Image.fromarray(pixels)]) == SAMPLE * 3


def test_damage_beyond_repair_says_how_much_is_lost_and_gives_the_rest():
    text = SAMPLE * 3
    codec = build_codec("codebook", max_side=9, parity=16)
    images = codec.encode(text).images
    with pytest.raises(DamagedCode, match=r"\d+ of \d+ symbols cannot be read") as raised:
        codec.decode([images[0], spoil(images[1], 0.4), *images[2:]])
    assert raised.value.lost > 0
    start, rest = raised.value.text.split("\ufffd", 1)
    end = rest.rsplit("\ufffd", 1)[1]
    assert len(start) > 100 and text.startswith(start) and len(end) > 100 and text.endswith(end)
    bare = build_codec("codebook", frame="none")
    page = spoil(bare.encode(SAMPLE).images[0], 0.3)
    with pytest.raises(DamagedCode, match="no end symbol") as raised:
        bare.decode([page])
    assert SAMPLE.startswith(raised.value.text[:500])


def test_without_parity_a_damaged_page_is_given_as_read_and_called_doubtful():
    codec = build_codec("codebook")
    image = codec.encode(SAMPLE).images[0]
    pixels = np.asarray(image).copy()
    pixels[4 * BLOCK : 5 * BLOCK, 3 * BLOCK : 4 * BLOCK] = 0
    with pytest.raises(DamagedCode, match="are doubtful: their page fails its checksum") as raised:
        codec.decode([Image.fromarray(pixels)])
    assert len(raised.value.text) > 0.9 * len(SAMPLE) and SAMPLE.startswith(raised.value.text[:200])
    assert codec.decode([image, Image.fromarray(pixels)]) == codec.decode([Image.fromarray(pixels), image]) == SAMPLE


def test_a_codeword_beyond_correction_costs_no_other_byte():
    layout = Layout(8, 4, 8, 18, 16)
    data = np.random.default_rng(0).integers(0, 256, (230, 18), np.uint8)
    parity, m = layout.add_parity(data), layout.codewords(230)
    broken = data.copy().reshape(-1)
    broken[: 12 * m : m] ^= 0x55
    corrected, failed = layout.correct(broken.reshape(data.shape), parity)
    assert m > 10 and failed.reshape(-1).nonzero()[0].tolist() == list(range(0, data.size, m))
    assert (corrected[~failed] == data[~failed]).all() and layout.affected(failed).sum() == failed.sum()


def test_other_codes_in_the_picture_are_left_alone():
    ours = build_codec("qr", version=10, module=2)
    foreign = Image.new("RGB", (400, 400), "white")
    matrix = np.array([list(row) for row in segno.make("https://example.com").matrix], np.uint8)
    side = Image.fromarray((1 - matrix).repeat(4, 0).repeat(4, 1) * np.uint8(255))
    foreign.paste(side, (40, 40))
    with pytest.raises(DamagedCode, match="no QR symbol"):
        ours.decode([foreign])
    assert ours.decode([foreign, *ours.encode(SAMPLE[:100]).images]) == SAMPLE[:100]


def test_bullseyes_that_are_not_four_are_no_page():
    lone = Image.new("RGB", (56, 56), "white")
    lone.paste(Image.fromarray(FINDER), (14, 14))
    strip = Image.new("RGB", (28, 140), "white")
    for y in (0, 112):
        strip.paste(Image.fromarray(FINDER), (0, y))
    for image in (lone, strip):
        with pytest.raises(DamagedCode, match="no codebook page"):
            build_codec("codebook").decode([image])


def test_missing_pages_and_symbols_are_counted():
    book, qr = build_codec("codebook", max_side=8), build_codec("qr", version=5)
    pages, symbols = book.encode(SAMPLE).images, qr.encode(SAMPLE).images
    with pytest.raises(DamagedCode, match=f"1 of {len(pages)} pages are missing") as raised:
        book.decode([pages[0], *pages[2:]])
    start, rest = raised.value.text.split("\ufffd", 1)
    assert len(start) > 100 and SAMPLE.startswith(start) and SAMPLE.endswith(rest.lstrip("\ufffd")) and rest
    with pytest.raises(DamagedCode, match=f"2 of {len(symbols)} QR symbols cannot be read") as raised:
        qr.decode(symbols[:-2])
    assert SAMPLE.startswith(raised.value.text.rstrip("\ufffd")) and raised.value.text
    packed = build_codec("codebook", payload="zstd", max_side=24)
    long = "".join(random.Random(0).choices("abcdefgh", k=400_000))
    with pytest.raises(DamagedCode, match="pages are missing") as raised:
        packed.decode(packed.encode(long).images[:-1])
    assert len(raised.value.text) > 100_000 and long.startswith(raised.value.text.rstrip("\ufffd"))


@pytest.mark.parametrize("name", ["codebook", "qr"])
def test_an_image_without_code_is_refused(name):
    noise = np.random.default_rng(0).integers(0, 256, (112, 140, 3), np.uint8)
    for image in (Image.new("RGB", (112, 112), "white"), Image.fromarray(noise), Image.new("RGB", (3, 5))):
        with pytest.raises(DamagedCode, match=r"no codebook page|no QR symbol"):
            build_codec(name).decode([image])


def test_a_photograph_without_a_page_is_refused_within_seconds():
    rough = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    photograph, codec = Image.fromarray(rough).resize((2000, 1500), Image.BICUBIC), build_codec("codebook")
    codec.decode(codec.encode(SAMPLE).images)  # what is set up once
    start = time.thread_time()
    with pytest.raises(DamagedCode, match="no codebook page"):
        codec.decode([photograph])
    assert time.thread_time() - start < 3


@pytest.mark.parametrize("stretched", [0.996, 1.004])
def test_a_page_that_was_scaled_a_little_unevenly_is_read(stretched):
    (page,) = build_codec("codebook", parity=32).encode(SAMPLE[:700]).images
    uneven = page.resize((round(page.width * 1.37), round(page.height * 1.37 * stretched)), Image.BICUBIC)
    assert build_codec("codebook").decode([uneven]) == SAMPLE[:700]


def test_a_header_that_is_never_written_is_none():
    layout = Layout(8, 4, 8, 18, 0)
    header = Header(layout, False, "bytes", 0, 0, 1, 5, 0, 0)
    assert Header.from_bytes(header.to_bytes()) == header
    strange_ones = (
        replace(layout, module=5),
        replace(layout, colors=128),
        replace(layout, per_block=0),
        replace(layout, parity=255),
    )
    for strange in strange_ones:
        assert Header.from_bytes(replace(header, layout=strange).to_bytes()) is None


def test_pages_of_two_texts_are_not_mixed():
    for codec in (build_codec("codebook"), build_codec("qr")):
        with pytest.raises(DamagedCode, match=r"several texts|of 2 texts"):
            codec.decode([*codec.encode("one").images, *codec.encode("two").images])


# ----------------------------------------------------------------------------------------------------------------------
# Drawn text


FONTS = ("DejaVuSansMono.ttf", "DejaVuSans.ttf")


def test_render_keeps_line_breaks_and_indentation():
    text = "def f(x):\n    if x:\n\treturn 1\n\n" + "long line " * 40 + "\n  end"
    codec = build_codec("render", fonts=FONTS)
    lines = codec.lines(text)
    assert any(line.wraps for line in lines)
    assert "".join(line.text + "\n" * (not line.wraps) for line in lines) == text.expandtabs(4) + "\n"


def test_render_draws_every_glyph_in_its_place():
    text = "".join(map(chr, range(33, 127)))
    codec = build_codec("render", fonts=FONTS, font_size=9)
    full = np.asarray(codec.encode(text).images[0].convert("L"))
    for at in range(len(text)):
        without = np.asarray(codec.encode(text[:at] + " " + text[at + 1 :]).images[0].convert("L"))
        changed = np.flatnonzero((full != without[:, : full.shape[1]]).any(0))
        advance = codec._glyph("x")[1]
        left = 10 + at * advance
        assert len(changed) and changed.min() >= left - 2 and changed.max() <= left + advance + 2, text[at]


def test_render_takes_pages_of_whole_blocks():
    encoded = build_codec("render", fonts=FONTS).encode("word " * 6000)
    assert len(encoded.images) > 1
    assert all(side % BLOCK == 0 for image in encoded.images for side in image.size)
    assert build_codec("render").visual_tokens(encoded) == sum(i.width * i.height for i in encoded.images) // BLOCK**2


def test_render_draws_chinese(shared):
    codec = build_codec("render", fonts=("DejaVuSansMono.ttf", shared / "fonts" / "DroidSansFallback.ttf"))
    text = (shared / "zh_novels" / "xiyou_ji_simplified.txt").read_text(encoding="utf-8")[:3000]
    assert np.asarray(codec.encode(text).images[0]).min() == 0


def test_render_refuses_a_character_without_glyph_and_a_missing_font():
    with pytest.raises(UserError, match=r"no glyph for .灵. \(U\+7075\) in DejaVuSansMono"):
        build_codec("render").encode("灵")
    with pytest.raises(UserError, match=r"no font at nowhere\.ttf"):
        build_codec("render", fonts=("nowhere.ttf",)).encode("a")
    with pytest.raises(UserError, match="render has no decoder"):
        build_codec("render").decode([])


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize("name, options, message", [
    ("morse", {}, "unknown codec 'morse'; choose from text, render, codebook, qr"),
    ("codebook", {"colours": 8}, "codec codebook has no option 'colours'"),
    ("codebook", {"colors": 5}, "codebook colors 5: choose from 2, 4, 8, 16, 32, 64"),
    ("codebook", {"module": 3}, "codebook module 3"),
    ("codebook", {"payload": "tokens"}, "needs a tokenizer"),
    ("codebook", {"symbols_per_block": 99}, "18 symbols of 8 bits fit a block"),
    ("codebook", {"parity": 300}, "need 0 to 128"),
    ("codebook", {"max_side": 2}, "no room for data"),
    ("qr", {"version": 41}, "no QR version 41"),
    ("qr", {"version": 1, "level": "H"}, "no room beside"),
    ("render", {"font_size": 0}, "need a positive number"),
    ("render", {"margin": 400}, "leave no room"),
])  # fmt: skip
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(UserError, match=message.replace("(", "\\(")):
        build_codec(name, **options)


def test_half_a_surrogate_pair_is_refused():
    for codec in (build_codec("codebook"), build_codec("qr")):
        with pytest.raises(UserError, match="half a surrogate pair at character 2"):
            codec.encode("ab\ud800")


def test_a_tokenizer_that_loses_text_is_refused(bpe, shared):
    lossy = build_codec("codebook", payload="tokens", tokenizer=shared / "tokenizers" / "qwen2.5")
    with pytest.raises(UserError, match="does not give the text back exactly"):
        lossy.encode("e\u0301")  # its normalizer composes
    written = build_codec("codebook", payload="tokens", tokenizer=bpe).encode(SAMPLE)
    with pytest.raises(UserError, match="ids of another tokenizer"):
        lossy.decode(written.images)


# ----------------------------------------------------------------------------------------------------------------------
# The command


def test_a_file_goes_to_pages_and_back(call, tmp_path):
    (tmp_path / "text.txt").write_bytes(SAMPLE.encode())
    for codec, options in (("codebook", ["colors=16", "max_side=8"]), ("qr", ["version=10", "level=Q", "module=2"])):
        pages, back = tmp_path / codec, tmp_path / f"{codec}.txt"
        assert (
            call(
                convert,
                "encode",
                "--codec",
                codec,
                "--option",
                *options,
                "--input_file",
                tmp_path / "text.txt",
                "--output_dir",
                pages,
            )
            == 0
        )
        assert call(convert, "decode", "--codec", codec, "--input", pages, "--output_file", back) == 0
        assert back.read_bytes() == SAMPLE.encode()


def test_the_command_gives_what_is_whole_and_refuses_the_rest(call, refused, tmp_path):
    (tmp_path / "text.txt").write_bytes(SAMPLE.encode())
    encode = ("encode", "--input_file", tmp_path / "text.txt", "--output_dir", tmp_path / "pages")
    assert call(convert, *encode, "--option", "max_side=8") == 0
    assert "is not empty" in refused(convert, *encode)
    (tmp_path / "pages" / "page_0001.png").unlink()
    told = refused(convert, "decode", "--input", tmp_path / "pages", "--output_file", tmp_path / "back.txt")
    assert "pages are missing" in told and "what could be read is in" in told
    assert SAMPLE.encode().startswith((tmp_path / "back.txt").read_bytes()[:200])
    Image.new("RGB", (84, 84)).save(tmp_path / "blank.png")
    (tmp_path / "fake.png").write_bytes(b"no image")
    assert "no codebook page" in refused(convert, "decode", "--input", tmp_path / "blank.png")
    assert "is no readable image" in refused(convert, "decode", "--input", tmp_path / "fake.png")
    assert "write NAME=VALUE" in refused(convert, *encode, "--option", "colors")
    assert "colors 'many': Input should be a valid integer" in refused(convert, *encode, "--option", "colors=many")
    assert "cannot read" in refused(
        convert, "encode", "--input_file", tmp_path / "none", "--output_dir", tmp_path / "x"
    )
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    assert "is not UTF-8" in refused(
        convert, "encode", "--input_file", tmp_path / "latin.txt", "--output_dir", tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()
