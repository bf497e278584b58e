"""Is it a language model? A checkpoint beside baselines trained on the same tokens: likelihood, generated text, filled gaps.

    python compare.py --checkpoint network=RUN/best_model.pth --autoregressive AR_RUN --masked MASKED_RUN --data_path RUN/data

All numbers are of the test split. Writes compare.json, and frontier.png of the generation, to --output_dir.
  likelihood   bits per byte: exact for n-grams and the autoregressive transformer, upper bounds for both kinds of diffusion
  generation   texts of full length, scored as baselines/judge.py says by the autoregressive transformer, for several numbers of
               forward passes; beside them test texts, texts drawn from trigrams, and tokens drawn by frequency; with --mauve also
               how alike they are, as a whole, to texts of the validation split
  gaps         fraction of tokens right where 8 of every 32 are missing, the likeliest ones where both sides are known
               (under trigrams by forward-backward), and where the left side alone is, as the autoregressive transformer has it
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

import likelihood
from baselines import autoregressive, masked
from baselines.judge import Judge, draw_trigrams, draw_unigrams, load_baseline
from corpus.bits import per_byte
from corpus.chunks import open_chunks, open_test, reported
from corpus.ngram import DENSE_VOCAB
from corpus.shards import Chunks
from diffusion import Guide
from kit import device, errors, sampling
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.figures import COLORS, INK, plt, save
from kit.intervals import ratio_with_interval
from kit.runlog import environment, make_folder, progress_bar, write_json
from pretrained import Pretrained, load_pretrained

GAP, PERIOD = 8, 32  # tokens missing of so many
FIRST_GAP = (PERIOD - GAP) // 2  # where it begins
PARTS = ("likelihood", "gaps", "generation")
NGRAMS = {2: "bigrams", 3: "trigrams"}
LESS_MEMORY = "lower `batch_size`"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="NAME=PATH", help="checkpoints of train.py")
    parser.add_argument("--autoregressive", required=True, metavar="RUN", help="run of baselines.autoregressive")
    parser.add_argument("--masked", metavar="RUN", help="run of baselines.masked")
    parser.add_argument("--data_path", required=True, help="folder of the data builder that all were trained on")
    parser.add_argument("--output_dir", default="comparison", help="where to write")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what is measured")
    parser.add_argument("--num_samples", type=int, default=128, help="test chunks")
    parser.add_argument("--num_texts", type=int, default=64, help="texts generated in each row")
    parser.add_argument(
        "--mauve",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="MAUVE of the texts, against as many of the validation split (requirements-mauve.txt)",
    )
    parser.add_argument("--likelihood_levels", type=int, default=32, help="forward passes for each bound")
    parser.add_argument("--passes", type=int, nargs="+", default=(4, 8, 16, 32, 64, 128), help="of generation")
    parser.add_argument("--sampler", default="euler", choices=sampling.SAMPLERS, help="of the checkpoints")
    parser.add_argument("--churn", type=float, default=0.0, help="fresh noise of euler and heun in all (EDM's S_churn)")
    parser.add_argument("--noise_scale", type=float, default=1.0, help="how strong it is (EDM's S_noise)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the context logits")
    parser.add_argument("--guide", metavar="PATH", help="early checkpoint, by which guided texts are drawn too")
    parser.add_argument(
        "--guidance",
        type=float,
        help="draw guided texts too, this far from --guide, else from the network without its n-grams",
    )
    parser.add_argument("--batch_size", type=int, default=32, help="texts at once")
    add_common(parser, "device", "precision", "seed")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    for name in ("num_samples", "num_texts", "likelihood_levels", "batch_size", *["passes"] * (min(args.passes) < 1)):
        if name == "passes" or getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    runtime = device.start(args.device, args.seed, args.precision)
    ours = {}
    for given in args.checkpoint:
        name, _, path = given.partition("=")
        if not path:
            raise UserError(f"--checkpoint {given}: write NAME=PATH")
        ours[name] = load_pretrained(path, runtime.device)
        if ours[name].diffusion.objective == "pixel":
            raise UserError(f"{path} has the pixel objective, which is no language model")
    first = next(iter(ours.values()))
    for name, loaded in ours.items():
        if not loaded.tokenizer.same_as(first.tokenizer):
            raise UserError(
                f"--checkpoint {name} has another tokenizer than the first: all are measured on the same tokens"
            )
    vocab_size = first.tokenizer.vocab_size
    rivals = {"autoregressive": load_baseline(args.autoregressive, vocab_size).to(runtime.device)}
    if args.masked:
        rivals["masked diffusion"] = load_baseline(args.masked, vocab_size).to(runtime.device)
    output = make_folder(args.output_dir)
    train, val, _ = open_chunks(args.data_path, output / "data", first.tokenizer)
    test = open_test(args.data_path, output / "data", first.tokenizer)
    longest = min(
        *(loaded.capacity for loaded in ours.values()),
        *(model.config.max_position_embeddings - 1 for model in rivals.values()),
    )
    test.check(longest, vocab_size, "img_size")
    chunks = [test[i] for i in reported(test, args.num_samples)]
    setting = Setting(args, runtime, first, chunks, min(longest, int(test.lengths.max())))
    held_out = setting.texts_of(test, max(args.num_samples, args.num_texts))
    judge, mauve = None, None
    if "generation" in args.parts:
        judge = Judge(rivals["autoregressive"], train, first.tokenizer, runtime)
    if judge and args.mauve:
        real = setting.texts_of(val, args.num_texts) if val else []
        if min(len(real), len(held_out)) < args.num_texts:
            raise UserError(
                f"--mauve needs {args.num_texts} texts of val and of test, as many as --num_texts; there are {len(real)} and {len(held_out)}"
            )
        mauve = judge.mauve_against(real)

    measured = {
        "likelihood": lambda: setting.likelihood(ours, rivals),
        "gaps": lambda: setting.gaps(ours, rivals),
        "generation": lambda: setting.generation(ours, rivals, held_out, judge, mauve),
    }
    with runtime.autocast():
        report = {part: measured[part]() for part in PARTS if part in args.parts}
    report |= {
        "data": args.data_path,
        "settings": vars(args),
        "parameters": {
            **{name: count_parameters(loaded.diffusion.network) for name, loaded in ours.items()},
            **{name: count_parameters(model) for name, model in rivals.items()},
        },
        "environment": environment(runtime),
    }
    write_json(output / "compare.json", report)
    if "generation" in report:
        plot_frontier(report["generation"], output / "frontier.png")
    for name, row in report.get("likelihood", {}).items():
        print(f"{name:28} {row['nll']:7.3f} nats per token {row['bits_per_byte']:7.3f} bits per byte  {row['kind']}")
    for name, row in report.get("gaps", {}).items():
        print(f"{name:28} {row['accuracy']:7.1%} of the tokens in gaps")
    for row in report.get("generation", []):
        passes = "" if row["passes"] is None else f"{row['passes']} passes"
        print(
            f"{row['name']:28} {passes:>10}  gen. perplexity {row['gen_ppl']:8.2f}  entropy {row['entropy']:5.2f}  "
            f"4-grams seen {row['seen']:6.1%}  words {row['words']:6.1%}  distinct {row['distinct']:6.1%}"
            + (f"  MAUVE {row['mauve']:.3f}" if "mauve" in row else "")
        )
    print(f"wrote {output}/compare.json{', frontier.png' if 'generation' in report else ''}")


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass
class Setting:
    """What all are measured on: test chunks, and `length` tokens of each generated text."""

    args: argparse.Namespace
    runtime: device.Runtime
    first: Pretrained
    chunks: list[torch.Tensor]
    length: int

    # ------------------------------------------------------------------------------------------------------------------
    # Likelihood

    def likelihood(self, ours: dict[str, Pretrained], rivals: dict[str, nn.Module]) -> dict:
        args, chunks, tokenizer = self.args, self.chunks, self.first.tokenizer
        levels, found = args.likelihood_levels, {}
        for order in range(2, self.first.ngram.order + 1):
            bits = [len(c) * self.first.ngram.bits_per_token([c.numpy()], order) for c in chunks]
            found[NGRAMS[order]] = {"kind": "exact", **per_byte(np.log(2) * np.array(bits), chunks, tokenizer)}
        nats = autoregressive.nats_per_sequence(rivals["autoregressive"], chunks, self.runtime)
        found["autoregressive"] = {"kind": "exact", **per_byte(nats, chunks, tokenizer)}
        if "masked diffusion" in rivals:
            nats = masked.nats_per_sequence(rivals["masked diffusion"], chunks, self.runtime, levels)
            found["masked diffusion"] = {"kind": "upper bound", **per_byte(nats, chunks, tokenizer)}
        for name, loaded in ours.items():
            bound = likelihood.measure(loaded, chunks, levels, 1, args.batch_size, args.seed)
            found[name] = {"kind": "upper bound", **bound}
        return found

    # ------------------------------------------------------------------------------------------------------------------
    # Generation

    def texts_of(self, chunks: Chunks, count: int) -> list[torch.Tensor]:
        """--num_texts of those `count` that reports measure, of at least half the length of generated texts and cut to it."""
        chosen = reported(chunks, count, self.length // 2)[: self.args.num_texts]
        return [chunks[i][: self.length] for i in chosen]

    def generation(
        self, ours: dict[str, Pretrained], rivals: dict[str, nn.Module], held_out: list[torch.Tensor], judge: Judge, mauve: Callable | None
    ) -> list[dict]:  # fmt: skip
        """A row of scores for each kind of texts, `held_out` ones first, by `judge` and by `mauve`, where there is one."""
        args, rows = self.args, []
        blank = torch.zeros(args.num_texts, self.length, dtype=torch.long, device=self.runtime.device)

        def add(name: str, passes: int | None, texts) -> None:
            texts = [text.cpu() for text in texts]
            sample = self.first.tokenizer.decode(texts[0])
            alike = {"mauve": mauve(texts)} if mauve else {}
            rows.append({"name": name, "passes": passes, **judge.score(texts), **alike, "sample": sample})
            bar.update()

        drawn_from = {name: (loaded, None) for name, loaded in ours.items()}
        for name, loaded in ours.items():
            asked = args.guide or (args.guidance and loaded.diffusion.joined)
            if asked and (guide := loaded.guide(args.guide, args.guidance)):
                drawn_from[f"{name}, guided"] = loaded, guide
        count = len(args.passes) * (len(drawn_from) + len(rivals) - 1) + 4
        with progress_bar(count, "generation", unit="row") as bar:
            add("test texts", None, held_out)
            generator = torch.Generator().manual_seed(args.seed)
            if self.first.ngram.order == 3:
                add("trigrams", None, draw_trigrams(self.first.ngram, *blank.shape, generator))
            add("tokens by frequency", None, draw_unigrams(self.first.ngram, *blank.shape, generator))
            torch.manual_seed(args.seed)
            add("autoregressive", None, autoregressive.generate(rivals["autoregressive"], blank[:, :0], self.length))
            for passes in args.passes:
                if "masked diffusion" in rivals:
                    drawn = [
                        masked.generate(rivals["masked diffusion"], part, part.bool(), passes, generator)
                        for part in blank.split(args.batch_size)
                    ]
                    add("masked diffusion", passes, torch.cat(drawn))
                for name, (loaded, guide) in drawn_from.items():
                    add(name, passes, self.draw(loaded, guide, passes, blank))
        return rows

    def draw(self, loaded: Pretrained, guide: Guide | None, passes: int, blank: torch.Tensor) -> torch.Tensor:
        """Texts like `blank` (S, length) of a checkpoint, in that many forward passes (Heun: one less where that is even)."""
        args, drawn = self.args, []
        grid = loaded.grid((passes + 1) // 2 if args.sampler == "heun" else passes)
        generator = torch.Generator(self.runtime.device).manual_seed(args.seed)
        for part in blank.split(args.batch_size):
            mask = loaded.collate(list(part.cpu()))["mask"]
            found = loaded.diffusion.sample(
                mask, grid, args.sampler, temperature=args.temperature, generator=generator, churn=args.churn,
                noise_scale=args.noise_scale, guide=guide,
            )  # fmt: skip
            drawn.append(found[:, : self.length])
        return torch.cat(drawn)

    # ------------------------------------------------------------------------------------------------------------------
    # Gaps

    def gaps(self, ours: dict[str, Pretrained], rivals: dict[str, nn.Module]) -> dict:
        """Fraction of missing tokens that each finds, with its interval over chunks."""
        fills, hits, count = {}, {}, []
        if self.first.ngram.vocab_size <= DENSE_VOCAB:
            fills[NGRAMS[self.first.ngram.order]] = self.fill_by_ngrams
        if "masked diffusion" in rivals:
            fills["masked diffusion"] = partial(fill_by_confidence, rivals["masked diffusion"], passes=GAP)
        fills |= {name: partial(self.fill, loaded) for name, loaded in ours.items()}
        write_ahead = partial(write_on, rivals["autoregressive"])
        chunks = [chunk for chunk in self.chunks if len(chunk) >= PERIOD]
        for start in range(0, len(chunks), self.args.batch_size):
            batch = self.first.collate(chunks[start : start + self.args.batch_size])
            tokens, mask = batch["tokens"], batch["mask"]
            place = torch.arange(tokens.shape[1], device=tokens.device)
            missing = mask & (place % PERIOD >= FIRST_GAP) & (place % PERIOD < FIRST_GAP + GAP)
            guesses = {}
            for name, fill in fills.items():
                guesses[f"{name}, both sides"] = fill(tokens, mask, missing)
                guesses[f"{name}, left side"] = fill_from_left(fill, tokens, mask, missing)
            guesses["autoregressive, left side"] = fill_from_left(write_ahead, tokens, mask, missing)
            for name, guess in guesses.items():
                hits.setdefault(name, []).extend(((guess == tokens) & missing).sum(1).tolist())
            count += missing.sum(1).tolist()
        result = {}
        for name, right in hits.items():
            value, interval = ratio_with_interval(np.array(right), np.array(count))
            result[name] = {"accuracy": value, "accuracy_ci": interval, "num_tokens": sum(count)}
        return result

    def fill(self, loaded: Pretrained, tokens, mask, missing) -> torch.Tensor:
        """The likeliest tokens after several passes from pure noise in the gaps."""
        generator = torch.Generator(tokens.device).manual_seed(self.args.seed)
        grid = loaded.grid(4)
        return loaded.diffusion.sample(
            mask, grid, "posterior", cond_mask=mask & ~missing, cond_tokens=tokens, generator=generator
        )

    def fill_by_ngrams(self, tokens, mask, missing) -> torch.Tensor:
        """Forward-backward over n-grams: what stands is certain, of the gaps nothing is seen."""
        ngram = self.first.ngram
        seen = torch.full((*tokens.shape, ngram.vocab_size), -1e4, device=tokens.device)
        seen.scatter_(-1, tokens[..., None], 0.0)
        seen[missing] = 0.0
        with torch.autocast(tokens.device.type, enabled=False):
            return ngram.contexts(seen, mask, candidates=(64,))[-1].best(seen)


def write_on(model, tokens, mask, missing) -> torch.Tensor:
    """The autoregressive transformer's greedy continuation, the gap being the end."""
    found, start = tokens.clone(), int(missing.any(0).nonzero()[0])
    found[:, start : start + GAP] = autoregressive.generate(
        model, tokens[:, :start], min(GAP, tokens.shape[1] - start), do_sample=False
    )
    return found


