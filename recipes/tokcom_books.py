"""Collect the reports of recipes/tokcom_books.sh in one JSON file: `rows`, one for each run.

python -m recipes.tokcom_books --work checkpoints/tokcom_books --output results/tokcom/books.json
"""

import json
from pathlib import Path

from kit.arguments import program
from kit.errors import UserError, run
from kit.runlog import write_json

SHARED = ("num_tokens", "nll", "brier_lm", "brier", "nfe_per_token", "flops_per_token_and_pass", "environment")
OURS = ("chunk_size", "latent_dim", "reconstruction", "bound", "by_nfe", "denoise", "compression")


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    rows = [row_of(path.parent) for path in sorted(args.work.glob("autoregressive-*/report.json"))]
    rows += [row_of(path.parent.parent) for path in sorted(args.work.glob("*/report/report.json"))]
    if len(rows) < 2 or len({row["num_tokens"] for row in rows}) > 1:
        raise UserError(f"{args.work} holds {len(rows)} reports, which must be of the same test tokens")
    write_json(args.output, {"rows": rows})
    print(f"wrote {args.output}; README's tables: python -m recipes.readme_tables")


def row_of(run_folder: Path) -> dict:
    """What the table needs of one run: its report, and how far it was trained."""
    ours = (run_folder / "report").is_dir()
    report = json.loads(((run_folder / "report" if ours else run_folder) / "report.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (run_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = {name: report[name] for name in (*SHARED, *OURS) if name in report}
    return {
        "name": run_folder.name, **kept,
        "steps": report.get("steps") or max(row.get("step", 0) for row in log),
        "val_loss": min((row["val_loss"] for row in log if "val_loss" in row), default=None),
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
