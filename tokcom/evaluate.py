"""Measure a trained TokCom on held-out text: report.json, report.html and figures.

    python -m tokcom.evaluate --checkpoint RUN/best_diffusion.pt --data_path RUN/data --output_dir RUN/report

Of built data it reads the test set, which neither trained the checkpoint nor chose it; corpus/chunks.py says which sequences.
Padding and prompts count nowhere. Accuracies are fractions of held-out tokens. `nll` is the variational bound of the whole model
in nats per token (Kingma et al., arXiv 2107.00630): the cross-entropy of one forward pass at the least noise, plus half the squared error of
the denoiser integrated over the signal-to-noise ratio, for the least noise that makes the sum smallest. `brier_lm` is CALM's
(arXiv 2510.27688): two independent continuations of real prompts by whole chunks, at least 4 tokens, n-grams of it against the true one,
geometric mean over n = 1 to 4. `no_context` is the network on each chunk without its neighbors, `decoder_only` the VAE's decoder without the network,
`decoder_bigrams` and `decoder_trigrams` what n-grams of the training text make of its posteriors (tokcom/ngram_decoder.py), `model_trigrams` what they make of
the network's. `compression` counts bits per token: of vectors whose numbers are quantized (tokcom/quantize.py), of the text under
zstd at its strongest, and under n-grams of the training text as a language model. `nfe` counts forward passes of the network; `flops_per_token_and_pass` is of a pass over whole sequences, divided by their
tokens; to write one chunk every pass includes its prompt.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from backports import zstd
from torch.utils.flop_counter import FlopCounterMode

from corpus import brier
from corpus.brier import NGRAMS, brier_lm, passages
from corpus.chunks import is_built, open_built, open_test, reported
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer
from kit import device, errors
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.runlog import environment, make_folder, progress_bar, write_json
from kit.textfile import read_text
from kit.times import TimeSampler
from tokcom.dataset import chosen_batches
from tokcom.figures import plot_map, plot_nfe, plot_reconstruction, plot_schedule, write_page
from tokcom.flow import Flow, real_chunks
from tokcom.inference import decode, encode, load_checkpoint, read_ids
from tokcom.ngram_decoder import NAMES, NGramDecoder
from tokcom.quantize import dequantize, quantize
from tokcom.stages import by_chunk, to_device

BITS = (1, 2, 3, 4, 8)  # of each number of a vector
ZSTD_LEVEL = 22
LATENT_NOISES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
NOISE_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NFE = (1, 2, 4, 8, 16, 32, 64)
ACTIVE_VARIANCE = 0.01  # of a dimension's posterior mean (Burda et al., arXiv 1509.00519)
MIN_SIGMA, MAX_SIGMA, NLL_LEVELS = 0.1, 20.0, 24  # of the bound's integral
TUNED = 32  # training sequences on which the weights of the n-grams are tuned
LESS_MEMORY = "lower `num_samples` and `num_prompts`"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", required=True, help="best_diffusion.pt of a run")
    parser.add_argument(
        "--data_path", required=True, help="data of a run (its test set), one of its splits, or any raw text"
    )
    parser.add_argument("--output_dir", required=True, help="folder for report.json and the figures")
    parser.add_argument("--book", help="UTF-8 text to encode and decode in whole (default: the held-out sequences)")
    parser.add_argument("--num_samples", type=int, default=128, help="sequences measured")
    brier.add_arguments(parser)
    parser.add_argument("--num_steps", type=int, default=16, help="forward passes for brier_lm")
    parser.add_argument(
        "--without_ngrams", action="store_true", help="leave out the decoder with n-grams, which takes most of the time"
    )
    add_common(parser, "seed", "device", "precision")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    brier.check(args)
    for name in ("num_samples", "num_steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    runtime = device.start(args.device, args.seed, args.precision)
    vae, denoiser, model_args, config = load_checkpoint(args.checkpoint, runtime.device)
    if denoiser is None:
        raise UserError(f"{args.checkpoint} holds a VAE only; evaluate best_diffusion.pt")
    tokenizer = Tokenizer.from_json(config["tokenizer"])
    book = read_ids(read_text(args.book), tokenizer) if args.book else None
    output = make_folder(args.output_dir)
    chunks = open_test(
        args.data_path, output / "data", tokenizer, min_tokens=min(64, model_args.max_length),
        max_tokens=model_args.max_length, seed=args.seed,
    )  # fmt: skip
    chunks.check(model_args.max_length, tokenizer.vocab_size, "max_length")
    flow = Flow(vae, denoiser, config["noise_std"])
    split = Path(args.data_path) / "train"
    ngrams = None
    if is_built(split) and not args.without_ngrams:
        ngrams = NGramDecoder.of(open_built(split), tokenizer.vocab_size).to(runtime.device)
    held_out = HeldOut(flow, denoiser.times, chunks, args, runtime, ngrams)

    counts = sorted({*NFE, args.num_steps})
    with (
        torch.no_grad(),
        runtime.autocast(),
        progress_bar(len(NOISE_LEVELS) + 2 + len(counts), "evaluate", unit="part") as bar,
    ):

        def done(found):
            bar.update()
            return found

        recovery = {str(noise): held_out.reconstruction(noise) for noise in LATENT_NOISES}
        denoise = [done(held_out.denoise(level)) for level in NOISE_LEVELS]
        compression = done(held_out.compression(tokenizer))
        bound = done(held_out.bound())
        scores = {count: done(held_out.brier_lm(count)) for count in counts}
        flops = held_out.flops()
        round_trip = held_out.round_trip(book)
    variance = held_out.variance()
    report = {
        "checkpoint": str(args.checkpoint), "data": str(args.data_path), "read_from": str(chunks.origin),
        "num_sequences": held_out.count, "num_tokens": held_out.num_tokens, "vocab_size": tokenizer.vocab_size, "chunk_size": model_args.chunk_size,
        "reconstruction": recovery["0.0"], "reconstruction_at_noise": {k: v for k, v in recovery.items() if k != "0.0"},
        "active_dims": int((variance > ACTIVE_VARIANCE).sum()), "latent_dim": model_args.latent_dim,
        "compression": compression, "denoise": denoise, "num_steps": args.num_steps, **scores[args.num_steps], "nll": bound["nll"],
        "bound": bound, "by_nfe": [{"nfe": count, **scores[count]} for count in NFE], "nfe_per_token": args.num_steps / model_args.chunk_size,
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in (("vae", vae), ("denoiser", denoiser))},
        "flops_per_token_and_pass": flops, "round_trip": {"text": Path(args.book).name if args.book else "held out", **round_trip},
        "environment": environment(runtime),
    }  # fmt: skip
    write_json(output / "report.json", report)
    plot_reconstruction(report, output / "reconstruction.png")
    plot_nfe(report, output / "nfe.png")
    plot_schedule(denoiser.times, output / "schedule.png")
    plot_map(torch.cat(held_out.latents()), held_out.texts(tokenizer), output / "map.png")
    write_page(report, args, output)
    print(f"reconstruction {report['reconstruction']:.2%}, at noise 0.3 {recovery['0.3']:.2%}")
    half = denoise[NOISE_LEVELS.index(0.5)]
    print(
        f"denoised from noise_level 0.5: {half['model']:.2%}, without context {half['no_context']:.2%}, decoder only {half['decoder_only']:.2%}"
    )
    print(
        f"{report['active_dims']} of {report['latent_dim']} dimensions active, bound {report['nll']:.3f} nats per token, BrierLM {report['brier_lm']:.4f}"
    )
    print(f"wrote {output}/report.json, report.html, reconstruction.png, nfe.png, schedule.png, map.png")


class HeldOut:
    """Held-out sequences and everything measured on them; noise depends only on the seed and on what is measured."""

    def __init__(
        self,
        flow: Flow,
        times: TimeSampler,
        chunks: Chunks,
        args: argparse.Namespace,
        runtime: device.Runtime,
        ngrams: NGramDecoder | None = None,
    ):
        self.flow, self.vae, self.times, self.args, self.runtime = flow, flow.vae, times, args, runtime
        self.ngrams = ngrams
        self.K = self.vae.args.chunk_size
        chosen = reported(chunks, args.num_samples)
        self.count = len(chosen)
        self.batches = [to_device(b, runtime) for b in chosen_batches(chunks, chosen, 16, self.K)]
        self.num_tokens = sum(int(b["mask"].sum()) for b in self.batches)
        self.given = max(1, self.vae.args.max_chunks // 4)  # chunks of a prompt
        self.written = -(-NGRAMS // self.K)  # chunks after it, of BrierLM
        self.prompts = passages(chunks, args.num_prompts, (self.given + self.written) * self.K).to(runtime.device)

    def noise(self, shape, salt: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.args.seed * 1000 + salt)
        return torch.randn(shape, generator=generator).to(self.runtime.device)

    def accuracy(self, guess) -> float:
        """Fraction of real tokens that guess(number, batch) -> token ids finds."""
        right = 0
        for number, batch in enumerate(self.batches):
            right += int(((guess(number, batch) == batch["tokens"]) & batch["mask"]).sum())
        return right / self.num_tokens

    def reconstruction(self, noise: float) -> float:
        """Tokens recovered from latents with `noise` standard deviations of noise."""

        def guess(number, batch):
            latents = self.vae.encode(batch["tokens"], batch["mask"])
            return decode(self.vae, latents + noise * self.noise(latents.shape, number))

        return self.accuracy(guess)

    def compression(self, tokenizer: Tokenizer) -> dict:
        """Bits per token: `vectors`, rows of quantized ones with the fraction of tokens they bring back; `zstd`; `bigrams`, `trigrams`."""

        def guess(bits):
            def decoded(number, batch):
                codes = quantize(self.vae.encode(batch["tokens"], batch["mask"]), bits)
                return decode(self.vae, dequantize(codes, bits))

            return decoded

        each = self.vae.args.latent_dim / self.K
        rows = [{"bits": b, "bits_per_token": each * b, "recovered": self.accuracy(guess(b))} for b in BITS]
        texts = [tokens[mask].cpu() for b in self.batches for tokens, mask in zip(b["tokens"], b["mask"])]
        packed = zstd.compress("".join(tokenizer.decode_batch(texts)).encode(), ZSTD_LEVEL)
        found = {"vectors": rows, "zstd": 8 * len(packed) / self.num_tokens}
        if self.ngrams is not None:
            for order, name in NAMES.items():
                found[name] = self.ngrams.ngram.bits_per_token([text.numpy() for text in texts], order)
        return found

    def denoise(self, level: float) -> dict:
        """Tokens recovered from z at t = level: by one forward pass of the network, by one on each chunk without the others, and
        by the decoder from z / t. The second separates what the network knows of chunks from what it infers from neighbors."""
        t = torch.tensor([level], device=self.runtime.device)

        def noisy(number, batch):
            latents = self.vae.encode(batch["tokens"], batch["mask"])
            return self.flow.add_noise(latents, t, self.noise(latents.shape, number))

        def no_context(z):
            chunks = z.flatten(0, 1)[:, None]
            mask = torch.ones(len(chunks), 1, dtype=torch.bool, device=chunks.device)
            return self.flow.sample(mask, t, z=chunks).tokens()

        readers = {
            "decoder": lambda z, mask: self.vae.decode(z / level),
            "model": lambda z, mask: self.flow.sample(real_chunks(mask, self.K), t, z=z).logits,
        }
        weights = {}
        if self.ngrams is not None:
            weights = {name: self.tuned(noisy, logits) for name, logits in readers.items()}
        right: dict[str, int] = {}
        for number, batch in enumerate(self.batches):
            tokens, mask, z = batch["tokens"], batch["mask"], noisy(number, batch)
            guesses = {"no_context": no_context(z).view(tokens.shape)}
            for name, logits in readers.items():
                log_q = logits(z, mask).float().log_softmax(-1)
                guesses["decoder_only" if name == "decoder" else name] = log_q.argmax(-1)
                if name in weights:
                    ordered = self.ngrams.read(log_q, mask, weights[name])
                    guesses |= {f"{name}_{order}": guess for order, guess in ordered.items()}
            for name, guess in guesses.items():
                right[name] = right.get(name, 0) + int(((guess == tokens) & mask).sum())
        found = {name: hits / self.num_tokens for name, hits in right.items()}
        return {"noise_level": level, **found, "ngram_weights": {name: list(pair) for name, pair in weights.items()}}

    def tuned(self, noisy, logits) -> tuple[float, float]:
        """Weights of the posteriors logits(z, mask) under which n-grams recover most tokens of training text from noisy(number, batch)."""
        train = self.ngrams.train_chunks
        chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(train))[:TUNED])

        def texts():
            batches = chosen_batches(train, chosen.tolist(), 16, self.K)
            for number, (index, batch) in enumerate(zip(chosen.split(16), batches)):
                batch = to_device(batch, self.runtime)
                log_q = logits(noisy(1000 + number, batch), batch["mask"]).float().log_softmax(-1)
                yield self.runtime.to(index), log_q, batch["tokens"], batch["mask"]

        return self.ngrams.tune(texts)

    def bound(self) -> dict:
        """The variational bound in nats per token and its parts, for the least noise that makes it tightest.

        Tokens are decoded from vectors with noise sigma in one pass, and the vectors' own cost is half the squared error integrated
        over the signal-to-noise ratio above sigma: a bound for every sigma.
        """
        sigmas = np.geomspace(MIN_SIGMA, MAX_SIGMA, NLL_LEVELS).tolist()
        error, reading, prior = [0.0] * NLL_LEVELS, [0.0] * NLL_LEVELS, 0.0
        for number, batch in enumerate(self.batches):
            mask = real_chunks(batch["mask"], self.K)
            x = self.vae.encode(batch["tokens"], batch["mask"])
            prior += float(0.5 * (x.square().sum(-1) * mask).sum() / MAX_SIGMA**2) / self.num_tokens
            for level, sigma in enumerate(sigmas):
                y = x + sigma * self.noise(x.shape, 100 * level + number)
                guess = self.flow.predict(y, torch.full((len(y),), sigma, device=y.device), mask)
                error[level] += float(((guess.x_pred - x).square().sum(-1) * mask).sum()) / self.num_tokens
                missed = guess.nll(batch["tokens"]) * batch["mask"]
                reading[level] += float(missed.sum()) / self.num_tokens
        ratio = np.array(sigmas) ** -2
        flow = [float(0.5 * np.trapezoid(error[level:][::-1], ratio[level:][::-1])) for level in range(NLL_LEVELS)]
        best = min(range(NLL_LEVELS), key=lambda level: reading[level] + flow[level])
        parts = {"reading": reading[best], "flow": flow[best], "prior": prior}
        return {
            "nll": sum(parts.values()),
            **parts,
            "sigma": sigmas[best],
            "sigmas": sigmas,
            "squared_error": error,
            "cross_entropy": reading,
        }

    def brier_lm(self, steps: int) -> dict:
        """BrierLM of what follows real prompts of a quarter of the window, with `steps` forward passes, and Brier of its n-grams."""
        samples, given = [], self.given * self.K
        for salt in range(1, self.args.continuations + 1):
            generator = torch.Generator(self.runtime.device).manual_seed(self.args.seed * 1000 + salt)
            samples.append(torch.cat([self.written_on(part, steps, generator) for part in self.prompts.split(64)]))
        return brier_lm(samples, self.prompts[:, given:])

    def written_on(self, texts: torch.Tensor, steps: int, generator: torch.Generator) -> torch.Tensor:
        """What stands in place of all after the prompt of each of `texts` (B, N), of whole chunks, after `steps` forward passes."""
        clean = self.vae.encode(texts, torch.ones_like(texts, dtype=torch.bool))
        cond_mask = (torch.arange(clean.shape[1], device=texts.device) < self.given).expand(len(texts), -1)
        found = self.flow.sample(
            torch.ones_like(cond_mask), self.times.grid(steps), "stochastic", cond_mask=cond_mask, cond_latents=clean,
            generator=generator,
        )  # fmt: skip
        return found.tokens()[:, self.given * self.K :]

    def variance(self) -> torch.Tensor:
        """Variance (latent_dim,) of the posterior means over the sequences, in the encoder's own units."""
        return (torch.cat(self.latents()) * self.vae.latent_std).var(0)

    def latents(self) -> list[torch.Tensor]:
        """Normalized latents of every real chunk, a tensor (n, latent_dim) for each batch."""
        found = []
        with torch.no_grad():
            for batch in self.batches:
                mask = real_chunks(batch["mask"], self.K)
                found.append(self.vae.encode(batch["tokens"], batch["mask"])[mask])
        return found

    def texts(self, tokenizer: Tokenizer) -> list[str]:
        """The text of every real chunk, in the order of `latents`."""
        found = []
        for batch in self.batches:
            tokens, mask = by_chunk(batch, self.K)
            found += [tokenizer.decode(row[real]) for row, real in zip(tokens.cpu(), mask.cpu()) if real.any()]
        return found

    def flops(self) -> float:
        """Floating-point operations of one forward pass, per real token, as torch counts them."""
        tokens, mask = self.batches[0]["tokens"], self.batches[0]["mask"]
        latents = self.vae.encode(tokens, mask)
        chunk_mask = real_chunks(mask, self.K)
        with FlopCounterMode(display=False) as counter:
            self.flow.predict(latents, torch.ones(len(latents), device=latents.device), chunk_mask)
        return counter.get_total_flops() / int(mask.sum())

    def round_trip(self, tokens: torch.Tensor | None) -> dict:
        """Tokens of one long text (n,), or of all held-out ones, that come back, and how many a second each way."""
        if tokens is None:
            tokens = torch.cat([batch["tokens"][batch["mask"]] for batch in self.batches])
        tokens = tokens[None].to(self.runtime.device)
        encode(self.vae, tokens[:, : 64 * self.K])
        marks = [time.perf_counter()]
        latents = encode(self.vae, tokens)
        latents.sum().item()
        marks.append(time.perf_counter())
        wrong = int((decode(self.vae, latents)[:, : tokens.shape[1]] != tokens).sum())
        marks.append(time.perf_counter())
        count = tokens.shape[1]
        return {
            "tokens": count, "wrong": wrong, "recovered": 1 - wrong / count,
            "encode_tokens_per_second": count / (marks[1] - marks[0]), "decode_tokens_per_second": count / (marks[2] - marks[1]),
        }  # fmt: skip


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
