"""What each ingredient is worth: the same data and the same training time in every row, each at its own best learning rate.

    python -m recipes.ablations                                    # 3 minutes and 3 rates a row, about two hours on two cores
    python -m recipes.ablations --seconds 120 --lrs 2e-3 --rows network no_token_path

A row's pace is measured first, in processor time; its number of steps is what the training time allows. The learning rate is chosen by validation loss,
the table is measured on the test split. Writes results/ablations.json, row by row.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

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
PROBE_STEPS = 8, 24
SIGMAS = (0.1, 0.2, 0.35, 0.6, 1.0)  # noise levels of the table


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
    kept = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    table = {row["name"]: row for row in kept}
    for name in args.rows:
        label, options = ROWS[name]
        runs = [train(args, name, lr, options) for lr in args.lrs]
        best = min(runs, key=lambda one: one["val_loss"])
        report = args.work / name / best["lr"] / "report"
        call(
            "evaluate.py", "--checkpoint", args.work / name / best["lr"] / "best_model.pth", "--data_path", args.data,
            "--output_dir", report, "--num_samples", args.num_samples, "--num_inference_steps", 2, "--device", "cpu",
            "--t", *(1 / (1 + sigma) for sigma in SIGMAS),
        )  # fmt: skip
        found = json.loads((report / "report.json").read_text())
        table[name] = {
            "name": name, "label": label, "seconds": args.seconds, "runs": runs, "lr": best["lr"], "steps": best["steps"],
            **{k: found[k] for k in ("num_tokens", "recovery", "at_nearest_50", "training", "environment")},
        }  # fmt: skip
        write_json(args.output, {"rows": [table[row] for row in ROWS if row in table]})
    print(f"wrote {args.output}; README's tables: python -m recipes.readme_tables")


def train(args: argparse.Namespace, name: str, lr: str, options: list[str]) -> dict:
    """Train one row at one learning rate for as many steps as the time allows; returns what the log says of it."""
    folder, seconds = args.work / name / lr, seconds_per_step(args, name, options)
    steps = max(PROBE_STEPS[1], round(args.seconds / seconds))
    if not (folder / "best_model.pth").exists():
        fit(args, options, folder, "--lr", lr, "--max_steps", steps, "--val_interval", max(1, steps // 4))
    losses = [row["val_loss"] for row in read_log(folder / "log.jsonl") if "val_loss" in row]
    return {"lr": lr, "steps": steps, "val_loss": min(losses), "seconds_per_step": seconds}


def seconds_per_step(args: argparse.Namespace, name: str, options: list[str]) -> float:
    """Pace of a row, from the processor time of a short and a less short run: other work on the machine does not count."""
    kept = args.work / name / "pace.json"
    if not kept.exists():
        spent = []
        for steps in PROBE_STEPS:
            before = time_of_children()
            fit(args, options, args.work / name / f"probe{steps}", "--max_steps", steps, "--val_samples", 1)
            spent.append(time_of_children() - before)
        write_json(kept, (spent[1] - spent[0]) / (PROBE_STEPS[1] - PROBE_STEPS[0]) / torch.get_num_threads())
    return json.loads(kept.read_text())


def fit(args: argparse.Namespace, options: list[str], output: Path, *more) -> None:
    common = ("--data_path", args.data, "--model", "JiT-Ti/4", "--img_size", 16, "--seed", args.seed, "--device", "cpu")
    call("train.py", *common, *options, *more, "--output_dir", output)


def time_of_children() -> float:
    """Processor seconds of all programs that this one has called and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call(program: str, *arguments) -> None:
    subprocess.run([sys.executable, program, *map(str, arguments)], check=True)


if __name__ == "__main__":
    run(main)
