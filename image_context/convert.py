"""Text to images and back, by any codec, without a model.

    python -m image_context.convert encode --codec codebook --input_file book.txt --output_dir pages
    python -m image_context.convert encode --codec codebook --option colors=64 module=2 parity=32 --input_file book.txt --output_dir pages
    python -m image_context.convert decode --codec codebook --input pages --output_file book.txt
    python -m image_context.convert decode --codec qr --input photo1.jpg photo2.jpg

`encode` writes page_0000.png ... and prints what they cost; `--option` names the codec's options (fields of its class in codecs/).
`decode` reads images or folders of them. What is damaged beyond repair is counted, what is whole is written all the same, and the
exit code is 2.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from image_context.codecs import CODECS, PAGE_PIXELS, DamagedCode, build_codec
from kit import errors
from kit.arguments import program
from kit.errors import UserError
from kit.images import open_image
from kit.textfile import read_text, write_text
from kit.whole import whole_folder

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CHOICES = ("codebook", "qr", "render")
LESS_MEMORY = "pass a shorter text, or fewer images"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    write, read = (
        commands.add_parser("encode", help="text to images"),
        commands.add_parser("decode", help="images to text"),
    )
    for command in (write, read):
        command.add_argument("--codec", default="codebook", choices=CHOICES, help="(default: %(default)s)")
        command.add_argument("--option", nargs="+", default=[], metavar="NAME=VALUE", help="options of the codec")
    write.add_argument("--input_file", required=True, help="UTF-8 text")
    write.add_argument("--output_dir", required=True, help="folder for the pages; must be new or empty")
    read.add_argument("--input", required=True, nargs="+", help="images, or folders of them")
    read.add_argument("--output_file", help="where the text goes (default: the screen)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    codec = build_codec(args.codec, **read_options(args.codec, args.option))
    if args.command == "encode":
        write_pages(codec, args)
    else:
        read_pages(codec, args)


def read_options(codec: str, pairs: list[str]) -> dict:
    """Options from NAME=VALUE; where the codec wants several, commas stand between them."""
    options, kinds = {}, {field.name: field.type for field in fields(CODECS[codec])}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--option {pair}: write NAME=VALUE")
        several = "tuple" in str(kinds.get(name, ""))
        options[name] = tuple(value.split(",")) if several else value
    return options


def write_pages(codec, args: argparse.Namespace) -> None:
    text = read_text(args.input_file)
    output = Path(args.output_dir).resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is not empty: name a new folder, so that pages of two texts do not mix")
    encoded = codec.encode(text)
    with whole_folder(output) as partial:
        for number, image in enumerate(encoded.images):
            image.save(partial / f"page_{number:04d}.png")
    tokens, size = codec.visual_tokens(encoded), len(text.encode())
    print(
        f"{size} bytes in {len(encoded.images)} images, {tokens} visual tokens, {size / max(1, tokens):.1f} bytes each: {args.output_dir}"
    )


def read_pages(codec, args: argparse.Namespace) -> None:
    paths = []
    for path in map(Path, args.input):
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"no image in {path}")
        paths += inside
    images = [open_image(path, "RGB", PAGE_PIXELS) for path in paths]
    try:
        write_output(codec.decode(images), args.output_file)
    except DamagedCode as error:
        if error.text:
            write_output(error.text, args.output_file)
            where = args.output_file or "above"
            raise UserError(f"{error}; what could be read is in {where}") from error
        raise


def write_output(text: str, path: str | None) -> None:
    """Write a text to a file to the letter, or to the screen."""
    if path is None:
        print(text)
    else:
        write_text(path, text)


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
