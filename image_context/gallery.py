"""One page that shows what each codec makes of the same text.

    python -m image_context.gallery --output_dir gallery
    python -m image_context.gallery --output_dir gallery --input_file poem.txt --fonts DejaVuSansMono.ttf DroidSansFallback.ttf

Writes gallery.png and the images themselves, one pixel for one pixel.
"""

import argparse
import re
from pydoc_data.topics import topics

from image_context.augment import augment
from image_context.codecs import build_codec
from kit import errors
from kit.arguments import add_common, program
from kit.figures import plt, save
from kit.runlog import clear_numbered, make_folder
from kit.textfile import read_text

# (file name, title, codec, options, augmentation)
SHOWN = (
    ("render", "render: 9 pt", "render", {}, "clean"),
    ("qr", "qr: version 40, level L, 2 pixels", "qr", {"version": 40, "level": "L", "module": 2}, "clean"),
    ("codebook_2", "codebook: 2 colors, 4 pixels", "codebook", {"colors": 2, "module": 4}, "clean"),
    ("codebook_8", "codebook: 8 colors, 4 pixels", "codebook", {"colors": 8, "module": 4}, "clean"),
    ("codebook_64", "codebook: 64 colors, 2 pixels", "codebook", {"colors": 64, "module": 2}, "clean"),
    ("codebook_heavy", "codebook with fiducials and parity, heavy", "codebook",
     {"colors": 8, "module": 4, "frame": "fiducials", "parity": 48}, "heavy"),
)  # fmt: skip
LESS_MEMORY = "pass a shorter text"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--output_dir", required=True, help="folder for the pictures")
    add_common(parser, "overwrite")
    parser.add_argument("--input_file", help="UTF-8 text (default: some of the text every Python carries)")
    parser.add_argument(
        "--fonts", nargs="+", default=["DejaVuSansMono.ttf"], help="fonts of render, first choice first"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    text = topics["assert"] + "\n" + topics["del"] if args.input_file is None else read_text(args.input_file)
    output = make_folder(args.output_dir)
    files = "|".join(["gallery", *(re.escape(row[0]) for row in SHOWN)])
    clear_numbered(output, rf"({files})(_\d+)?\.png", args.overwrite)
    figure, axes = plt.subplots(2, 3, figsize=(12, 8.4), dpi=100)
    for axis, (file, title, name, options, level) in zip(axes.flat, SHOWN):
        codec = build_codec(name, **options, **({"fonts": tuple(args.fonts)} if name == "render" else {}))
        encoded = codec.encode(text)
        images = [augment(image, level, 3) for image in encoded.images]
        for page, image in enumerate(images):
            image.save(output / f"{file}{f'_{page}' if len(images) > 1 else ''}.png")
        tokens, size = codec.visual_tokens(encoded), len(text.encode())
        back = "" if name == "render" else ", reads back" if codec.decode(images) == text else ", DOES NOT READ BACK"
        axis.imshow(images[0], interpolation="nearest")
        pages = f", {len(images)} images" if len(images) > 1 else ""
        axis.set_title(f"{title}\n{tokens} visual tokens{pages}, {size / tokens:.1f} bytes each{back}")
        axis.set_anchor("N")
        axis.axis("off")
    save(figure, output / "gallery.png")
    print(f"wrote {output}/gallery.png and the images it shows")


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
