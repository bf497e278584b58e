"""Results as Markdown tables."""

import json
from collections.abc import Iterable
from pathlib import Path

from kit.errors import UserError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}


def load(name: str) -> dict:
    path = RESULTS / name
    if not path.is_file():
        raise UserError(f"no {path}: run its recipe")
    return json.loads(path.read_text(encoding="utf-8"))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    if any(len(line) != len(lines[0]) for line in lines):
        raise ValueError(f"a row of the table under {lines[0]} has too few cells, or too many")
    return (
        "".join("| " + " | ".join(line) + " |\n" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")
    )


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"
