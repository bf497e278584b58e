"""Fine-tune published ViT weights: vit_cifar10.train with its preset `finetune` and weights to start from.

python -m vit_cifar10.finetune --weights vit_tiny_patch16_224.augreg_in21k          # by timm's name
python -m vit_cifar10.finetune --weights model.safetensors --img_size 96 --lr 1e-4  # every argument of train works
"""

import sys

from kit import errors
from kit.errors import UserError
from vit_cifar10 import train


def main() -> None:
    if not any(argument.split("=")[0] in ("--weights", "-h", "--help") for argument in sys.argv[1:]):
        raise UserError("name the weights to start from: --weights NAME or --weights FILE.safetensors")
    sys.argv[1:1] = ["--preset", "finetune"]
    train.main()


if __name__ == "__main__":
    errors.run(main)
