"""Plots and a summary of what run_exp recorded.

    python -m image_context.plot_results --input RUN/results/results.jsonl --output RUN/plots

Writes cost_accuracy.png, ratio_accuracy.png, robustness.png, bits.png, where needles were asked for needle.png, and summary.json:
every point's mean, 95 % interval, number of questions and of failures, and the needles found by place. Questions that failed
count as wrong.
"""

import argparse
import math
from collections import defaultdict
from pathlib import Path

from matplotlib.ticker import NullFormatter

from image_context.augment import AUGMENTATIONS
from image_context.run_exp import read_results
from image_context.tasks import LANGUAGES
from kit import errors
from kit.arguments import program
from kit.errors import UserError
from kit.figures import COLORS, plt, save
from kit.intervals import mean_interval
from kit.page import Section, write_report
from kit.runlog import make_folder, write_json

METRICS = {  # what a plot shows of each task
    "json": "json_f1", "needle": "needle_hit", "random": "token_accuracy", "codes": "token_accuracy"
}  # fmt: skip
LABELS = {
    "json": "JSON: F1 of typed leaves", "needle": "needle: exact hits", "random": "random tokens restored",
    "codes": "codes of a list restored",
}  # fmt: skip
MARKS = "osD^vPX*"
NEEDLES = "needle.png"
PLACES = 5  # of a document, in the figure of needles
LESS_MEMORY = "pass fewer results"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--input", required=True, help="results.jsonl of run_exp")
    parser.add_argument("--output", required=True, help="folder for the plots")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    records = read_results(Path(args.input))
    if not records:
        raise UserError(f"{args.input} holds no results yet")
    output = make_folder(args.output)
    points, needles = summarize(records), summarize_needles(records)
    pictures = {title: output / name for name, (title, _) in PLOTS.items()}
    for name, (_, draw) in PLOTS.items():
        draw(points, output / name)
    if needles:
        pictures["Needles by place"] = output / NEEDLES
        plot_needles(needles, output / NEEDLES)
    write_json(
        output / "summary.json",
        {"vlm": records[0]["vlm"], "config_hash": records[0]["config_hash"], "points": points, "needles": needles},
    )
    write_page(points, pictures, records[0]["vlm"], output)
    for point in points:
        low, high = point["interval"]
        print(
            f"{point['codec']:12} {point['augmentation']:6} {point['task']:7} {point['length']:6} "
            f"ratio {point['ratio_context']:6.2f}  {point['metric']} {point['mean']:.3f} [{low:.3f}, {high:.3f}]"
        )
    print(f"wrote {output}/{', '.join(path.name for path in pictures.values())}, summary.json, report.html")


def summarize(records: list[dict]) -> list[dict]:
    """One point for each codec, augmentation, task and length: means over its questions, failures counted as wrong."""
    groups = defaultdict(list)
    for record in records:
        groups[record["codec"], record["augmentation"], record["task"], record["length"]].append(record)
    points = []
    for (codec, augmentation, task, length), group in sorted(groups.items()):
        answered = [r for r in group if not r["error"]]
        values = [r["metrics"][METRICS[task]] if not r["error"] else 0.0 for r in group]
        names = {name for r in answered for name in r["metrics"]}
        costs = {
            name: mean([r["costs"][name] for r in answered]) for name in (answered[0]["costs"] if answered else ())
        }
        points.append({
            "codec": codec, "augmentation": augmentation, "task": task, "length": length, "metric": METRICS[task],
            "mean": mean(values), "interval": mean_interval(values), "questions": len(group), "failures": len(group) - len(answered),
            "metrics": {
                name: (sum(r["metrics"][name] for r in answered) + name.endswith("error_rate") * (len(group) - len(answered))) / len(group)
                for name in sorted(names)
            },
            "total_tokens": math.nan, "ratio_context": math.nan, "ratio_total": math.nan, "visual_tokens": 0, **costs,
            "capacity_bits": group[0].get("capacity_bits"),
            "text_bits": mean([r["costs"]["ratio_context"] * r["token_bits"] for r in answered]),
        })  # fmt: skip
    return points


