"""Measure a checkpoint on the test set: report.json, report.html, confusion matrix, calibration, worst mistakes, attention.

python -m vit_cifar10.evaluate --checkpoint checkpoints/vit/last.pth
python -m vit_cifar10.evaluate --checkpoint checkpoints/vit/last.pth --data_path folder/ --tta
"""

import argparse
from pathlib import Path

from kit import device, errors
from kit.arguments import add_common, program
from vit_cifar10.dataset import load_split, same_classes
from vit_cifar10.pretrained import load_pretrained
from vit_cifar10.report import write_report


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--checkpoint", required=True, help="last.pth or best_model.pth of a run")
    parser.add_argument("--data_path", help="folder with cifar10_test.npz or test/CLASS/*.png (default: download)")
    parser.add_argument("--split", default="test", choices=("test", "train"), help="which images")
    parser.add_argument("--output_dir", help="folder for the report (default: report beside the checkpoint)")
    parser.add_argument("--tta", action=flag, default=False, help="average over the mirrored image")
    parser.add_argument("--ema", action=flag, default=True, help="use the averaged weights")
    add_common(parser, "device", "precision")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runtime = device.start(args.device, 0, args.precision)
    loaded = load_pretrained(args.checkpoint, runtime.device, args.ema)
    data = load_split(args.data_path, args.split, loaded.preprocess.img_size)
    same_classes(data.classes, loaded.classes, "the data", args.checkpoint)
    output = Path(args.output_dir) if args.output_dir else loaded.path.parent / "report"
    report = write_report(loaded, data, output, runtime, args.tta)
    low, high = report["accuracy_interval"]
    print(f"accuracy {report['accuracy']:.2%} [{low:.2%}, {high:.2%}] of {report['images']:,} images")
    for name, fraction in report["per_class"].items():
        print(f"  {name:12} {fraction:.1%}")
    print(f"expected calibration error {report['calibration']['expected_error']:.3f}")
    print(f"wrote {output}/report.json, report.html, {', '.join(report['figures'])}")


if __name__ == "__main__":
    errors.run(main)
