"""Collect reports of evaluate.py, one for each seed, into one JSON file with means and spreads.

    python -m recipes.recovery_table --hybrid RUN0/report RUN1/report --network RUN2/report --output results/cpu/recovery.json

--hybrid: runs of the network beside n-grams; --network: runs of the network alone. All must report the same test tokens.
"""

import json
from pathlib import Path

import numpy as np

from kit.arguments import program
from kit.errors import UserError, run
from kit.runlog import write_json

CLASSICAL = ("nearest", "unigram", "bigram", "trigram")


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--hybrid", type=Path, nargs="*", default=[], help="report folders, one for each seed")
    parser.add_argument("--network", type=Path, nargs="*", default=[], help="report folders, one for each seed")
    parser.add_argument("--passes", choices=("1", "2", "4"), help="of the network (default: as the reports were made)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    reports = {kind: [read(folder) for folder in getattr(args, kind)] for kind in ("network", "hybrid")}
    reports = {kind: found for kind, found in reports.items() if found}
    everyone = [report for found in reports.values() for report in found]
    if not everyone:
        raise UserError("name at least one report with --hybrid or --network")
    if len({(r["num_tokens"], len(r["recovery"])) for r in everyone}) > 1:
        raise UserError("the reports are on different test tokens or noise levels: they cannot stand in one table")
    rows = [row_of(index, reports, everyone, args.passes) for index in range(len(everyone[0]["recovery"]))]
    at_half = row_of(None, reports, everyone, args.passes)
    result = {
        "num_chunks": everyone[0]["num_chunks"], "num_tokens": everyone[0]["num_tokens"],
        "ngram_bits": everyone[0]["ngram_bits"], "passes": args.passes or everyone[0]["passes"], "recovery": rows, "at_nearest_50": at_half,
        "runs": {
            kind: [
                {**{k: r[k] for k in ("training", "environment", "passes", "throughput", "sampled")},
                 "at_nearest_50": {k: r["at_nearest_50"][k] for k in ("sigma", "model", "model_ci", "nll_bits", "passes")},
                 "by_passes": [{"sigma": row["sigma"], **row["passes"]} for row in r["recovery"]]}
                for r in found
            ]
            for kind, found in reports.items()
        },
    }  # fmt: skip
    write_json(args.output, result)
    print(f"wrote {args.output}; README's tables: python -m recipes.readme_tables")


def read(folder: Path) -> dict:
    path = folder / "report.json"
    if not path.is_file():
        raise UserError(f"no report at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def row_of(index: int | None, reports: dict, everyone: list[dict], passes: str | None) -> dict:
    """One noise level (index of `recovery`, None = where the nearest color gets half): every decoder's accuracy.

    The classical decoders are means over all runs too: each run has its own palette, drawn by its seed. What is "of_first" is
    of the first run, with the passes that its report was made with.
    """

    def pick(report: dict) -> dict:
        return report["at_nearest_50"] if index is None else report["recovery"][index]

    row = {"sigma": float(np.mean([pick(r)["sigma"] for r in everyone]))}
    for name in CLASSICAL:
        row[name] = {"mean": float(np.mean([pick(r)[name] for r in everyone])), "ci": pick(everyone[0])[f"{name}_ci"]}
    for kind, found in reports.items():
        values = np.array([pick(r)["passes"][passes or str(r["passes"])] for r in found])
        row[kind] = {
            "mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else None,
            "seeds": values.tolist(), "ci_of_first": pick(found[0])["model_ci"],
            "nll_bits_of_first": pick(found[0])["nll_bits"],
        }  # fmt: skip
    return row


if __name__ == "__main__":
    run(main)
