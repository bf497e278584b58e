"""Add one run's point to results/image_context/curve.json, and draw the curve again.

    python -m recipes.image_curve --run checkpoints/image_curve/codebook-10-0 --ratio 10 --results results/image_context

`ratio` is what was asked for, tokens in a visual token or vector; `measured_ratio` counts all that carries them, the end of the last block too.
"""

import json
from collections import defaultdict
from pathlib import Path

from image_context.config import load_config
from kit import errors
from kit.arguments import program
from kit.figures import COLORS, plt, save
from kit.runlog import write_json

LABELS = {
    "codebook": "color code",
    "conv": "learned convolution",
    "pool": "mean of embeddings",
    "render": "rendered page",
    "qr": "QR",
    "text": "plain text",
}
MARKS = "os^vDX"


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--run", required=True, help="folder of a run of recipes/image_curve.sh")
    parser.add_argument("--ratio", type=int, required=True, help="tokens asked for in a visual token or vector")
    parser.add_argument("--results", required=True, help="folder of curve.json")
    args = parser.parse_args()
    run, results = Path(args.run), Path(args.results)
    config = load_config(run / "config.yaml")
    (name,) = config.data.codecs
    point = json.loads((run / "plots" / "summary.json").read_text(encoding="utf-8"))["points"][0]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = {
        "codec": name, "ratio": args.ratio, "accuracy": point["mean"], "ci": point["interval"], "seed": config.seed,
        "measured_ratio": point["ratio_context"], "documents": point["questions"], "tokens": point["length"],
        "steps": max(row["step"] for row in log), "time_budget": config.training.time_budget,
    }  # fmt: skip
    path = results / "curve.json"
    points = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    same = ("codec", "ratio", "seed")
    points = [p for p in points if any(p[key] != mine[key] for key in same)] + [mine]
    points.sort(key=lambda p: tuple(p[key] for key in same))
    results.mkdir(parents=True, exist_ok=True)
    write_json(path, points)
    draw(points, results / "curve.png")
    print(f"{name}, ratio {args.ratio}, seed {config.seed}: {point['mean']:.1%} of random tokens; wrote {path}")


def draw(points: list[dict], path: Path) -> None:
    """Accuracy against ratio, a line through the means over seeds, a dot for each seed, and what keeping the beginning would restore."""
    figure, axis = plt.subplots(figsize=(6.4, 3.9))
    names = [name for name in LABELS if any(p["codec"] == name for p in points)]
    for name, color, mark in zip(names, COLORS, MARKS):
        groups = defaultdict(list)
        for p in points:
            if p["codec"] == name:
                groups[p["ratio"]].append(p["accuracy"])
                axis.plot(p["ratio"], p["accuracy"], mark, color=color, markersize=4, alpha=0.5)
        ratios = sorted(groups)
        axis.plot(
            ratios, [sum(groups[r]) / len(groups[r]) for r in ratios], color=color, marker=mark, label=LABELS[name]
        )
    ratios = sorted({p["ratio"] for p in points})
    axis.plot(ratios, [1 / r for r in ratios], ":", color="0.4", label="the first of every ratio tokens")
    axis.set_xscale("log")
    axis.set_xticks(ratios, [str(r) for r in ratios])
    axis.minorticks_off()
    axis.set_xlabel("text tokens in one visual token or vector")
    axis.set_ylabel("fraction of random tokens restored")
    axis.set_ylim(0, 1.02)
    axis.legend(loc="center right", bbox_to_anchor=(0.91, 0.6))
    save(figure, path)


if __name__ == "__main__":
    errors.run(main)
