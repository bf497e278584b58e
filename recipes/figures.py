"""Draw the figures of the READMEs again from the JSON files in results/, for instance after a change of kit/figures.py.

python -m recipes.figures

What shows pixels, images or vectors of a model is drawn where it was measured, and needs the model.
"""

import json
from pathlib import Path

import bench
import compare
import evaluate
from image_context import plot_results
from kit.arguments import program
from kit.errors import run
from recipes import robust_pictures
from tokcom import figures as tokcom

RESULTS = Path(__file__).parent.parent / "results"


def figures() -> dict[str, tuple]:
    """The JSON of each figure, the function that draws it, and the part of the JSON that it takes, None = all."""
    found = {
        "cpu/recovery.png": ("cpu/report.json", evaluate.plot_recovery, None),
        "released/english.png": ("released/english.json", evaluate.plot_recovery, None),
        "released/chinese.png": ("released/chinese.json", evaluate.plot_recovery, None),
        "robust/pictures.png": ("robust/pictures.json", robust_pictures.plot, "rows"),
        "bench_cpu.png": ("bench_cpu.json", bench.plot_growth, "growth"),
        "tokcom/cpu/reconstruction.png": ("tokcom/cpu/report.json", tokcom.plot_reconstruction, None),
        "tokcom/cpu/nfe.png": ("tokcom/cpu/report.json", tokcom.plot_nfe, None),
    }
    for rung in sorted((RESULTS / "shakespeare").glob("*.json")):
        found[f"shakespeare/{rung.stem}.png"] = f"shakespeare/{rung.name}", compare.plot_frontier, "generation"
    for name, draw in plot_results.PLOTS.items():
        found[f"image_context/smoke/{name}"] = "image_context/smoke/summary.json", draw, "points"
    return found


def main() -> None:
    program(__doc__).parse_args()
    for picture, (source, draw, part) in figures().items():
        if (RESULTS / source).is_file():
            values = json.loads((RESULTS / source).read_text(encoding="utf-8"))
            draw(values[part] if part else values, RESULTS / picture)
            print(f"wrote results/{picture}")


if __name__ == "__main__":
    run(main)
