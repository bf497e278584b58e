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
from kit.runlog import make_folder
from recipes import builder_memory, image_curve, robust_pictures
from recipes.language_tables import RUNGS
from tokcom import figures as tokcom

RESULTS = Path(__file__).parent.parent / "results"


def figures() -> dict[str, tuple]:
    """The JSON of each figure, the function that draws it, and the part of the JSON that it takes, None = all."""
    found = {
        "cpu/recovery.png": ("cpu/report.json", evaluate.plot_recovery, None),
        "builder_memory.png": ("builder_memory.json", builder_memory.plot, None),
        "released/english.png": ("released/english.json", evaluate.plot_recovery, None),
        "released/chinese.png": ("released/chinese.json", evaluate.plot_recovery, None),
        "robust/pictures.png": ("robust/pictures.json", robust_pictures.plot, "rows"),
        "bench_cpu.png": ("bench_cpu.json", bench.plot_growth, "growth"),
        "tokcom/cpu/reconstruction.png": ("tokcom/cpu/report.json", tokcom.plot_reconstruction, None),
        "tokcom/cpu/nfe.png": ("tokcom/cpu/report.json", tokcom.plot_nfe, None),
    }
    for rung in RUNGS:
        found[f"shakespeare/{rung}.png"] = f"shakespeare/{rung}.json", compare.plot_frontier, "generation"
    for name, (_, draw) in plot_results.PLOTS.items():
        found[f"image_context/smoke/{name}"] = "image_context/smoke/summary.json", draw, "points"
    for reader in sorted(RESULTS.glob("image_context/tasks/*_needle_*.png")):
        name = f"image_context/tasks/{reader.stem}"
        found[f"{name}.png"] = f"{name}.json", plot_results.plot_needles, "needles"
    found["image_context/curve.png"] = "image_context/curve.json", image_curve.draw, None
    return found


def main() -> None:
    parser = program(__doc__)
    parser.add_argument(
        "--output_dir", type=Path, default=RESULTS, help="folder in which they get their paths of results/"
    )
    output = parser.parse_args().output_dir
    for picture, (source, draw, part) in figures().items():
        values = json.loads((RESULTS / source).read_text(encoding="utf-8"))
        make_folder((output / picture).parent)
        draw(values[part] if part else values, output / picture)
        print(f"wrote {picture}")


if __name__ == "__main__":
    run(main)