def fill_from_left(fill: Callable, tokens, mask, missing) -> torch.Tensor:
    """What `fill(tokens, mask, missing)` says of each gap when nothing to its right is there."""
    found, place = tokens.clone(), torch.arange(tokens.shape[1], device=tokens.device)
    for start in range(FIRST_GAP, tokens.shape[1], PERIOD):
        there = mask & (place < start + GAP)
        gap = missing & there & (place >= start)
        if gap.any():
            rows = gap.any(1)
            found[rows] = torch.where(gap[rows], fill(tokens[rows] * there[rows], there[rows], gap[rows]), found[rows])
    return found


def fill_by_confidence(model, tokens, mask, missing, passes: int) -> torch.Tensor:
    """Masked diffusion's likeliest tokens, the surest in each gap first, in `passes` forward passes."""
    found = tokens.masked_fill(missing, model.config.mask_token_id)
    left = missing.clone()
    for step in range(passes, 0, -1):
        confidence, best = masked.logits(model, found, mask).softmax(-1).max(-1)
        order = confidence.masked_fill(~left, -1).argsort(1, descending=True).argsort(1)
        take = left & (order < -(-left.sum(1, keepdim=True) // step))
        found, left = torch.where(take, best, found), left & ~take
    return found


def plot_frontier(rows: list[dict], path) -> None:
    """Generative perplexity against entropy, a line through the numbers of passes of each kind of diffusion."""
    figure, axis = plt.subplots(figsize=(7.2, 4.2))
    names = list(dict.fromkeys(row["name"] for row in rows if row["passes"] is not None))
    for name, color in zip(names, COLORS):
        line = [row for row in rows if row["name"] == name]
        axis.plot([r["entropy"] for r in line], [r["gen_ppl"] for r in line], "o-", color=color, label=name)
        for row, place in ((line[0], (4, 4)), (line[-1], (-4, -12)))[: len(line)]:
            at = row["entropy"], row["gen_ppl"]
            axis.annotate(str(row["passes"]), at, place, textcoords="offset points", color=color, ha="center")
    for row, marker in zip((r for r in rows if r["passes"] is None and r["name"] != "tokens by frequency"), "*sD"):
        axis.plot(row["entropy"], row["gen_ppl"], marker, color=INK, label=row["name"])
    axis.set_yscale("log")
    axis.set_xlabel("entropy of a text's own tokens, bits (numbers: forward passes)")
    axis.set_ylabel("perplexity under the autoregressive model")
    axis.legend()
    save(figure, path)


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
