"""What each ingredient is worth: the same data and the same training time in every row, each at its own best learning rate.

    python -m recipes.ablations                                    # 3 minutes and 3 rates a row, about two hours on two cores
    python -m recipes.ablations --seconds 120 --lrs 2e-3 --rows network no_token_path

A row's pace is measured first; its number of steps is what the time allows. The learning rate is chosen by validation loss,
the table is measured on the test split. Writes results/ablations.json, row by row, and prints README's table.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from corpus.chunks import open_built
from kit.arguments import program
from kit.errors import UserError, run
from kit.runlog import read_log, write_json

REFERENCE = ["--ngram", "0", "--objective", "pixel", "--scan", "raster", "--palette", "digits"]
ROWS = {
    "reference_uniform_t": ("reference recipe: pixel MSE, uniform t, digits, raster", [*REFERENCE, "--time_sampling", "uniform"]),
    "reference_jit_t": (
        "reference recipe with JiT's t",
        [*REFERENCE, "--time_sampling", "logit_normal", "--t_mean", "-0.8", "--t_std", "0.8"],
    ),
    "network": ("network alone", ["--ngram", "0"]),
    "digits": ("network alone, digits palette", ["--ngram", "0", "--palette", "digits"]),
    "raster": ("network alone, raster layout", ["--ngram", "0", "--scan", "raster"]),
    "no_soft_input": ("network alone, reads colors only", ["--ngram", "0", "--no-soft_input"]),
    "no_token_path": ("network alone, no blocks between tokens", ["--ngram", "0", "--token_depth", "0"]),
    "no_self_cond": ("network alone, no self-conditioning", ["--ngram", "0", "--self_cond_prob", "0"]),
    "bigrams": ("network with bigrams", ["--ngram", "2"]),
    "trigrams_from_start": ("network with trigrams from the first step", ["--ngram", "3", "--ngram_start", "0"]),
    "trigrams": ("network with trigrams for the last quarter (default)", ["--ngram", "3"]),
}  # fmt: skip
PROBE_STEPS = 30


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows")
    parser.add_argument("--seconds", type=float, default=180, help="training time of a run")
    parser.add_argument("--lrs", nargs="+", default=["1e-3", "2e-3", "4e-3"], help="learning rates to try")
    parser.add_argument("--data", type=Path, default=Path("checkpoints/ablations/data"), help="data, built if absent")
    parser.add_argument("--work", type=Path, default=Path("checkpoints/ablations"), help="folder of the runs")
    parser.add_argument("--num_samples", type=int, default=128, help="test chunks")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--output", type=Path, default=Path("results/ablations.json"), help="JSON file to write")
    args = parser.parse_args()
    if not args.seconds > 0 or args.num_samples < 1:
        raise UserError("--seconds and --num_samples need more than 0")
    if not (args.data / "stats.json").exists():
        call("build_pretrain_data.py", "--output_dir", args.data, "--min_tokens", 64, "--max_tokens", 256)
    lengths = open_built(args.data / "train").lengths
    kept = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    table = {row["name"]: row for row in kept}
    for name in args.rows:
        label, options = ROWS[name]
        runs = [train(args, name, lr, options, 32 * lengths.mean()) for lr in args.lrs]
        best = min(runs, key=lambda one: one["val_loss"])
        report = args.work / name / best["lr"] / "report"
        call(
            "evaluate.py", "--checkpoint", args.work / name / best["lr"] / "best_model.pth", "--data_path", args.data,
            "--output_dir", report, "--num_samples", args.num_samples, "--num_inference_steps", 2, "--device", "cpu",
        )  # fmt: skip
        found = json.loads((report / "report.json").read_text())
        table[name] = {
            "name": name, "label": label, "seconds": args.seconds, "runs": runs, "lr": best["lr"], "steps": best["steps"],
            **{k: found[k] for k in ("num_tokens", "recovery", "at_nearest_50", "training", "environment")},
        }  # fmt: skip
        write_json(args.output, {"rows": [table[row] for row in ROWS if row in table]})
    show_table([table[row] for row in ROWS if row in table])


def train(args: argparse.Namespace, name: str, lr: str, options: list[str], tokens_per_step: float) -> dict:
    """Train one row at one learning rate for as many steps as the time allows; returns what the log says of it."""
    common = [
        "--data_path",
        args.data,
        "--model",
        "JiT-Ti/4",
        "--img_size",
        16,
        "--lr",
        lr,
        "--seed",
        args.seed,
        "--device",
        "cpu",
    ]
    probe, folder = args.work / name / "probe", args.work / name / lr
    if not (probe / "last.pth").exists():
        # the joined phase costs more: let it have its fraction of the probe too
        call(
            "train.py",
            *common,
            *options,
            "--max_steps",
            PROBE_STEPS,
            "--log_interval",
            5,
            "--val_samples",
            1,
            "--output_dir",
            probe,
        )
    speeds = [row["tokens_per_second"] for row in read_log(probe / "log.jsonl") if "tokens_per_second" in row][5:]
    seconds_per_step = tokens_per_step * float(np.mean([1 / speed for speed in speeds]))
    steps = max(PROBE_STEPS, round(args.seconds / seconds_per_step))
    if not (folder / "best_model.pth").exists():
        call(
            "train.py",
            *common,
            *options,
            "--max_steps",
            steps,
            "--val_interval",
            max(1, steps // 8),
            "--output_dir",
            folder,
        )
    losses = [row["val_loss"] for row in read_log(folder / "log.jsonl") if "val_loss" in row]
    return {"lr": lr, "steps": steps, "val_loss": min(losses), "seconds_per_step": seconds_per_step}


def call(program: str, *arguments) -> None:
    subprocess.run([sys.executable, program, *map(str, arguments)], check=True)


def show_table(rows: list[dict]) -> None:
    levels = sorted(rows[0]["recovery"], key=lambda row: row["sigma"])[1::2]
    print(
        "| training | steps | rate | "
        + " | ".join(f"σ = {row['sigma']:.2f}" for row in levels)
        + " | nearest color gets half |"
    )
    print("|---" * (len(levels) + 4) + "|")
    for row in rows:
        at = {level["sigma"]: level["model"] for level in row["recovery"]}
        cells = " | ".join(f"{at[min(at, key=lambda s: abs(s - level['sigma']))]:.1%}" for level in levels)
        print(f"| {row['label']} | {row['steps']} | {row['lr']} | {cells} | {row['at_nearest_50']['model']:.1%} |")


if __name__ == "__main__":
    run(main)
