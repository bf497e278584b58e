"""What moves the texts that a checkpoint draws: temperature, churn, the sampler, where its steps lie, candidates of the n-grams, guidance.

    python -m recipes.generation --checkpoint RUN/best_model.pth --guide "its epoch 10=RUN/checkpoint_epoch_10.pth" --autoregressive RUN --data_path data

Writes results/generation.json: perplexity under the autoregressive baseline, entropy, 4-grams seen in training, words that exist.
"""

from pathlib import Path

import torch

from baselines.judge import Judge, load_baseline
from corpus.chunks import open_chunks
from diffusion import GAP_CANDIDATES, Guide
from kit import device
from kit.arguments import add_common, program
from kit.errors import UserError, run
from kit.runlog import environment, make_folder, progress_bar, write_json
from pretrained import load_pretrained

RESULTS = Path(__file__).parent.parent / "results"
BASE = {
    "sampler": "euler", "even": 0.5, "temperature": 1.0, "churn": 0.0, "noise_scale": 1.0, "candidates": None, "guide": None, "guidance": 0.0,
}  # fmt: skip
GUIDANCE = (0.5, 1.0, 2.0)
TRIED = {
    "Euler": {}, "temperature 0.9": {"temperature": 0.9}, "temperature 0.8": {"temperature": 0.8},
    "temperature 0.7": {"temperature": 0.7}, "churn 10": {"churn": 10.0},
    "churn 40": {"churn": 40.0}, "churn 40, noise 1.05": {"churn": 40.0, "noise_scale": 1.05}, "stochastic": {"sampler": "stochastic"},
    "stochastic, temperature 0.9": {"sampler": "stochastic", "temperature": 0.9},
    "Euler, 64 candidates of the n-grams": {"candidates": GAP_CANDIDATES},
    "all steps even in log noise": {"even": 1.0}, "all steps where training times are": {"even": 0.0},
}  # fmt: skip


@torch.no_grad()
def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of train.py")
    parser.add_argument(
        "--guide", metavar="NAME=PATH", nargs="*", default=[], help="weaker checkpoints to guide away from"
    )
    parser.add_argument("--autoregressive", required=True, help="the baseline that judges")
    parser.add_argument("--data_path", required=True, help="data of both")
    parser.add_argument("--rows", nargs="+", help="which, by their names (default: all)")
    parser.add_argument("--passes", type=int, default=32, help="forward passes")
    parser.add_argument("--num_texts", type=int, default=64, help="texts of each row")
    parser.add_argument("--length", type=int, default=128, help="their tokens")
    parser.add_argument("--output_dir", default=str(RESULTS), help="where to write")
    add_common(parser, "device", "precision", "seed")
    args = parser.parse_args()
    runtime = device.start(args.device, args.seed, args.precision)
    loaded = load_pretrained(args.checkpoint, runtime.device)
    without_ngrams = Guide.without_ngrams(loaded.diffusion, 0).diffusion
    guides = {"itself without n-grams": without_ngrams}
    if loaded.config.get("self_cond_prob"):  # else an earlier pass changes nothing
        guides["itself without its earlier pass"] = loaded.diffusion
    tried = dict(TRIED)
    for given in args.guide:
        name, _, path = given.partition("=")
        if not path:
            raise UserError(f"--guide {given}: write NAME=PATH")
        guides[name] = load_pretrained(path, runtime.device).diffusion
    for name in guides:
        for weight in GUIDANCE:
            tried[f"guided by {name}, {weight:g}"] = {"guide": name, "guidance": weight}
        tried[f"guided by {name}, 1, temperature 0.8"] = {"guide": name, "guidance": 1.0, "temperature": 0.8}
        tried[f"guided by {name}, 1, churn 40"] = {"guide": name, "guidance": 1.0, "churn": 40.0}
    if unknown := set(args.rows or ()) - tried.keys():
        raise UserError(f"--rows {unknown.pop()}: choose from {', '.join(tried)}")
    tried = {name: tried[name] for name in args.rows or tried}
    output = make_folder(args.output_dir)
    train, _, _ = open_chunks(args.data_path, output / "data", loaded.tokenizer)
    model = load_baseline(args.autoregressive, loaded.tokenizer.vocab_size).to(runtime.device)
    judge, rows = Judge(model, train, loaded.tokenizer, runtime), []
    blank = torch.zeros(args.num_texts, args.length, dtype=torch.long)
    usual = loaded.diffusion.ngram_candidates
    with runtime.autocast(), progress_bar(len(tried), "generation", unit="row") as bar:
        for name, changed in tried.items():
            setting = BASE | changed
            guide = Guide(guides[setting["guide"]], setting["guidance"]) if setting["guide"] else None
            generator, drawn = torch.Generator(runtime.device).manual_seed(args.seed), []
            loaded.diffusion.ngram_candidates = setting["candidates"] or usual
            for part in blank.split(32):
                found = loaded.diffusion.sample(
                    loaded.collate(list(part))["mask"], loaded.grid(args.passes, even=setting["even"]), setting["sampler"], temperature=setting["temperature"],
                    generator=generator, churn=setting["churn"], noise_scale=setting["noise_scale"], guide=guide,
                )  # fmt: skip
                drawn += list(found[:, : args.length].cpu())
            rows.append({"name": name, **setting, **judge.score(drawn), "sample": loaded.tokenizer.decode(drawn[0])})
            print({key: rows[-1][key] for key in ("name", "gen_ppl", "entropy", "seen", "words")}, flush=True)
            bar.update()
    report = {
        "passes": args.passes,
        "num_texts": args.num_texts,
        "rows": rows,
        "step": loaded.step,
        "environment": environment(runtime),
    }
    write_json(output / "generation.json", report)
    print(f"wrote {output}/generation.json")


if __name__ == "__main__":
    run(main)
