"""What rate and dropout do to the baselines of a rung of the ladder: all its runs, and which one validation chose.

python -m recipes.sweep checkpoints/ladder/shakespeare/15 results/shakespeare/15-sweep.json
"""

import json
from pathlib import Path

from kit import errors
from kit.arguments import program
from kit.errors import UserError
from kit.runlog import write_json

BASELINES = ("autoregressive", "masked")


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("rung", type=Path, help="folder of a rung, with a run for each rate and dropout")
    parser.add_argument("output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    runs = [run for name in BASELINES for run in args.rung.glob(f"{name}-*/report.json")]
    if not runs:
        raise UserError(f"{args.rung} holds no run of a baseline that has ended")
    rows = sorted((row(path.parent) for path in runs), key=lambda row: (row["baseline"], row["lr"], row["dropout"]))
    for each in rows:
        each["chosen"] = each["val_loss"] == min(r["val_loss"] for r in rows if r["baseline"] == each["baseline"])
        print(f"{each['baseline']:16} rate {each['lr']:g} dropout {each['dropout']:g}: {each['val_loss']:.3f} on val")
    write_json(args.output, rows)


def row(run: Path) -> dict:
    """A run's settings, its best validation loss in nats per token, and what its report says of the test text."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    best = min((r for r in log if "val_loss" in r), key=lambda r: r["val_loss"])
    settings = report["settings"]
    return {
        "baseline": report["baseline"], "lr": settings["lr"], "dropout": settings["dropout"], "val_loss": best["val_loss"],
        "best_step": best["step"], "steps": report["steps"], "nll": report["nll"], "bits_per_byte": report["bits_per_byte"],
        "bits_per_byte_ci": report["bits_per_byte_ci"], "parameters": report["parameters"], "seconds": report["training_seconds"],
        "environment": report["environment"],
    }  # fmt: skip


if __name__ == "__main__":
    errors.run(main)
