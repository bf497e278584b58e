"""Collect the reports of recipes/objectives.sh into one JSON file, and print the table of the README."""

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path

from kit.runlog import write_json

ROWS = {
    "pixel_uniform_t": "seeds: pixel MSE, uniform t, digits, raster",
    "pixel_jit_t": "seeds: pixel MSE, JiT's t, digits, raster",
    "pixel_fitted_t": "pixel MSE with our palette, scan and t",
    "token_digits": "ours, but the seeds' digits palette",
    "token": "ours: token, fitted t, context, block",
}
SIGMAS = (0.1, 0.2, 0.4)


def at_sigma(recovery: list[dict], sigma: float, name: str) -> float:
    """A decoder's accuracy at a noise level, linear in log sigma between the two that were measured."""
    rows = sorted(recovery, key=lambda row: row["sigma"])
    for low, high in pairwise(rows):
        if low["sigma"] <= sigma <= high["sigma"]:
            share = math.log(sigma / low["sigma"]) / math.log(high["sigma"] / low["sigma"])
            return low[name] + share * (high[name] - low[name])
    raise ValueError(f"sigma {sigma} was not covered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    table = []
    for name, label in ROWS.items():
        report = json.loads((args.runs / name / "report" / "report.json").read_text())
        log = [json.loads(line) for line in (args.runs / name / "log.jsonl").read_text().splitlines()]
        speeds = sorted(row["tokens_per_second"] for row in log if "tokens_per_second" in row)
        table.append({
            "name": name, "label": label, "num_tokens": report["num_tokens"],
            "at_nearest_50": report["at_nearest_50"],
            "model": {str(s): at_sigma(report["recovery"], s, "model") for s in SIGMAS},
            "unigram": {str(s): at_sigma(report["recovery"], s, "unigram") for s in SIGMAS},
            "train_tokens_per_second": speeds[len(speeds) // 2],
            "training": report["training"], "environment": report["environment"],
        })  # fmt: skip
    write_json(args.output, table)
    print("| training | " + " | ".join(f"σ = {s}" for s in SIGMAS) + " | where the nearest color gets 50 % |")
    print("|---|" + "---|" * (len(SIGMAS) + 1))
    for row in table:
        half = row["at_nearest_50"]
        cells = [f"{row['model'][str(s)]:.1%} ({row['unigram'][str(s)]:.1%})" for s in SIGMAS]
        print(f"| {row['label']} | " + " | ".join(cells) + f" | {half['model']:.1%} ({half['unigram']:.1%}) |")


if __name__ == "__main__":
    main()
