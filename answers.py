"""Are the answers right, word for word? A checkpoint of `train.py --pairs` on the prompts that were held out.

    python answers.py --checkpoint RUN/best_model.pth --data_path pairs.jsonl --autoregressive AR_RUN

An answer counts if all of it is right, up to and including its end. Writes answers.json to --output_dir: the likeliest tokens after
several passes, texts that are drawn, and beside them the greedy answers of an autoregressive transformer
(`python -m baselines.autoregressive --pairs`), each with its 95 % interval.
"""

import argparse

import numpy as np
import torch

from baselines import autoregressive
from baselines.judge import load_baseline
from corpus.chunks import reported
from corpus.pairs import PairSplits, open_pairs
from kit import device, errors
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.intervals import wilson
from kit.runlog import environment, make_folder, progress_bar, write_json
from pretrained import Pretrained, load_pretrained

WAYS = (("posterior", 1), ("posterior", 4), ("euler", 8), ("euler", 32), ("stochastic", 32))  # sampler, forward passes
SHOWN = 5
LESS_MEMORY = "lower `batch_size`"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of train.py --pairs")
    parser.add_argument(
        "--data_path", required=True, help="the rows that it was trained on, of which some were held out"
    )
    parser.add_argument("--autoregressive", metavar="RUN", help="run of baselines.autoregressive --pairs")
    parser.add_argument("--num_samples", type=int, default=512, help="held-out prompts")
    parser.add_argument("--batch_size", type=int, default=64, help="prompts at once")
    parser.add_argument("--output_dir", default="answers", help="where to write")
    add_common(parser, "device", "precision", "seed")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    if args.num_samples < 1 or args.batch_size < 1:
        raise UserError("--num_samples and --batch_size need at least 1")
    runtime = device.start(args.device, args.seed, args.precision)
    loaded = load_pretrained(args.checkpoint, runtime.device)
    pairs = open_pairs(args.data_path, loaded.capacity, loaded.tokenizer)
    output = make_folder(args.output_dir)
    chosen = reported(pairs.test, args.num_samples)
    count = len(chosen)
    rows, answers = [], {}
    with runtime.autocast(), progress_bar(len(WAYS) + bool(args.autoregressive), "answers", unit="way") as bar:
        for sampler, passes in WAYS:
            answers[f"{passes} passes of {sampler}"] = draw(loaded, pairs, chosen, sampler, passes, args, runtime)
            bar.update()
        if args.autoregressive:
            model = load_baseline(args.autoregressive, pairs.tokenizer.vocab_size).to(runtime.device)
            answers["autoregressive, greedy"] = continue_greedily(model, pairs, chosen, runtime)
            bar.update()
    truth = [pairs.test[i][pairs.test.given[i] :] for i in chosen]
    for name, found in answers.items():
        right = sum(same(a, b, pairs.tokenizer.end_id) for a, b in zip(found, truth))
        rows.append({"name": name, "exact": right / count, "exact_ci": list(wilson(right, count))})
        print(f"{name:28} {right / count:7.1%} of {count} answers right")
    shown = [
        {
            "prompt": pairs.tokenizer.decode(pairs.test[i][: pairs.test.given[i]]).strip(),
            "answer": pairs.tokenizer.decode(truth[place]),
            **{
                name: pairs.tokenizer.decode(cut(found[place], pairs.tokenizer.end_id))
                for name, found in answers.items()
            },
        }
        for place, i in enumerate(chosen[:SHOWN])
    ]
    report = {
        "checkpoint": args.checkpoint, "data": args.data_path, "num_prompts": count, "training_pairs": len(pairs.train),
        "answer_length": pairs.answer_length, "rows": rows, "shown": shown, "step": loaded.step, "environment": environment(runtime),
    }  # fmt: skip
    write_json(output / "answers.json", report)
    print(f"wrote {output}/answers.json")


def draw(loaded: Pretrained, pairs: PairSplits, chosen: np.ndarray, sampler: str, passes: int, args, runtime) -> list:
    """Token ids of each answer to the `chosen` prompts, its place filled out of pure noise beside the clean prompt."""
    found, generator = [], torch.Generator(runtime.device).manual_seed(args.seed)
    for start in range(0, len(chosen), args.batch_size):
        rows = chosen[start : start + args.batch_size]
        batch = loaded.collate([pairs.test[i] for i in rows])
        given = torch.tensor(pairs.test.given[rows], device=runtime.device)[:, None]
        known = torch.arange(batch["tokens"].shape[1], device=runtime.device) < given
        tokens = torch.where(known, batch["tokens"], 0)  # the answers stay unseen
        drawn = loaded.diffusion.sample(
            batch["mask"], loaded.grid(passes), sampler, cond_mask=known, cond_tokens=tokens, generator=generator
        )
        found += [row[(mask & ~k)].cpu() for row, mask, k in zip(drawn, batch["mask"], known)]
    return found


def continue_greedily(model, pairs: PairSplits, chosen: np.ndarray, runtime) -> list:
    """Token ids of each answer by an autoregressive model, its likeliest token at a time."""
    found = [None] * len(chosen)
    lengths = pairs.test.given[chosen]
    for length in sorted(set(lengths.tolist())):
        rows = np.flatnonzero(lengths == length)
        prompts = torch.stack([pairs.test[i][:length] for i in chosen[rows]]).to(runtime.device)
        for row, said in zip(rows, autoregressive.generate(model, prompts, pairs.answer_length, do_sample=False)):
            found[row] = said.cpu()
    return found


def cut(ids: torch.Tensor, end_id: int) -> torch.Tensor:
    """Ids up to the first end token."""
    ends = (ids == end_id).nonzero()[:, 0]
    return ids[: ends[0]] if len(ends) else ids


def same(found: torch.Tensor, truth: torch.Tensor, end_id: int) -> bool:
    """Whether an answer is the true one and ends where it does."""
    return bool((found == end_id).any()) and torch.equal(cut(found, end_id), cut(truth, end_id))


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
