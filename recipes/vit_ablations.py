"""Gather the runs of recipes/vit_ablations.sh, folders RUN/SEED, into results/vit_cifar10/NAME.json: a row for each run.

python -m recipes.vit_ablations checkpoints/vit_ablations
"""

import json
import statistics
from pathlib import Path

from kit.arguments import program
from kit.errors import UserError, run
from kit.runlog import write_json
from recipes.vit_row import RESULTS, describe


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("work", type=Path, help="folder of the runs")
    parser.add_argument("--name", default="ablations", help="of the file in results/vit_cifar10")
    args = parser.parse_args()
    rows = []
    for folder in sorted(path for path in args.work.glob("*") if path.is_dir()):
        seeds = sorted(path.parent.parent for path in folder.glob("*/report/report.json"))
        if seeds:
            rows.append(row(folder.name, seeds))
            print(
                f"{folder.name:20} {rows[-1]['accuracy_mean']:.1%} after {rows[-1]['runs'][0]['images_seen']:,} images"
            )
    if not rows:
        raise UserError(f"{args.work} holds no run with a report")
    write_json(RESULTS / f"{args.name}.json", rows)


def row(name: str, seeds: list[Path]) -> dict:
    """One change of the preset: what it gives over all seeds, and where it was run."""
    runs = [describe(seed) for seed in seeds]
    found = [each["accuracy"] for each in runs]
    config, environment = (
        json.loads((seeds[0] / f"{part}.json").read_text(encoding="utf-8")) for part in ("config", "env")
    )
    return {
        "name": name, "time_budget": config["time_budget"], "accuracy_mean": statistics.mean(found),
        "accuracy_std": statistics.stdev(found) if len(found) > 1 else None, "val_mean": statistics.mean(each["best_val_accuracy"] for each in runs),
        "runs": runs, "environment": environment,
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
