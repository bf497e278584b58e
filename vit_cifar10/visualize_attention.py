"""Where the network looks: attention of three blocks and its rollout over images, and every head on its own.

python -m vit_cifar10.visualize_attention --checkpoint checkpoints/vit/last.pth cat.jpg photos/
"""

import argparse
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from kit import device, errors
from kit.errors import UserError
from vit_cifar10.attention import draw_attention, draw_heads
from vit_cifar10.dataset import find_images, read_image
from vit_cifar10.pretrained import load_pretrained

ROWS = 8  # images on one picture


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    show = " (default: %(default)s)"
    flag = argparse.BooleanOptionalAction
    parser.add_argument("images", nargs="+", metavar="PATH", help="image files, and folders of them")
    parser.add_argument("--checkpoint", required=True, help="last.pth or best_model.pth of a run")
    parser.add_argument("--output_dir", default="outputs/attention", help="folder for the pictures" + show)
    parser.add_argument("--heads", action=flag, default=False, help="also a picture of every head per image" + show)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N" + show)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runtime = device.start(args.device, 0, "fp32")
    loaded = load_pretrained(args.checkpoint, runtime.device)
    paths = find_images(args.images)
    squares = torch.stack([loaded.preprocess.resize(pil_to_tensor(read_image(path))) for path in paths])
    output = Path(args.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create --output_dir {output}: {error.strerror}") from error
    for number, part in enumerate(squares.split(ROWS)):
        draw_attention(loaded, part, output / f"attention_{number:03d}.png")
        print(output / f"attention_{number:03d}.png")
    if args.heads:
        for number, image in enumerate(squares):
            draw_heads(loaded, image, output / f"heads_{number:03d}.png")
            print(output / f"heads_{number:03d}.png")


if __name__ == "__main__":
    errors.run(main)
