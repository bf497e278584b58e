"""How many tokens come back? Recovery from noise on held-out text, against decoders that need no model.

    python evaluate.py --checkpoint RUN/best_model.pth --data_path data/val --output_dir RUN/report

Writes report.json, recovery.png (recovery against noise for the model, the unigram posterior and the nearest color) and
pixels.png (clean, noisy, recovered and wrong pixels side by side). All three decoders see the same noise. Intervals are
95 % bootstrap intervals over chunks.
"""

import argparse
import math
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from dataset import collate
from diffusion import SAMPLERS, Diffusion
from kit import device, errors
from kit.chunks import Chunks, open_chunks
from kit.errors import UserError
from kit.runlog import environment, make_folder, progress_bar, write_json
from palette import to_pixels
from pretrained import Pretrained, load_pretrained

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GRID_POINTS = 12
SHOWN = (0.9, 0.5, 0.2)  # nearest-color accuracies at which full sampling is measured and pixels.png is drawn
COLORS = {"model": "#0b6e4f", "unigram": "#c8963e", "nearest": "#8d99ae"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    show = " (default: %(default)s)"
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of train.py")
    parser.add_argument("--data_path", default="data/val", help="chunks of the data builder, or any raw text" + show)
    parser.add_argument("--output_dir", default="report", help="where to write" + show)
    parser.add_argument(
        "--img_size", type=int, help="refuse a checkpoint of another image size (default: take the checkpoint's)"
    )
    parser.add_argument("--num_samples", type=int, default=256, help="held-out chunks, drawn at random" + show)
    parser.add_argument(
        "--t", type=float, nargs="+", help="times to look at (default: 12 noise levels around the palette's spacing)"
    )
    parser.add_argument("--num_inference_steps", type=int, default=8, help="looks per full sampling" + show)
    parser.add_argument("--sampler", default="euler", choices=SAMPLERS, help="of full sampling" + show)
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights" + show
    )
    parser.add_argument("--batch_size", type=int, default=32, help="chunks at once" + show)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N" + show)
    parser.add_argument(
        "--precision",
        default="auto",
        choices=device.PRECISIONS,
        help="auto is bf16 where the hardware multiplies in it, else fp32" + show,
    )
    parser.add_argument("--seed", type=int, default=0, help="of chunks and noise" + show)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.num_samples < 1 or args.batch_size < 1 or args.num_inference_steps < 1:
        raise UserError("--num_samples, --batch_size and --num_inference_steps need at least 1")
    if args.t and not all(0 < t < 1 for t in args.t):
        raise UserError("--t: give times between 0 (pure noise) and 1 (clean), both excluded")
    runtime = device.start(args.device, args.seed, args.precision)
    loaded = load_pretrained(args.checkpoint, runtime.device, args.img_size, args.ema)
    output = make_folder(args.output_dir)
    chunks, _, _ = open_chunks(
        args.data_path,
        output / "data",
        loaded.tokenizer,
        min_tokens=min(64, loaded.capacity),
        max_tokens=loaded.capacity,
        val_fraction=0.0,
        seed=args.seed,
    )
    chunks.check(loaded.capacity, loaded.tokenizer.vocab_size, "--img_size")
    held_out = HeldOut(chunks, loaded, args, runtime)

    half = held_out.sigma_at(0.5)
    spacing = loaded.diffusion.palette.spacing
    sigmas = [1 / t - 1 for t in args.t] if args.t else np.geomspace(spacing / 5, 1.5, GRID_POINTS).tolist()
    with torch.no_grad(), runtime.autocast(), progress_bar(len(sigmas) + 1, "recovery", unit="level") as bar:
        recovery = []
        for sigma in [*sorted(sigmas), half]:
            recovery.append(held_out.recovery(sigma))
            bar.update()
    at_half = recovery.pop()
    with torch.no_grad(), runtime.autocast(), progress_bar(len(SHOWN), "sampling", unit="level") as bar:
        sampled = []
        for share in SHOWN:
            sampled.append(held_out.sampled(held_out.sigma_at(share)))
            bar.update()
    middle = sampled[SHOWN.index(0.5)]

    report = {
        "checkpoint": str(args.checkpoint),
        "data": str(args.data_path),
        "num_chunks": len(held_out.chunks),
        "num_tokens": held_out.num_tokens,
        "vocab_size": loaded.tokenizer.vocab_size,
        "recovery": recovery,
        "at_nearest_50": at_half,
        "sampled": sampled,
        "exact_match": middle["exact_match"],
        "char_error_rate": middle["char_error_rate"],
        "throughput": held_out.throughput(),
        "training": {
            "step": loaded.step,
            **{k: loaded.config[k] for k in ("model", "img_size", "objective", "palette", "scan", "seed")},
        },
        "environment": environment(runtime),
    }
    write_json(output / "report.json", report)
    plot_recovery(report, output / "recovery.png")
    with torch.no_grad(), runtime.autocast():
        plot_pixels(held_out, output / "pixels.png")
    print(f"{'sigma':>7} {'t':>6} {'nearest':>8} {'unigram':>8} {'model':>8}   bits/token")
    for row in [*recovery, at_half]:
        bits = "" if row["nll_bits"] is None else f"{row['nll_bits']:.3f}"
        mark = "  <- nearest color gets half" if row is at_half else ""
        print(
            f"{row['sigma']:7.3f} {row['t']:6.3f} {row['nearest']:8.2%} {row['unigram']:8.2%} {row['model']:8.2%}   {bits}{mark}"
        )
    for row in sampled:
        print(
            f"full sampling from sigma {row['sigma']:.3f}: {row['accuracy']:.2%} of tokens, {row['exact_match']:.1%} of chunks whole, "
            f"character error rate {row['char_error_rate']:.2%}"
        )
    print(f"wrote {output}/report.json, recovery.png, pixels.png")
    runtime.finish()


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