def summarize_needles(records: list[dict]) -> list[dict]:
    """Needles found in clean images, for each codec, language, length and fifth of the document that holds the needle, 0 the first."""
    groups = defaultdict(list)
    for record in records:
        if record["task"] == "needle" and record["augmentation"] == "clean" and record.get("position") is not None:
            place = min(int(record["position"] * PLACES), PLACES - 1)
            groups[record["codec"], record["language"], record["length"], place].append(record)
    found = []
    for (codec, language, length, place), group in sorted(groups.items()):
        values = [r["metrics"]["needle_hit"] if not r["error"] else 0.0 for r in group]
        found.append({
            "codec": codec, "language": language, "length": length, "place": place, "mean": mean(values), "interval": mean_interval(values),
            "questions": len(group),
        })  # fmt: skip
    return found


def write_page(points: list[dict], pictures: dict[str, Path], vlm: str, output: Path) -> None:
    """report.html: all points, and the pictures under their titles, in one file."""
    rows = [
        {
            "codec": p["codec"], "image": p["augmentation"], "task": p["task"], "tokens": p["length"], "questions": p["questions"],
            "ratio": p["ratio_context"], "right": f"{p['mean']:.1%}", "95 % interval": "{:.0%} to {:.0%}".format(*p["interval"]),
        }
        for p in points
    ]  # fmt: skip
    best = max(points, key=lambda p: (p["mean"], p["ratio_context"]))
    facts = {f"right: {best['codec']}, {best['task']}, ratio {best['ratio_context']:.1f}": f"{best['mean']:.1%}"}
    sections = [Section("Answers", "Fraction of each question that is right.", rows)]
    sections += [Section(title, pictures=[path]) for title, path in pictures.items()]
    write_report(output / "report.html", "Text carried by images", facts, sections, {"vlm": vlm})


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def plot_cost(points: list[dict], path: Path) -> None:
    plot_against(points, "total_tokens", "tokens the model reads for one question", path)


def plot_ratio(points: list[dict], path: Path) -> None:
    plot_against(points, "ratio_context", "text tokens per token that carries them", path)


def plot_against(points: list[dict], quantity: str, label: str, path: Path) -> None:
    """Accuracy of clean images against a quantity, a panel for each task, a line for each codec."""
    figure, axes = panels(points)
    for axis, task in axes:
        for name, color, mark in styles(points):
            mine = [p for p in points if (p["codec"], p["task"], p["augmentation"]) == (name, task, "clean")]
            mine = sorted((p for p in mine if not math.isnan(p[quantity])), key=lambda p: p[quantity])
            draw(axis, [p[quantity] for p in mine], mine, name, color, mark)
        axis.set_xscale("log")
        axis.set_xlabel(label)
        ticks(axis, sorted({p[quantity] for p in points if p["task"] == task and not math.isnan(p[quantity])}))
    finish(figure, axes, path)


def plot_robustness(points: list[dict], path: Path) -> None:
    """Accuracy against augmentation, averaged over lengths."""
    figure, axes = panels(points)
    levels = [level for level in AUGMENTATIONS if any(p["augmentation"] == level for p in points)]
    for axis, task in axes:
        for name, color, mark in styles(points):
            found = [
                [p for p in points if (p["codec"], p["task"], p["augmentation"]) == (name, task, level)]
                for level in levels
            ]
            places = [i for i, group in enumerate(found) if group]
            axis.plot(
                places,
                [mean([p["mean"] for p in found[i]]) for i in places],
                mark + "-",
                color=color,
                markersize=5,
                label=name,
            )
        axis.set_xticks(range(len(levels)), levels)
        axis.set_xlim(-0.3, len(levels) - 0.7)
        axis.set_xlabel("what happened to the image")
    finish(figure, axes, path)


def plot_bits(points: list[dict], path: Path) -> None:
    """Fraction restored against the bits that each token has to carry, log2(vocabulary) for each token of the document; dotted,
    what its codec could carry."""
    figure, axes = panels([p for p in points if p["task"] != "needle"] or points)
    for axis, task in axes:
        for name, color, mark in styles(points):
            mine = [p for p in points if (p["codec"], p["task"], p["augmentation"]) == (name, task, "clean")]
            mine = sorted((p for p in mine if not math.isnan(p["text_bits"])), key=lambda p: p["text_bits"])
            draw(axis, [p["text_bits"] for p in mine], mine, name, color, mark)
            for capacity in {p["capacity_bits"] for p in mine if p["capacity_bits"]}:
                axis.axvline(capacity, color=color, linestyle=":", linewidth=1.2)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
        axis.set_xlabel("bits per token that carries the text (dotted: capacity)")
    finish(figure, axes, path)


