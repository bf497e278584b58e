"""Class and probability for image files of any size.

python -m vit_cifar10.predict --checkpoint checkpoints/vit/last.pth cat.jpg photos/
"""

import argparse
import json

from kit import device, errors
from kit.arguments import add_common, program
from vit_cifar10.dataset import find_images
from vit_cifar10.pretrained import load_pretrained
from vit_cifar10.report import predict_probabilities


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("images", nargs="+", metavar="PATH", help="image files, and folders of them")
    parser.add_argument("--checkpoint", required=True, help="last.pth or best_model.pth of a run")
    parser.add_argument("--top", type=int, default=3, help="classes shown for each image")
    parser.add_argument("--tta", action=flag, default=False, help="average over the mirrored image")
    parser.add_argument("--json", action=flag, default=False, help="one JSON object per line")
    add_common(parser, "device")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runtime = device.start(args.device, 0, "fp32")
    loaded = load_pretrained(args.checkpoint, runtime.device)
    paths = find_images(args.images)
    probabilities = predict_probabilities(loaded.model, loaded.preprocess, loaded.read(paths), runtime, args.tta)
    values, indices = probabilities.topk(min(max(1, args.top), len(loaded.classes)))
    for path, row, places in zip(paths, values.tolist(), indices.tolist()):
        named = {loaded.classes[place]: value for place, value in zip(places, row)}
        if args.json:
            print(json.dumps({"image": str(path), "probabilities": named}))
        else:
            print(f"{path}  " + "  ".join(f"{name} {value:.1%}" for name, value in named.items()))


if __name__ == "__main__":
    errors.run(main)
