"""The figures of a report of evaluate.py, and its page."""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.figures import BLUE, GRAY, GREEN, ORANGE, RED, SKY, blank, plt, save
from kit.page import Section, write_report
from kit.times import TimeSampler
from tokcom.ngram_decoder import NAMES

MAP_CHUNKS = 3000
DENOISED = {
    "decoder_only": "decoder only", "decoder_bigrams": "decoder and bigrams", "decoder_trigrams": "decoder and trigrams",
    "no_context": "network, each chunk alone", "model": "network", "model_trigrams": "network and trigrams",
}  # fmt: skip


def write_page(report: dict, args: argparse.Namespace, output: Path) -> None:
    """report.html: what there is to know of a checkpoint, in one file."""
    facts = {
        "tokens reconstructed": f"{report['reconstruction']:.2%}",
        "… with noise of 0.3 on the vectors": f"{report['reconstruction_at_noise']['0.3']:.2%}",
        "nats per token, at most": f"{report['nll']:.2f}", "BrierLM": f"{report['brier_lm']:.3f}",
        "dimensions in use": f"{report['active_dims']} of {report['latent_dim']}",
    }  # fmt: skip
    denoise = [
        {
            "noise level t": row["noise_level"],
            **{name: f"{row[name]:.1%}" for name in DENOISED if name in row},
        }
        for row in report["denoise"]
    ]
    compression = report["compression"]
    sizes = [
        {
            "numbers of": f"{row['bits']} bits",
            "bits per token": row["bits_per_token"],
            "tokens recovered": f"{row['recovered']:.2%}",
        }
        for row in compression["vectors"]
    ]
    others = ", ".join(f"{name} {compression[name]:.2f}" for name in ("zstd", *NAMES.values()) if name in compression)
    passes = [{"forward passes": row["nfe"], "BrierLM": row["brier_lm"]} for row in report["by_nfe"]]
    tokens = f"{report['num_tokens']:,} held-out tokens in {report['num_sequences']:,} sequences"
    sections = [
        Section(
            "Tokens recovered from noisy vectors", f"Fraction of {tokens}.", denoise, [output / "reconstruction.png"]
        ),
        Section("Vectors of few bits", f"The text itself, bits per token: {others}.", sizes),
        Section("Writing", "The chunk after a real prompt, against forward passes.", passes, [output / "nfe.png"]),
        Section("Noise schedule", pictures=[output / "schedule.png"]),
        Section("Map of the vectors", pictures=[output / "map.png"]),
    ]
    title = f"TokCom: {report['chunk_size']} tokens in a vector of {report['latent_dim']} numbers"
    settings = {"evaluation": vars(args), "environment": report["environment"]}
    write_report(output / "report.html", title, facts, sections, settings)


def plot_reconstruction(report: dict, path: Path) -> None:
    """Left: tokens recovered against noise on the latents. Right: against where the flow starts."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.9), sharey=True)
    noises = [0.0, *map(float, report["reconstruction_at_noise"])]
    left.plot(
        noises,
        [report["reconstruction"], *report["reconstruction_at_noise"].values()],
        "o-",
    )
    left.set_xlabel("noise on the latents, standard deviations")
    left.set_ylabel("fraction of held-out tokens recovered")
    left.set_title(f"VAE alone, {report['chunk_size']} tokens in {report['latent_dim']} numbers")
    levels = [row["noise_level"] for row in report["denoise"]]
    for (key, label), color in zip(DENOISED.items(), (GRAY, ORANGE, SKY, RED, BLUE, GREEN)):
        if key not in report["denoise"][0]:
            continue
        right.plot(levels, [row[key] for row in report["denoise"]], "o-", color=color, label=label)
    right.set_xlabel("noise_level (0 = pure noise, 1 = none)")
    right.set_title("flow, one forward pass")
    right.legend(loc="lower right")
    for axis in (left, right):
        axis.set_ylim(0, 1.02)
    save(figure, path)


def plot_nfe(report: dict, path: Path) -> None:
    """Quality against forward passes of the network."""
    figure, axis = plt.subplots(figsize=(5.2, 3.9))
    nfe = [row["nfe"] for row in report["by_nfe"]]
    for values, label, color in (
        ([row["brier"][0] for row in report["by_nfe"]], "its first token (Brier)", GRAY),
        ([row["brier_lm"] for row in report["by_nfe"]], "all of it (BrierLM)", BLUE),
    ):
        axis.plot(nfe, values, "o-", color=color, label=label)
    axis.legend()
    axis.set_xscale("log", base=2)
    axis.set_xticks(nfe, nfe)
    axis.set_xlabel("forward passes (NFE) for a chunk")
    axis.set_ylabel("score of the chunk after a real prompt")
    save(figure, path)


def plot_schedule(times: TimeSampler, path: Path) -> None:
    """Cross-entropy as measured in training: against noise, with where times were drawn; and over the times drawn.

    The adaptive schedule makes the latter straight: the loss rises evenly over the times drawn.
    """
    figure, axes = plt.subplot_mosaic("AC;BC", figsize=(9.6, 4.8))
    above, below, over = (axes[name] for name in "ABC")
    sigma = ((times.edges[1:] + times.edges[:-1]) / 2).exp().numpy()
    curve = times.curve()
    if curve is not None:
        above.plot(sigma, curve.numpy(), color=BLUE)
    for density, label, color in ((times.start, "initial", GRAY), (times.density, "adaptive", BLUE)):
        below.plot(sigma, density.numpy(), color=color, label=label)
        if curve is not None:
            over.plot((density.cumsum(0) - density / 2).numpy(), curve.numpy(), color=color, label=label)
    above.set_ylabel("cross-entropy, nats per token")
    above.tick_params(labelbottom=False)
    below.set_ylabel("probability of training times")
    below.set_xlabel("noise σ = (1 − t) / t")
    below.legend()
    over.set_xlabel("times drawn, least noise first")
    over.set_ylabel("cross-entropy, nats per token")
    for axis in (above, below):
        axis.set_xscale("log")
    save(figure, path)


def plot_map(latents: torch.Tensor, texts: list[str], path: Path) -> None:
    """The two directions in which latents (chunks, latent_dim) vary most, with the texts of chunks written where they lie."""
    latents = latents[:MAP_CHUNKS].float().cpu()
    _, _, directions = torch.pca_lowrank(F.pad(latents, (0, 1)), q=2, niter=4)  # two directions even of a single number
    points = (F.pad(latents - latents.mean(0), (0, 1)) @ directions).numpy()
    figure, axis = plt.subplots(figsize=(9, 7))
    axis.scatter(*points.T, s=3, color=SKY, alpha=0.4)
    taken: list[np.ndarray] = []
    span = points.max(0) - points.min(0)
    for index in np.random.default_rng(0).permutation(len(points)):
        place = points[index] / span * (9, 22)
        text = texts[index].replace("\n", "⏎").replace("$", r"\$").strip()
        if text and all((np.abs(place - other) > 1).any() for other in taken):
            taken.append(place)
            axis.annotate(text, points[index], fontsize=7, ha="center", va="center")
    blank(axis)
    axis.set_title("held-out chunks along the two main directions of their vectors")
    save(figure, path)
