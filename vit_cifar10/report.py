"""What a model gets right and wrong on labeled images: numbers for report.json, and figures."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import PowerNorm

from kit import page
from kit.device import Runtime
from kit.figures import BLUE, INK, LINE, SKY, plt, save
from kit.intervals import wilson
from kit.runlog import environment, make_folder, write_json
from vit_cifar10.attention import draw_attention
from vit_cifar10.augment import Preprocess
from vit_cifar10.dataset import Images
from vit_cifar10.pretrained import Pretrained

BATCH = 500
BINS = 15  # of confidence, as usual for the expected calibration error
MISTAKES = 32
EXAMPLES = 6  # images whose attention is drawn


@torch.no_grad()
def predict_probabilities(
    model: torch.nn.Module, preprocess: Preprocess, images: torch.Tensor, runtime: Runtime, tta: bool = False
) -> torch.Tensor:
    """Class probabilities (N, C) on the CPU of uint8 images (N, 3, H, W); `tta` averages over the mirrored images."""
    training = model.training
    model.eval()
    parts = []
    for batch in images.split(BATCH):
        inputs = preprocess(batch.to(runtime.device))
        with runtime.autocast():
            views = [model(inputs), model(inputs.flip(3))] if tta else [model(inputs)]
        parts.append(torch.stack([view.float().softmax(1) for view in views]).mean(0).cpu())
    model.train(training)
    return torch.cat(parts)


def measure(probabilities: torch.Tensor, labels: torch.Tensor, classes: list[str]) -> dict:
    """Accuracy with its 95 % Wilson interval, per-class accuracy, confusion matrix, loss and calibration.

    `confusion`[i][j] counts images of class i called j. `calibration` is the expected calibration error (Guo et al.,
    arXiv 1706.04599) with its 15 bins of confidence: images, mean confidence, accuracy.
    """
    confidence, guess = probabilities.max(1)
    right = guess == labels
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.long)
    confusion.index_put_((labels, guess), torch.ones_like(labels), accumulate=True)
    own = probabilities[torch.arange(len(labels)), labels]
    bins = []
    for index in range(BINS):
        inside = (confidence > index / BINS) & (confidence <= (index + 1) / BINS)
        if inside.any():
            bins.append({
                "images": int(inside.sum()),
                "confidence": confidence[inside].mean().item(),
                "accuracy": right[inside].float().mean().item(),
            })  # fmt: skip
    error = sum(part["images"] * abs(part["confidence"] - part["accuracy"]) for part in bins) / len(labels)
    return {
        "images": len(labels),
        "accuracy": right.float().mean().item(),
        "accuracy_interval": wilson(int(right.sum()), len(labels)),
        "loss": -own.clamp(min=1e-12).log().mean().item(),
        "per_class": {
            name: (confusion[i, i] / confusion[i].sum().clamp(min=1)).item() for i, name in enumerate(classes)
        },
        "confusion": confusion.tolist(),
        "calibration": {"expected_error": error, "bins": bins},
    }


def write_report(loaded: Pretrained, data: Images, output_dir: Path, runtime: Runtime, tta: bool = False) -> dict:
    """Measure `loaded` on `data`; write report.json, report.html and the figures to `output_dir`; return the report."""
    make_folder(output_dir)
    probabilities = predict_probabilities(loaded.model, loaded.preprocess, data.images, runtime, tta)
    report = {"checkpoint": str(loaded.path), "tta": tta, **measure(probabilities, data.labels, data.classes)}
    report["figures"] = ["confusion.png", "calibration.png", "mistakes.png", "attention.png"]
    plot_confusion(report, output_dir / "confusion.png")
    plot_calibration(report, output_dir / "calibration.png")
    plot_mistakes(probabilities, data, output_dir / "mistakes.png")
    examples = [int((data.labels == label).nonzero()[0]) for label in data.labels.unique()[:EXAMPLES]]
    draw_attention(loaded, data.images[examples], output_dir / "attention.png")
    write_json(output_dir / "report.json", report)
    write_page(report, loaded, output_dir, environment(runtime))
    return report


def write_page(report: dict, loaded: Pretrained, output: Path, environment: dict) -> None:
    """report.html: what there is to know of a checkpoint, in one file."""
    low, high = report["accuracy_interval"]
    facts = {
        f"of {report['images']:,} images right": f"{report['accuracy']:.2%}", "95 % interval": f"{low:.1%} to {high:.1%}",
        "expected calibration error": f"{report['calibration']['expected_error']:.3f}",
    }  # fmt: skip
    rows = [{"class": name, "right": f"{value:.1%}"} for name, value in report["per_class"].items()]
    notes = {
        "confusion.png": "What images are called", "calibration.png": "How sure, and how right",
        "mistakes.png": "Mistakes it was surest of", "attention.png": "Where it looks",
    }  # fmt: skip
    sections = [page.Section("Accuracy of each class", rows=rows)]
    sections += [page.Section(notes[name], pictures=[output / name]) for name in report["figures"]]
    settings = {"tta": report["tta"], "environment": environment}
    page.write_report(output / "report.html", f"ViT, {len(loaded.classes)} classes", facts, sections, settings)


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def plot_confusion(report: dict, path: Path) -> None:
    """Rows: what an image is; columns: what it is called; percent of the row. The diagonal is the per-class accuracy."""
    classes = list(report["per_class"])
    counts = np.array(report["confusion"], dtype=float)
    fraction = 100 * counts / counts.sum(1, keepdims=True).clip(1)
    side = max(4.5, 0.62 * len(classes) + 1.4)
    figure, axis = plt.subplots(figsize=(side, side))
    axis.imshow(
        fraction, cmap="Blues", norm=PowerNorm(0.5, 0, 115)
    )  # the root shows small fractions beside the diagonal
    if len(classes) <= 20:
        for (row, column), value in np.ndenumerate(fraction):
            if value >= 0.5:
                dark = value > 45
                axis.text(
                    column,
                    row,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="white" if dark else INK,
                )
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=9)
    axis.set_yticks(range(len(classes)), classes, fontsize=9)
    axis.set_xlabel("called")
    axis.set_ylabel("is")
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_title(f"{report['accuracy']:.2%} of {report['images']:,} images right; percent of each row")
    save(figure, path)


def plot_calibration(report: dict, path: Path) -> None:
    """Accuracy against confidence; on the diagonal a model is as sure as it is right."""
    bins = report["calibration"]["bins"]
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.8, 5.4), sharex=True, height_ratios=(4, 1))
    confidence = [part["confidence"] for part in bins]
    above.plot([0, 1], [0, 1], color=LINE, linewidth=1, linestyle="--")
    above.plot(confidence, [part["accuracy"] for part in bins], color=BLUE, marker="o")
    above.set_ylabel("fraction right")
    above.set_ylim(0, 1.02)
    above.set_title(f"expected calibration error {report['calibration']['expected_error']:.3f}")
    below.bar(confidence, [part["images"] for part in bins], width=0.8 / BINS, color=SKY)
    below.set_ylabel("images")
    below.set_xlabel("confidence of the answer")
    below.set_xlim(0, 1.02)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    save(figure, path)


def plot_mistakes(probabilities: torch.Tensor, data: Images, path: Path) -> None:
    """The wrong answers that the model was surest of."""
    confidence, guess = probabilities.max(1)
    wrong = (guess != data.labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MISTAKES]]
    rows = max(1, -(-len(worst) // 8))  # of eight
    figure, axes = plt.subplots(rows, 8, figsize=(11, 1.75 * rows), squeeze=False)
    figure.suptitle(f"{len(wrong):,} of {len(data):,} images wrong; the model was surest of these", fontsize=11)
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, worst.tolist()):
        axis.imshow(data.images[index].permute(1, 2, 0).cpu().numpy(), interpolation="bicubic")
        axis.set_title(
            f"{data.classes[guess[index]]} {confidence[index]:.0%}\nis {data.classes[data.labels[index]]}", fontsize=8
        )
    save(figure, path)
