"""Where the network looks: attention of three blocks and its rollout over images, and every head on its own.

python -m vit_cifar10.visualize_attention --checkpoint checkpoints/vit/last.pth cat.jpg photos/
"""

import argparse

from kit import device, errors
from kit.arguments import add_common, program
from kit.runlog import clear_numbered, make_folder
from vit_cifar10.attention import draw_attention, draw_heads
from vit_cifar10.dataset import find_images
from vit_cifar10.pretrained import load_pretrained

ROWS = 8  # images on one picture


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("images", nargs="+", metavar="PATH", help="image files, and folders of them")
    parser.add_argument("--checkpoint", required=True, help="last.pth or best_model.pth of a run")
    parser.add_argument("--output_dir", default="outputs/attention", help="folder for the pictures")
    parser.add_argument("--heads", action=flag, default=False, help="also a picture of every head per image")
    add_common(parser, "overwrite", "device")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runtime = device.start(args.device, 0, "fp32")
    loaded = load_pretrained(args.checkpoint, runtime.device)
    squares = loaded.read(find_images(args.images))
    output = make_folder(args.output_dir)
    clear_numbered(output, r"(attention|heads)_\d+\.png", args.overwrite)
    for number, part in enumerate(squares.split(ROWS)):
        draw_attention(loaded, part, output / f"attention_{number:03d}.png")
        print(output / f"attention_{number:03d}.png")
    if args.heads:
        for number, image in enumerate(squares):
            draw_heads(loaded, image, output / f"heads_{number:03d}.png")
            print(output / f"heads_{number:03d}.png")


if __name__ == "__main__":
    errors.run(main)
