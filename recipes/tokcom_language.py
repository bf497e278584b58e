"""Collect the reports of recipes/tokcom_language.sh in one JSON file: `rows`, one for each kind of run, at the rate that validation chose.

python -m recipes.tokcom_language --work checkpoints/tokcom_books --output results/tokcom/books.json
"""

import json
from pathlib import Path

from kit.arguments import program
from kit.errors import UserError, run
from kit.runlog import write_json

KEPT = ("baseline", "num_tokens", "nll", "brier_lm", "brier", "nfe_per_token", "flops_per_token_and_pass", "training_flops", "environment", "chunk_size", "latent_dim", "reconstruction", "bound", "by_nfe", "denoise", "compression")  # fmt: skip


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    tried: dict[tuple, list[dict]] = {}
    for path in sorted(args.work.glob("*-*/report.json")):
        row = row_of(path.parent, path)
        tried.setdefault((row["baseline"], -row.get("chunk_size", 0), -row.get("draws", 0)), []).append(row)
    rows = [min(tried[kind], key=lambda row: row["val_loss"]) for kind in sorted(tried)]
    rows += [row_of(path.parent.parent, path) for path in sorted(args.work.glob("*/report/report.json"))]
    if len(rows) < 2 or len({row["num_tokens"] for row in rows}) > 1:
        raise UserError(f"{args.work} holds {len(rows)} reports, which must be of the same test tokens")
    write_json(args.output, {"rows": rows})
    print(f"wrote {args.output}; README's tables: python -m recipes.readme_tables")


def row_of(folder: Path, path: Path) -> dict:
    """What the table needs of the run in `folder` with its report at `path`, and how far it was trained."""
    report = json.loads(path.read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "name": folder.name, **{name: report[name] for name in KEPT if name in report}, **{name: value for name, value in report.get("settings", {}).items() if name == "draws"},
        "steps": report.get("steps") or max(row.get("step", 0) for row in log),
        "val_loss": min((row["val_loss"] for row in log if "val_loss" in row), default=None),
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
