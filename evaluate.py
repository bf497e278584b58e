"""How many tokens come back? Recovery from noise on the test split, against classical decoders.

    python evaluate.py --checkpoint RUN/best_model.pth --data_path data --output_dir RUN/report

Writes report.json and report.html, which holds all of it, recovery.png (recovery against noise for all decoders) and pixels.png (clean, noisy, recovered and wrong
pixels side by side). The decoders see the same noise: nearest color; unigram posterior; bigram and trigram forward-backward
(corpus/ngram.py, counted from the training text, no network); and the checkpoint's network. Intervals are 95 % ones over
chunks: bootstrap, and Wilson's where a chunk counts as right or wrong.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

import likelihood
from corpus.chunks import open_test, reported
from corpus.ngram import Context, unigram_context
from corpus.shards import Chunks
from diffusion import NGRAM_SEGMENT, SAMPLERS, Diffusion, Prediction
from kit import device, errors
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.figures import BLUE, GRAY, GREEN, LINE, ORANGE, RED, blank, plt, save
from kit.intervals import ratio_with_interval
from kit.page import Section, write_report
from kit.runlog import environment, make_folder, progress_bar, write_json
from picture import to_pixels
from pretrained import Pretrained, load_pretrained

SPACINGS = (0.28, 0.35, 0.455, 0.56, 0.7, 0.85, 1.225, 2.1, 3.5)  # noise levels, in units of the palette's spacing
PASSES = (1, 2, 4)
SHOWN = (0.9, 0.5, 0.2)  # nearest-color accuracies at which pixels.png is drawn
COLORS = {"model": GREEN, "trigram": BLUE, "bigram": RED, "unigram": ORANGE, "nearest": GRAY}
CLASSICAL = {2: "bigram", 3: "trigram"}  # decoders by the order of their n-grams
TRIGRAM_CANDIDATES = (24,)
LESS_MEMORY = "lower `batch_size`"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of train.py")
    parser.add_argument(
        "--data_path", default="data", help="folder of the data builder, of which test/ is used, or any raw text"
    )
    parser.add_argument("--output_dir", default="report", help="where to write")
    parser.add_argument(
        "--img_size", type=int, help="refuse a checkpoint of another image size (default: take the checkpoint's)"
    )
    parser.add_argument("--num_samples", type=int, default=256, help="held-out chunks, drawn at random")
    parser.add_argument(
        "--t", type=float, nargs="+", help="times to evaluate (default: nine noise levels around the palette's spacing)"
    )
    parser.add_argument("--passes", type=int, default=4, help="forward passes at the same noise to recover by")
    parser.add_argument(
        "--likelihood_levels",
        type=int,
        default=16,
        help="noise levels at which each chunk's likelihood is bounded; 0 = not",
    )
    parser.add_argument("--num_inference_steps", type=int, default=8, help="forward passes per full sampling")
    parser.add_argument("--sampler", default="euler", choices=SAMPLERS, help="a sampler that draws, for comparison")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights")
    parser.add_argument("--batch_size", type=int, default=32, help="chunks at once")
    add_common(parser, "device", "precision", "seed")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.num_samples < 1 or args.batch_size < 1 or args.num_inference_steps < 1 or args.passes < 1:
        raise UserError("--num_samples, --batch_size, --num_inference_steps and --passes need at least 1")
    if args.t and not all(0 < t < 1 for t in args.t):
        raise UserError("--t: give times between 0 (pure noise) and 1 (clean), both excluded")
    runtime = device.start(args.device, args.seed, args.precision)
    loaded = load_pretrained(args.checkpoint, runtime.device, args.img_size, args.ema)
    output = make_folder(args.output_dir)
    chunks = open_test(
        args.data_path, output / "data", loaded.tokenizer,
        min_tokens=min(64, loaded.capacity), max_tokens=loaded.capacity, seed=args.seed,
    )  # fmt: skip
    chunks.check(loaded.capacity, loaded.tokenizer.vocab_size, "img_size")
    held_out = HeldOut(chunks, loaded, args, runtime)

    half = held_out.sigma_at(0.5)
    spacing = loaded.diffusion.palette.spacing
    sigmas = [1 / t - 1 for t in args.t] if args.t else [spacing * level for level in SPACINGS]
    with torch.no_grad(), runtime.autocast(), progress_bar(len(sigmas) + 1, "recovery", unit="level") as bar:
        recovery = []
        for sigma in [*sorted(sigmas), half]:
            recovery.append(held_out.recovery(sigma))
            bar.update()
    at_half = recovery.pop()
    with torch.no_grad(), runtime.autocast():
        sampled = [held_out.sampled(half, sampler) for sampler in dict.fromkeys(("posterior", args.sampler))]
        bound = held_out.likelihood()

    report = {
        "checkpoint": str(args.checkpoint),
        "data": str(args.data_path),
        "num_chunks": len(held_out.chunks),
        "num_tokens": held_out.num_tokens,
        "vocab_size": loaded.tokenizer.vocab_size,
        "passes": args.passes,
        "recovery": recovery,
        "at_nearest_50": at_half,
        "sampled": sampled,
        "exact_match": sampled[0]["exact_match"],
        "char_error_rate": sampled[0]["char_error_rate"],
        "throughput": held_out.throughput(),
        "training": {
            "step": loaded.step,
            **{k: loaded.config[k] for k in ("model", "img_size", "objective", "palette", "scan", "ngram", "seed")},
            "parameters": sum(p.numel() for p in loaded.diffusion.network.parameters()),
        },
        "ngram_bits": held_out.ngram_bits(),
        "likelihood": bound,
        "environment": environment(runtime),
    }
    write_json(output / "report.json", report)
    plot_recovery(report, output / "recovery.png")
    with torch.no_grad(), runtime.autocast():
        plot_pixels(held_out, output / "pixels.png")
    write_page(report, held_out, output)
    names = [name for name in ("nearest", "unigram", *CLASSICAL.values(), "model") if at_half[name] is not None]
    print(f"{'sigma':>7} {'t':>6} " + " ".join(f"{name:>8}" for name in names) + "   model, bits/token")
    for row in [*recovery, at_half]:
        bits = "" if row["nll_bits"] is None else f"{row['nll_bits']:.3f}"
        mark = "  <- nearest color gets half" if row is at_half else ""
        print(
            f"{row['sigma']:7.3f} {row['t']:6.3f} "
            + " ".join(f"{row[name]:8.2%}" for name in names)
            + f"   {bits}{mark}"
        )
    for row in sampled:
        print(
            f"{row['num_inference_steps']} passes of {row['sampler']} from sigma {row['sigma']:.3f}: {row['accuracy']:.2%} of tokens, "
            f"{row['exact_match']:.1%} of chunks whole, character error rate {row['char_error_rate']:.2%}"
        )
    if bound:
        low, high = bound["bits_per_byte_ci"]
        print(
            f"as a language model: at most {bound['bits_per_byte']:.3f} bits per byte ({low:.3f} to {high:.3f}), "
            f"{bound['nll']:.3f} nats per token"
        )
    print(f"wrote {output}/report.json, report.html, recovery.png, pixels.png")
    runtime.finish()


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


class HeldOut:
    """Held-out chunks with fixed noise, and what each decoder makes of them."""

    def __init__(self, chunks: Chunks, loaded: Pretrained, args, runtime):
        self.loaded, self.args, self.runtime = loaded, args, runtime
        chosen = reported(chunks, args.num_samples)
        chosen = chosen[np.argsort(chunks.lengths[chosen], kind="stable")]  # like lengths together: less padding
        self.chunks = [chunks[i] for i in chosen]
        self.num_tokens = sum(map(len, self.chunks))
        self.tokens = torch.cat(self.chunks).to(runtime.device)
        self.texts = loaded.tokenizer.decode_batch(self.chunks)

    def batches(self):
        """Batches on the device, each with its own fixed noise (B, N, 3)."""
        generator = torch.Generator().manual_seed(self.args.seed)
        for start in range(0, len(self.chunks), self.args.batch_size):
            batch = self.loaded.collate(self.chunks[start : start + self.args.batch_size])
            batch["noise"] = torch.randn(*batch["tokens"].shape, 3, generator=generator).to(self.runtime.device)
            yield batch

    def likelihood(self) -> dict | None:
        """An upper bound on what the chunks cost under the network; the pixel objective has none."""
        if self.loaded.diffusion.objective == "pixel" or not self.args.likelihood_levels:
            return None
        args = self.args
        return likelihood.measure(self.loaded, self.chunks, args.likelihood_levels, 1, args.batch_size, args.seed)

    def ngram_bits(self) -> dict:
        """Bits per token of the n-gram models alone, as language models."""
        return {
            str(order): self.loaded.ngram.bits_per_token([c.numpy() for c in self.chunks], order)
            for order in range(2, self.loaded.ngram.order + 1)
        }

    def sigma_at(self, fraction: float) -> float:
        """The noise level at which nearest-color decoding recovers that fraction of these tokens."""
        colors = self.loaded.diffusion.palette.colors[self.tokens]
        noise = torch.randn(colors.shape, generator=torch.Generator().manual_seed(self.args.seed)).to(colors.device)
        low, high = 1e-3, 10.0
        for _ in range(30):
            sigma = math.sqrt(low * high)
            right = (self.loaded.diffusion.palette.decode(colors + sigma * noise) == self.tokens).float().mean()
            low, high = (sigma, high) if right > fraction else (low, sigma)
        return math.sqrt(low * high)

    def noisy(self, batch: dict, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.full((len(batch["tokens"]),), 1 / (1 + sigma), device=self.runtime.device)
        return self.loaded.diffusion.add_noise(batch["tokens"], t, batch["noise"]), t

    def recovery(self, sigma: float) -> dict:
        """Fraction of tokens recovered at noise `sigma` by each decoder, and bits per token where there is a likelihood."""
        diffusion, rows = self.loaded.diffusion, []
        for batch in self.batches():
            tokens, mask = batch["tokens"], batch["mask"]
            z, t = self.noisy(batch, sigma)
            guesses = {"nearest": diffusion.palette.decode(z / t[0])}
            nll = {}
            for name, found in self.passes(z, t, batch).items():
                guesses[f"passes {name}"], nll[f"passes {name}"] = found.tokens, found.nll
            for name, context, seen in classical(self.loaded, z, t, mask, self.runtime.dtype):
                guesses[name] = context.best(seen)
                if context.dense is not None:
                    nll[name] = -(context.dense + seen).gather(-1, tokens[..., None])[..., 0] * mask
            row = {name: ((guess == tokens) & mask).sum(1) for name, guess in guesses.items()}
            row |= {f"{name} nll": values.cpu().double().sum(1) for name, values in nll.items() if values is not None}
            rows.append({name: values.cpu().numpy() for name, values in {**row, "count": mask.sum(1)}.items()})
        table = {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
        result = {"t": 1 / (1 + sigma), "sigma": sigma}
        chosen = f"passes {self.args.passes}"
        for name in ("model", "nearest", "unigram", *CLASSICAL.values()):
            result[name], result[f"{name}_ci"] = None, None  # a checkpoint may have counted no trigrams
            if (column := chosen if name == "model" else name) in table:
                result[name], result[f"{name}_ci"] = ratio_with_interval(table[column], table["count"])
        for name, column in {
            "nll_bits": chosen,
            "unigram_bits": "unigram",
            "bigram_bits": "bigram",
            "trigram_bits": "trigram",
        }.items():
            result[name], result[f"{name}_ci"] = None, None
            if f"{column} nll" in table:
                bits = table[f"{column} nll"] / math.log(2)
                result[name], result[f"{name}_ci"] = ratio_with_interval(bits, table["count"])
        result["passes"] = {
            name.split()[1]: float(hits.sum() / table["count"].sum())
            for name, hits in table.items() if name.startswith("passes") and not name.endswith("nll")
        }  # fmt: skip
        return result

    def passes(self, z, t, batch: dict) -> dict[int, Prediction]:
        """What the network finds after each number of passes at the same noise."""
        diffusion, mask, found, result = self.loaded.diffusion, batch["mask"], None, {}
        observation = diffusion.observe(z, t, mask)
        wanted = {*PASSES, self.args.passes}
        for number in range(1, max(wanted) + 1):
            found = diffusion.predict(observation, t, mask, tokens=batch["tokens"], prev=found and found.prev)
            if number in wanted:
                result[number] = found
        return result

    def sampled(self, sigma: float, sampler: str) -> dict:
        """Full sampling from noise `sigma`: tokens right, chunks wholly right, character error rate."""
        found = []
        grid = self.loaded.grid(self.args.num_inference_steps, 1 / (1 + sigma))
        generator = torch.Generator(self.runtime.device).manual_seed(self.args.seed)
        for batch in self.batches():
            z, _ = self.noisy(batch, sigma)
            tokens = self.loaded.diffusion.sample(batch["mask"], grid, sampler, z, generator=generator)
            found += tokens.cpu()
        found = [row[: len(chunk)] for row, chunk in zip(found, self.chunks)]
        right = np.array([int((a == b).sum()) for a, b in zip(found, self.chunks)])
        count = np.array([len(c) for c in self.chunks])
        edits = np.array(
            [Levenshtein.distance(a, b) for a, b in zip(self.loaded.tokenizer.decode_batch(found), self.texts)]
        )
        result = {
            "t": 1 / (1 + sigma), "sigma": sigma, "sampler": sampler, "num_inference_steps": self.args.num_inference_steps,
        }  # fmt: skip
        for name, hits, out_of in (
            ("accuracy", right, count),
            ("exact_match", (right == count).astype(int), np.ones_like(count)),
            ("char_error_rate", edits, np.array([max(1, len(text)) for text in self.texts])),
        ):
            result[name], result[f"{name}_ci"] = ratio_with_interval(hits, out_of)
        return result

    @torch.no_grad()
    def sample(self, sigma: float) -> dict[str, str]:
        """The first chunk, and what is read of it at noise `sigma`."""
        batch = next(self.batches())
        z, t = self.noisy(batch, sigma)
        with self.runtime.autocast():
            found = self.loaded.diffusion.recover(z, t, batch["mask"], passes=self.args.passes).tokens
        nearest, real = self.loaded.diffusion.palette.decode(z / t[0]), batch["mask"][0]
        read = {"original": batch["tokens"], "nearest color": nearest, "recovered": found}
        return {name: self.loaded.tokenizer.decode(tokens[0][real].cpu()) for name, tokens in read.items()}

    def throughput(self) -> dict:
        """Tokens per second of one forward pass, over every batch once, after a warm-up; padding is not counted."""
        with torch.no_grad(), self.runtime.autocast():
            batches = list(self.batches())
            self._forward(batches[-1])
            start = time.perf_counter()
            for batch in batches:
                self._forward(batch)
            seconds = time.perf_counter() - start
        return {"tokens_per_second_per_pass": round(self.num_tokens / seconds), "batch_size": self.args.batch_size}

    def _forward(self, batch: dict) -> None:
        z, t = self.noisy(batch, 0.2)
        self.loaded.diffusion.denoise(z, t, batch["mask"]).tokens.sum().item()  # waits for the device


def classical(loaded: Pretrained, z, t, mask, dtype=torch.float32) -> list[tuple[str, Context, object]]:
    """Contexts of the decoders that have no network, with the likelihoods they go with, of z (B, N, 3) at times t (B,)."""
    with torch.autocast(z.device.type, enabled=False):
        seen = loaded.diffusion.likelihoods(z, t[:, None].expand(mask.shape))
        unigrams = unigram_context(seen, loaded.diffusion.log_unigram)
        contexts = loaded.ngram.contexts(seen, mask, candidates=TRIGRAM_CANDIDATES, segment=NGRAM_SEGMENT, dtype=dtype)
    counted = [(CLASSICAL[order], context, seen) for order, context in enumerate(contexts, 2)]
    return [("unigram", unigrams, seen), *counted]


# ----------------------------------------------------------------------------------------------------------------------
# Figures and page


def write_page(report: dict, held_out: HeldOut, output: Path) -> None:
    """report.html: what there is to know of a checkpoint, in one file."""
    half, bound, training = report["at_nearest_50"], report["likelihood"], report["training"]
    names = [name for name in ("nearest", "unigram", *CLASSICAL.values(), "model") if half[name] is not None]
    facts = {f"recovered where the nearest color gets half (σ = {half['sigma']:.3f})": f"{half['model']:.1%}"}
    facts |= {f"{name} decoder there": f"{half[name]:.1%}" for name in names[1:-1]}
    if bound:
        facts["bits per byte, at most"] = f"{bound['bits_per_byte']:.2f}"
    rows = [
        {"noise σ": row["sigma"], **{name: f"{row[name]:.1%}" for name in names}, "bits per token": row["nll_bits"]}
        for row in report["recovery"]
    ]
    sampled = [
        {
            "sampler": row["sampler"], "passes": row["num_inference_steps"], "tokens right": f"{row['accuracy']:.1%}",
            "chunks wholly right": f"{row['exact_match']:.1%}", "character error rate": f"{row['char_error_rate']:.2%}",
        }
        for row in report["sampled"]
    ]  # fmt: skip
    settings = {"training": training, "evaluation": vars(held_out.args), "environment": report["environment"]}
    tokens = f"{report['num_tokens']:,} test tokens in {report['num_chunks']:,} chunks, {report['passes']} passes"
    sections = [
        Section("Recovery from noise", f"Fraction of {tokens}.", rows, [output / "recovery.png"]),
        Section("Clean, noisy, recovered and wrong pixels", pictures=[output / "pixels.png"]),
        Section("Sampled from the noise at which the nearest color gets half", rows=sampled),
        Section("A test text, and the same read from noise", texts=held_out.sample(half["sigma"])),
    ]
    title = f"{training['model']} on token colors, {report['vocab_size']} tokens, step {training['step']:,}"
    write_report(output / "report.html", title, facts, sections, settings)


def plot_recovery(report: dict, path: Path) -> None:
    """Fraction of tokens recovered against the noise, with intervals, for every decoder."""
    rows = sorted([*report["recovery"], report["at_nearest_50"]], key=lambda row: row["sigma"])
    sigma = [row["sigma"] for row in rows]
    network = {0: "network", 2: "network with bigrams", 3: "network with trigrams"}[report["training"]["ngram"]]
    labels = {
        "model": network, "trigram": "trigram forward-backward", "bigram": "bigram forward-backward",
        "unigram": "unigram posterior", "nearest": "nearest color",
    }  # fmt: skip
    figure, axis = plt.subplots(figsize=(7.2, 5.2))
    for name, label in labels.items():
        if rows[0][name] is None:
            continue
        low, high = zip(*(row[f"{name}_ci"] for row in rows))
        axis.fill_between(sigma, low, high, color=COLORS[name], alpha=0.18, linewidth=0)
        axis.plot(sigma, [row[name] for row in rows], color=COLORS[name], marker="o", label=label)
    half = report["at_nearest_50"]
    note = f"nearest color gets half, {network} {half['model']:.1%}"
    axis.axvline(half["sigma"], color=LINE, linewidth=0.8, linestyle="--", zorder=0, label=note)
    axis.set_xscale("log")
    ticks = [s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if min(sigma) * 0.9 <= s <= max(sigma) * 1.1]
    axis.set_xticks(ticks, [f"{s:g}" for s in ticks])
    axis.minorticks_off()
    axis.set_xlabel("noise on colors in [−1, 1], σ = (1 − t) / t")
    axis.set_ylabel("fraction of test tokens recovered")
    axis.set_ylim(0, 1.02)
    figure.legend(loc="outside lower center", ncols=2)
    training = report["training"]
    axis.set_title(
        f"{training['model']}, {training['objective']} objective, {report['vocab_size']} tokens, {report['num_tokens']:,} test tokens"
    )
    save(figure, path)


def plot_pixels(held_out: HeldOut, path: Path) -> None:
    """A typical long chunk at three noise levels: clean, noisy, recovered, and which pixels are wrong."""
    diffusion: Diffusion = held_out.loaded.diffusion
    batch = typical_chunk(held_out)
    to_image = diffusion.layout.to_image
    mask = to_image(batch["mask"])[0].cpu().numpy()
    clean = to_image(diffusion.palette.colors[batch["tokens"]])[0]
    figure, axes = plt.subplots(len(SHOWN), 4, figsize=(8.6, 7.0))
    for row, fraction in zip(axes, SHOWN):
        sigma = held_out.sigma_at(fraction)
        z, t = held_out.noisy(batch, sigma)
        found = diffusion.recover(z, t, batch["mask"], passes=held_out.args.passes).tokens
        recovered = to_image(diffusion.palette.colors[found])[0]
        right = to_image(found == batch["tokens"])[0].cpu().numpy()
        nearest = diffusion.palette.decode(z / t[0]) == batch["tokens"]
        wrong = np.where(right[..., None], np.array([232, 236, 239]), np.array([213, 94, 0]))
        kept = right[mask].mean()
        nearest_kept = nearest[batch["mask"]].float().mean().item()
        panels = (
            (to_pixels(clean), "clean"),
            (to_pixels(to_image(z / t[0])[0]), f"noisy, σ = {sigma:.3f}\nnearest color {nearest_kept:.0%}"),
            (to_pixels(recovered), f"recovered\n{kept:.0%} of tokens"),
            (wrong, f"wrong tokens\n{(~right & mask).sum()} of {mask.sum()}"),
        )
        for axis, (pixels, title) in zip(row, panels):
            axis.imshow(np.where(mask[..., None], pixels, 255).astype(np.uint8), interpolation="nearest")
            axis.set_title(title, fontsize=8.5)
            blank(axis, frame=True)
    save(figure, path)


def typical_chunk(held_out: HeldOut) -> dict:
    """A batch of one: of the last (longest) batch, the chunk of median accuracy where the nearest color gets half."""
    *_, batch = held_out.batches()
    z, t = held_out.noisy(batch, held_out.sigma_at(0.5))
    right = (held_out.loaded.diffusion.denoise(z, t, batch["mask"]).tokens == batch["tokens"]) & batch["mask"]
    order = (right.sum(1) / batch["num_tokens"]).argsort()
    chosen = int(order[len(order) // 2])
    return {name: value[chosen : chosen + 1] for name, value in batch.items()}


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