class HeldOut:
    """Held-out chunks with fixed noise, and what each decoder makes of them."""

    def __init__(self, chunks: Chunks, loaded: Pretrained, args, runtime):
        self.loaded, self.args, self.runtime = loaded, args, runtime
        chosen = np.random.default_rng(args.seed).permutation(len(chunks))[: args.num_samples]
        chosen = chosen[np.argsort(chunks.lengths[chosen], kind="stable")]  # like lengths together: less padding
        self.chunks = [chunks[i] for i in chosen]
        self.num_tokens = sum(map(len, self.chunks))
        self.tokens = torch.cat(self.chunks).to(runtime.device)
        self.texts = loaded.tokenizer.decode_batch(self.chunks)

    def batches(self):
        """Batches on the device, each with its own fixed noise (B, N, 3)."""
        generator = torch.Generator().manual_seed(self.args.seed)
        for start in range(0, len(self.chunks), self.args.batch_size):
            batch = collate(self.chunks[start : start + self.args.batch_size], self.loaded.capacity)
            batch["noise"] = torch.randn(*batch["tokens"].shape, 3, generator=generator)
            yield {name: value.to(self.runtime.device) for name, value in batch.items()}

    def sigma_at(self, share: float) -> float:
        """The noise level at which nearest-color decoding recovers `share` of these tokens."""
        colors = self.loaded.diffusion.palette.colors[self.tokens]
        noise = torch.randn(colors.shape, generator=torch.Generator().manual_seed(self.args.seed)).to(colors.device)
        low, high = 1e-3, 10.0
        for _ in range(30):
            sigma = math.sqrt(low * high)
            right = (self.loaded.diffusion.palette.decode(colors + sigma * noise) == self.tokens).float().mean()
            low, high = (sigma, high) if right > share else (low, sigma)
        return math.sqrt(low * high)

    def noisy(self, batch: dict, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.full((len(batch["tokens"]),), 1 / (1 + sigma), device=self.runtime.device)
        return self.loaded.diffusion.add_noise(batch["tokens"], t, batch["noise"]), t

    def recovery(self, sigma: float) -> dict:
        """One look at noise `sigma`: share of tokens right for the three decoders, and the model's bits per token."""
        diffusion, rows, nll = self.loaded.diffusion, [], []
        for batch in self.batches():
            tokens, mask = batch["tokens"], batch["mask"]
            z, t = self.noisy(batch, sigma)
            patches = diffusion.canvas.patches_for(int(batch["num_tokens"].max()))
            guess = diffusion.denoise(z, t, mask, tokens=tokens, num_patches=patches)
            noisy = diffusion.canvas.read(z)
            unigram = torch.zeros_like(tokens)
            evidence = diffusion.evidence(noisy[mask], t[:, None].expand_as(mask)[mask])
            unigram[mask] = (evidence + self.loaded.log_unigram).argmax(-1)
            guesses = {"model": guess.tokens, "unigram": unigram, "nearest": diffusion.palette.decode(noisy / t[0])}
            rows.append(
                {k: ((g == tokens) & mask).sum(1).cpu().numpy() for k, g in guesses.items()}
                | {"count": mask.sum(1).cpu().numpy()}
            )
            if guess.nll is not None:
                nll.append(guess.nll.sum(1).double().cpu().numpy())
        table = {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
        result = {"t": 1 / (1 + sigma), "sigma": sigma}
        for name in ("model", "nearest", "unigram"):
            result[name], result[f"{name}_ci"] = share_with_interval(table[name], table["count"])
        result["nll_bits"], result["nll_bits_ci"] = None, None
        if nll:
            result["nll_bits"], result["nll_bits_ci"] = share_with_interval(
                np.concatenate(nll) / math.log(2), table["count"]
            )
        return result

    def sampled(self, sigma: float) -> dict:
        """Full sampling from noise `sigma`: tokens right, chunks wholly right, character error rate."""
        found = []
        grid = self.loaded.grid(self.args.num_inference_steps, 1 / (1 + sigma))
        generator = torch.Generator(self.runtime.device).manual_seed(self.args.seed)
        for batch in self.batches():
            z, _ = self.noisy(batch, sigma)
            tokens = self.loaded.diffusion.sample(batch["mask"], grid, self.args.sampler, z, generator=generator)
            found += [row[mask].cpu() for row, mask in zip(tokens, batch["mask"])]
        right = np.array([int((a == b).sum()) for a, b in zip(found, self.chunks)])
        count = np.array([len(c) for c in self.chunks])
        edits = np.array(
            [Levenshtein.distance(a, b) for a, b in zip(self.loaded.tokenizer.decode_batch(found), self.texts)]
        )
        result = {"t": 1 / (1 + sigma), "sigma": sigma, "num_inference_steps": self.args.num_inference_steps}
        for name, hits, out_of in (
            ("accuracy", right, count),
            ("exact_match", (right == count).astype(int), np.ones_like(count)),
            ("char_error_rate", edits, np.array([max(1, len(text)) for text in self.texts])),
        ):
            result[name], result[f"{name}_ci"] = share_with_interval(hits, out_of)
        return result

    def throughput(self) -> dict:
        """Tokens per second of one look, over every batch once, after a warm-up; padding is not counted."""
        with torch.no_grad(), self.runtime.autocast():
            batches = list(self.batches())
            self._look(batches[-1])
            start = time.perf_counter()
            for batch in batches:
                self._look(batch)
            seconds = time.perf_counter() - start
        return {"tokens_per_second_per_look": round(self.num_tokens / seconds), "batch_size": self.args.batch_size}

    def _look(self, batch: dict) -> None:
        z, t = self.noisy(batch, 0.2)
        patches = self.loaded.diffusion.canvas.patches_for(int(batch["num_tokens"].max()))
        self.loaded.diffusion.denoise(
            z, t, batch["mask"], num_patches=patches
        ).tokens.sum().item()  # waits for the device


def share_with_interval(hits: np.ndarray, out_of: np.ndarray, resamples: int = 1000) -> tuple[float, list[float]]:
    """sum(hits) / sum(out_of) over chunks, and its 95 % interval by resampling the chunks."""
    draws = np.random.default_rng(0).multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=resamples)
    shares = (draws @ hits) / np.maximum(draws @ out_of, 1)
    return float(hits.sum() / out_of.sum()), [float(q) for q in np.quantile(shares, (0.025, 0.975))]


# ----------------------------------------------------------------------------------------------------------------------
# Figures


def plot_recovery(report: dict, path: Path) -> None:
    """Share of tokens recovered in one look against the noise, with intervals, for the three decoders."""
    rows = sorted([*report["recovery"], report["at_nearest_50"]], key=lambda row: row["sigma"])
    sigma = [row["sigma"] for row in rows]
    labels = {
        "model": "model, one look",
        "unigram": "unigram posterior (no model)",
        "nearest": "nearest color (no model)",
    }
    figure, axis = plt.subplots(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    for name, label in labels.items():
        low, high = zip(*(row[f"{name}_ci"] for row in rows))
        axis.fill_between(sigma, low, high, color=COLORS[name], alpha=0.18, linewidth=0)
        axis.plot(sigma, [row[name] for row in rows], color=COLORS[name], marker="o", markersize=3.5, label=label)
    points = [(row["sigma"], row["accuracy"]) for row in report["sampled"]]
    axis.plot(
        *zip(*points),
        "D",
        color="#111111",
        markersize=5,
        markerfacecolor="none",
        label=f"model, {report['sampled'][0]['num_inference_steps']} looks",
    )
    half = report["at_nearest_50"]
    axis.axvline(half["sigma"], color="#bbbbbb", linewidth=0.8, linestyle="--", zorder=0)
    axis.annotate(
        f"nearest color gets half;\nthe model gets {half['model']:.1%}", (half["sigma"], half["model"]),
        xytext=(14, 6), textcoords="offset points", fontsize=8.5, color="#333333",
    )  # fmt: skip
    axis.set_xscale("log")
    ticks = [s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if min(sigma) * 0.9 <= s <= max(sigma) * 1.1]
    axis.set_xticks(ticks, [f"{s:g}" for s in ticks])
    axis.minorticks_off()
    axis.set_xlabel("noise on colors in [−1, 1], σ = (1 − t) / t")
    axis.set_ylabel("share of held-out tokens recovered")
    axis.set_ylim(0, 1.02)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower left", fontsize=9)
    training = report["training"]
    axis.set_title(
        f"{training['model']}, {training['objective']} objective, {report['vocab_size']} tokens, {report['num_tokens']:,} held-out tokens",
        fontsize=10,
    )
    figure.savefig(path)
    plt.close(figure)


def plot_pixels(held_out: HeldOut, path: Path) -> None:
    """A typical long chunk at three noise levels: clean, noisy, recovered, and which pixels are wrong."""
    diffusion: Diffusion = held_out.loaded.diffusion
    batch = typical_chunk(held_out)
    mask = diffusion.canvas.paint(batch["mask"])[0].cpu().numpy()
    clean = diffusion.canvas.paint(diffusion.palette.colors[batch["tokens"]])[0]
    figure, axes = plt.subplots(len(SHOWN), 4, figsize=(8.6, 7.0), dpi=150, layout="constrained")
    for row, share in zip(axes, SHOWN):
        sigma = held_out.sigma_at(share)
        z, t = held_out.noisy(batch, sigma)
        guess = diffusion.denoise(z, t, batch["mask"])
        recovered = diffusion.canvas.paint(diffusion.palette.colors[guess.tokens])[0]
        right = diffusion.canvas.paint(guess.tokens == batch["tokens"])[0].cpu().numpy()
        nearest = diffusion.palette.decode(diffusion.canvas.read(z / t[0])) == batch["tokens"]
        wrong = np.where(right[..., None], np.array([232, 236, 239]), np.array([200, 40, 40]))
        kept = right[mask].mean()
        nearest_kept = nearest[batch["mask"]].float().mean().item()
        panels = (
            (to_pixels(clean), "clean"),
            (to_pixels(z[0] / t[0]), f"noisy, σ = {sigma:.3f}\nnearest color {nearest_kept:.0%}"),
            (to_pixels(recovered), f"recovered in one look\n{kept:.0%} of tokens"),
            (wrong, f"wrong tokens\n{(~right & mask).sum()} of {mask.sum()}"),
        )
        for axis, (pixels, title) in zip(row, panels):
            axis.imshow(np.where(mask[..., None], pixels, 255).astype(np.uint8), interpolation="nearest")
            axis.set_title(title, fontsize=8.5)
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color("#cccccc")
    figure.savefig(path)
    plt.close(figure)


def typical_chunk(held_out: HeldOut) -> dict:
    """A batch of one: of the last (longest) batch, the chunk of median accuracy where the nearest color gets half."""
    *_, batch = held_out.batches()
    z, t = held_out.noisy(batch, held_out.sigma_at(0.5))
    right = (held_out.loaded.diffusion.denoise(z, t, batch["mask"]).tokens == batch["tokens"]) & batch["mask"]
    order = (right.sum(1) / batch["num_tokens"]).argsort()
    chosen = order[len(order) // 2]
    return {name: value[chosen : chosen + 1] for name, value in batch.items()}


if __name__ == "__main__":
    errors.run(main)
