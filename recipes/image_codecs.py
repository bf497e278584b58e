"""What the codecs carry and what they survive, by algorithm: results/image_context/codecs.json and a table for the README.

    python -m recipes.image_codecs                                        # text that every Python carries, JSON, all of Unicode
    python -m recipes.image_codecs --text chinese=novel.txt english=book.txt --font DroidSansFallback.ttf

Round trips of one megabyte of each text through every codec on clean images; documents of a thousand characters through the
codebook under `light` and `heavy` (geometry included); bytes of text per visual token, ours against QR and rendered text; seconds
until a picture that holds no page is refused. About fifteen minutes on two CPU cores.
"""

import json
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from image_context.augment import augment
from image_context.codecs import DamagedCode, build_codec
from image_context.codecs.encoded import BLOCK
from kit import device
from kit.arguments import program
from kit.errors import UserError
from kit.intervals import mean_interval
from kit.runlog import environment, progress_bar, write_json

OUTPUT = Path("results/image_context/codecs.json")
MEGABYTE = 1_000_000
DENSITIES = (
    ("codebook, 64 colors, 1 px", "codebook", {"colors": 64, "module": 1}),
    ("codebook, 64 colors, 2 px", "codebook", {"colors": 64, "module": 2}),
    ("codebook, 8 colors, 2 px", "codebook", {"colors": 8, "module": 2}),
    ("codebook, 64 colors, 4 px", "codebook", {"colors": 64, "module": 4}),
    ("codebook, 32 colors, 4 px, 48 bytes of parity", "codebook", {"colors": 32, "module": 4, "parity": 48}),
    ("codebook, 16 colors, 4 px", "codebook", {"colors": 16, "module": 4}),
    ("codebook, 16 colors, 4 px, 16 bytes of parity", "codebook", {"colors": 16, "module": 4, "parity": 16}),
    ("codebook, 8 colors, 4 px", "codebook", {"colors": 8, "module": 4}),
    ("codebook, 8 colors, 7 px", "codebook", {"colors": 8, "module": 7}),
    ("codebook, 2 colors, 4 px", "codebook", {"colors": 2, "module": 4}),
    ("QR v40-L, 1 px", "qr", {"version": 40, "level": "L", "module": 1}),
    ("QR v40-M, 3 px", "qr", {"version": 40, "level": "M", "module": 3}),
    ("QR v40-H, 6 px", "qr", {"version": 40, "level": "H", "module": 6}),
)  # fmt: skip
PARITY = 64  # bytes of each 255, where a row does not say otherwise
HOPELESS = 20  # documents of which none survived, after which a codec is given up
PROMISING = 0.98  # share of --documents that survived, for --thorough to be measured
PARTS = ("round_trips", "render", "density", "jab_code", "refusals", "survival")
PICTURE = (2000, 1500)  # pixels of what holds no page
TURNS = 3  # of which the median is kept
JAB_RATE = 1 - 4 / 9  # of JAB Code's low-density parity-check code at its default level 3 (ISO/IEC 23634: wc 4, wr 9)


