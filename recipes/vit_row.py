"""Gather the runs of one table row into results/vit_cifar10/NAME.json, and the first run's figures beside it.

    python -m recipes.vit_row --name cifar_20 RUN [RUN ...]

`matmul_fraction` is the arithmetic of training (three forward passes' worth) per second over what a large matrix product
reaches on the same device in the same precision.
"""

import json
import statistics
from pathlib import Path

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from kit import device
from kit.arguments import program
from kit.checkpoint import load_checkpoint
from kit.runlog import write_json
from vit_cifar10.pretrained import build_model

RESULTS = Path(__file__).parent.parent / "results" / "vit_cifar10"


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, one for each seed")
    parser.add_argument("--name", required=True, help="name of the row")
    args = parser.parse_args()
    rows = [describe(Path(run)) for run in args.runs]
    accuracies = [row["accuracy"] for row in rows]
    environment = json.loads((Path(args.runs[0]) / "env.json").read_text())
    config = json.loads((Path(args.runs[0]) / "config.json").read_text())
    result = {
        "name": args.name,
        "device": environment["device"],
        "dtype": environment["dtype"],
        "threads": environment["threads"],
        "torch": environment["torch"],
        "commit": environment["commit"],
        "config": {name: value for name, value in config.items() if name not in ("data_path", "output_dir", "seed")},
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(rows) > 1 else None,
        "runs": rows,
    }
    folder = RESULTS / args.name
    folder.mkdir(parents=True, exist_ok=True)
    for figure in json.loads((Path(args.runs[0]) / "report" / "report.json").read_text())["figures"]:
        picture = Image.open(Path(args.runs[0]) / "report" / figure).convert("RGB")
        size = tuple(side * 2 // 3 for side in picture.size)  # half of the bytes, for the repository's sake
        picture.resize(size, Image.Resampling.LANCZOS).save(folder / figure, optimize=True)
    write_json(RESULTS / f"{args.name}.json", result)
    print(json.dumps({key: result[key] for key in ("name", "accuracy_mean", "accuracy_std")}))


def describe(run: Path) -> dict:
    """Accuracy and cost of one run."""
    saved = load_checkpoint(run / "last.pth")
    report = json.loads((run / "report" / "report.json").read_text())
    config = saved["config"]
    model = build_model(config, len(saved["classes"]))
    world_size = json.loads((run / "env.json").read_text())["world_size"]
    images = saved["step"] * config["batch_size"] * config["grad_accum"] * world_size
    flops = 3 * forward_flops(model, config["img_size"])
    speed = images / saved["seconds"]
    return {
        "seed": config["seed"],
        "accuracy": report["accuracy"],
        "accuracy_interval": report["accuracy_interval"],
        "calibration_error": report["calibration"]["expected_error"],
        "best_val_accuracy": saved["best_val_accuracy"][0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": saved["step"],
        "images_seen": images,
        "seconds": saved["seconds"],
        "images_per_second": speed,
        "flops_per_image": flops,
        "matmul_fraction": flops
        * speed
        / device.matmul_rate(device.start(config["device"], 0, config["precision"]), 2.0)
        / world_size,
    }


def forward_flops(model: torch.nn.Module, img_size: int) -> int:
    """Arithmetic of one image's forward pass, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, img_size, img_size))
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