def plot_needles(needles: list[dict], path: Path) -> None:
    """Fraction found by length and place, a row of panels for each codec and a panel for each language."""
    codecs, languages, lengths = (sorted({n[key] for n in needles}) for key in ("codec", "language", "length"))
    figure, axes = plt.subplots(
        len(codecs),
        len(languages),
        figsize=(1.6 + 3.0 * len(languages), 0.9 + 0.42 * (PLACES + 1) * len(codecs)),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for row, codec in zip(axes, codecs):
        for axis, language in zip(row, languages):
            mine = {
                (n["place"], n["length"]): n["mean"]
                for n in needles
                if (n["codec"], n["language"]) == (codec, language)
            }
            grid = [[mine.get((place, length), math.nan) for length in lengths] for place in range(PLACES)]
            image = axis.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (place, length), value in mine.items():
                color = "black" if value > 0.6 else "white"
                axis.text(
                    lengths.index(length), place, f"{value:.0%}", ha="center", va="center", color=color, fontsize=8
                )
            axis.grid(False)
            axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
            axis.set_yticks(range(PLACES), [f"{place / PLACES:.0%}" for place in range(PLACES)])
            axis.set_title(f"{codec}, {LANGUAGES[language]}")
        row[0].set_ylabel("needle lies at")
    for axis in axes[-1]:
        axis.set_xlabel("tokens of the document")
    figure.colorbar(image, ax=axes, label="needles found")
    save(figure, path)


def panels(points: list[dict]):
    """A figure with a panel for each task that `points` has, and [(axis, task)]."""
    tasks = [task for task in METRICS if any(p["task"] == task for p in points)]
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(max(5.2, 4.1 * len(tasks)), 3.9),
        sharey=True,
        squeeze=False,
    )
    return figure, list(zip(axes[0], tasks))


def styles(points: list[dict]) -> list[tuple[str, str, str]]:
    """(codec, color, marker) of every codec, the same in all figures."""
    names = sorted({p["codec"] for p in points})
    return [(name, COLORS[i % len(COLORS)], MARKS[i % len(MARKS)]) for i, name in enumerate(names)]


def draw(axis, x: list[float], points: list[dict], name: str, color: str, mark: str) -> None:
    """A line with 95 % intervals."""
    if points:
        y = [p["mean"] for p in points]
        error = [[m - p["interval"][0] for m, p in zip(y, points)], [p["interval"][1] - m for m, p in zip(y, points)]]
        error = [[max(0.0, e) for e in side] for side in error]
        axis.errorbar(x, y, error, fmt=mark + "-", color=color, markersize=5, capsize=2, linewidth=1.2, label=name)


def ticks(axis, values: list[float]) -> None:
    """Plain numbers on a logarithmic axis."""
    axis.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    if len(values) and max(values) / min(values) < 10:
        shown = values[:1]
        for value in values:
            if value > 1.25 * shown[-1]:
                shown.append(value)
        axis.set_xticks(shown, [f"{v:.3g}" for v in shown])
        axis.set_xlim(min(values) * 0.85, max(values) * 1.18)


def finish(figure, axes, path: Path) -> None:
    for axis, task in axes:
        axis.set_title(LABELS[task])
        axis.set_ylim(-0.03, 1.05)
    axes[0][0].set_ylabel("fraction right")
    handles = {}
    for axis, _ in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(handles.values(), handles, loc="outside right center")
    save(figure, path)


PLOTS = {
    "cost_accuracy.png": ("Against tokens read", plot_cost), "ratio_accuracy.png": ("Against compression", plot_ratio),
    "robustness.png": ("After damage", plot_robustness), "bits.png": ("Against bits", plot_bits),
}  # fmt: skip

if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