def main() -> None:
    parser = program(__doc__)
    parser.add_argument(
        "--text", nargs="*", default=[], metavar="NAME=FILE", help="UTF-8 texts to carry, beside the built-in ones"
    )
    parser.add_argument("--font", action="append", default=[], help="font of render beside DejaVu Sans Mono")
    parser.add_argument("--documents", type=int, default=100, help="under each augmentation (default: %(default)s)")
    parser.add_argument(
        "--thorough", type=int, default=1000, help="as many, where hardly one of them was lost (default: %(default)s)"
    )
    parser.add_argument(
        "--survivors",
        nargs="+",
        metavar="NAME",
        help="codecs augmented; others keep their rows (default: all but the finest)",
    )
    parser.add_argument(
        "--parts", nargs="+", default=PARTS, choices=PARTS, help="measured; others keep their rows (default: all)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="(default: %(default)s)")
    args = parser.parse_args()
    runtime = device.start("cpu")
    texts = built_in() | {
        name: megabyte(Path(file).read_text("utf-8-sig")) for name, file in (t.split("=", 1) for t in args.text)
    }
    fonts = ("DejaVuSansMono.ttf", *args.font)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(args.output.read_text()) if args.output.exists() else {}
    report = {"parity": PARITY, "environment": environment(runtime), "measured_later": {}} | report
    rows = {
        "round_trips": lambda: round_trips(texts), "render": lambda: rendered(texts, fonts), "density": lambda: density(texts),
        "jab_code": jab_code, "refusals": lambda: refusals(texts["english"]), "survival": lambda: survival(texts, args.documents, args.thorough, args.survivors),
    }  # fmt: skip
    for part in args.parts:
        if part in report:
            report["measured_later"][part] = environment(runtime)
        kept = report.get(part, []) if part == "survival" and args.survivors else []
        report[part] = [row for row in kept if row["codec"] not in args.survivors]
        for row in rows[part]():
            print(row, flush=True)
            report[part].append(row)
            write_json(args.output, report)
    print(f"wrote {args.output}")


def built_in() -> dict[str, str]:
    """A megabyte of Python's documentation and sources, of JSON, and of characters from all of Unicode."""
    from pydoc_data.topics import topics

    from image_context.vlm import python_text

    rng = random.Random(0)
    code = "".join(topics.values()) + "".join(python_text())
    values = [
        {"id": i, "name": "".join(rng.choices("abcdefghij", k=9)), "score": rng.random(), "tags": [None, True, "ü"]}
        for i in range(20_000)
    ]
    planes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    return {
        "english": megabyte(code), "json": megabyte(json.dumps(values, ensure_ascii=False, indent=1)),
        "unicode": megabyte("".join(map(chr, rng.choices(planes, k=300_000)))),
    }  # fmt: skip


def megabyte(text: str) -> str:
    """The beginning of a text, at most a megabyte of UTF-8."""
    return text.encode()[:MEGABYTE].decode("utf-8", "ignore")


def round_trips(texts: dict[str, str]) -> Iterator[dict]:
    """Whole megabytes through every codec that has a decoder, on clean images."""
    for name, options in (
        ("text", {}), ("codebook", {}), ("codebook", {"parity": 32, "frame": "fiducials"}), ("codebook", {"payload": "zstd"}),
        ("codebook", {"colors": 64, "module": 2}), ("qr", {"version": 40, "level": "M", "module": 2}),
    ):  # fmt: skip
        codec = build_codec(name, **options)
        for label, text in texts.items():
            start = time.perf_counter()
            encoded = codec.encode(text)
            written = time.perf_counter()
            exact = codec.decode(encoded.images, encoded.text) == text
            yield {
                "codec": name, "options": options, "text": label, "bytes": len(text.encode()), "exact": exact,
                "images": len(encoded.images), "visual_tokens": codec.visual_tokens(encoded),
                "encode_seconds": written - start, "decode_seconds": time.perf_counter() - written,
            }  # fmt: skip


def rendered(texts: dict[str, str], fonts: tuple[str, ...]) -> Iterator[dict]:
    """What render has instead of a decoder: every glyph is drawn, every line break is kept."""
    codec = build_codec("render", fonts=fonts)
    for label, text in texts.items():
        text = "".join(c if c in "\n\t" or c.isprintable() else " " for c in text)
        try:
            lines = codec.lines(text)
        except UserError as error:
            yield {"text": label, "refused": str(error)}
            continue
        kept = "".join(line.text + "\n" * (not line.wraps) for line in lines)
        encoded = codec.encode(text)
        ink = all(np.asarray(image.convert("L")).min() < 128 for image in encoded.images)
        tokens = codec.visual_tokens(encoded)
        yield {
            "text": label, "line_breaks_kept": kept == text.expandtabs(4) + "\n", "every_page_has_ink": ink,
            "pages": len(encoded.images), "visual_tokens": tokens, "bytes_per_visual_token": len(text.encode()) / tokens,
        }  # fmt: skip


def density(texts: dict[str, str]) -> Iterator[dict]:
    """Bytes of English per visual token of a long document."""
    text = texts["english"][:200_000]
    for label, name, options in DENSITIES:
        codec = build_codec(name, **options | {"parity": 0} if name == "codebook" else options)
        yield {"codec": label, "bytes_per_visual_token": len(text.encode()) / codec.visual_tokens(codec.encode(text))}


def jab_code() -> Iterator[dict]:
    """Of the nearest relative, JAB Code, by its standard: bytes in the area of a visual token, were all its modules data."""
    for colors, module in ((8, 4), (8, 2)):
        modules = (BLOCK / module) ** 2 * math.log2(colors) / 8
        yield {"colors": colors, "module": module, "bytes_per_visual_token": modules, "corrected": modules * JAB_RATE}


def refusals(text: str) -> Iterator[dict]:
    """Seconds until a picture that holds no page is refused: white, noise, a blurred photograph's like, a page of print."""
    codec = build_codec("codebook", frame="fiducials")
    noise = np.random.default_rng(0).integers(0, 256, (*PICTURE[::-1], 3), np.uint8)
    printed = Image.new("RGB", PICTURE, "white")
    printed.paste(build_codec("render", page_width=PICTURE[0] // BLOCK * BLOCK).encode(text[:8000]).images[0])
    pictures = {
        "white": Image.new("RGB", PICTURE, "white"), "noise": Image.fromarray(noise),
        "blurred": Image.fromarray(noise[:12, :16]).resize(PICTURE, Image.Resampling.BICUBIC), "print": printed,
    }  # fmt: skip
    for label, image in pictures.items():
        seconds = []
        for _ in range(TURNS):
            start = time.perf_counter()
            with suppress(DamagedCode):
                codec.decode([image])
                raise RuntimeError(f"a page was read from {label}")
            seconds.append(time.perf_counter() - start)
        yield {"picture": label, "size": PICTURE, "seconds": statistics.median(seconds)}


def survival(texts: dict[str, str], count: int, thorough: int, chosen: list[str] | None) -> Iterator[dict]:
    """Documents that come back exactly after augmentation; the codebook with parity and fiducials, QR as it is."""
    for label, name, options in DENSITIES:
        if label not in chosen if chosen else options.get("module") == 1:
            continue
        if name == "codebook":
            options = {"parity": PARITY, **options, "frame": "fiducials"}
        codec = build_codec(name, **options)
        documents = []
        for index in range(thorough):
            source = list(texts.values())[index % len(texts)]
            at = random.Random(index).randrange(len(source) - 1000)
            documents.append(source[at : at + 1000])
        for level in ("light", "heavy"):
            found = []
            bar = progress_bar(thorough, f"{label}, {level}", unit="document")
            with get_context("spawn").Pool(initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for result in pool.imap(partial(survives, codec, level), enumerate(documents)):
                    found.append(result)
                    bar.update()
                    share = sum(exact for exact, _, _ in found) / len(found)
                    if (len(found) == HOPELESS and not share) or (len(found) == count and share < PROMISING):
                        break  # the rest would only take time
            bar.close()
            right, tokens, size = zip(*found)
            yield {
                "codec": label, "options": options, "augmentation": level, "documents": len(right),
                "exact": sum(right) / len(right), "interval": mean_interval(right), "bytes_per_visual_token": sum(size) / sum(tokens),
            }  # fmt: skip


def survives(codec, level: str, job: tuple[int, str]) -> tuple[float, int, int]:
    """Whether a numbered document comes back exactly, its visual tokens and its bytes."""
    index, text = job
    encoded = codec.encode(text)
    try:
        exact = codec.decode([augment(image, level, index) for image in encoded.images]) == text
    except DamagedCode:
        exact = False
    return float(exact), codec.visual_tokens(encoded), len(text.encode())


if __name__ == "__main__":
    sys.exit(main())
