"""BrierLM from more prompts, and texts, of the runs that recipes/tokcom_language.sh left in --work, in the rows of its result.

    python -m recipes.tokcom_brier --work checkpoints/tokcom_shakespeare --result results/tokcom/shakespeare.json

Small models get four tokens right together so rarely that the recipe's own prompts may not show it. Each row keeps all else; it is
given `brier_lm`, `brier`, `num_prompts`, `continuations`, and of texts written on after a quarter of the window what baselines/judge.py counts, in `texts`,
and the first, `sample`. `real_texts` are what stands there in truth. `measured_on` is the environment.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from baselines import autoregressive
from baselines.judge import Judge
from corpus import brier, language_model
from corpus.brier import passages
from corpus.chunks import open_built, open_chunks
from kit import device, errors
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.runlog import environment, write_json
from tokcom import calm
from tokcom.evaluate import HeldOut
from tokcom.flow import Flow
from tokcom.inference import load_checkpoint

MEASURED = ("brier_lm", "brier_lm_ci", "brier")
TEXTS, LENGTH = 64, 128  # texts, and their tokens with the prompt


@torch.no_grad()
def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--result", type=Path, required=True, help="JSON file of recipes.tokcom_language, changed in place"
    )
    brier.add_arguments(parser)
    parser.set_defaults(num_prompts=4096, continuations=8)
    parser.add_argument("--data_path", type=Path, help="folder of the data (default: WORK/data)")
    parser.add_argument("--rows", nargs="+", help="names of the rows to measure, instead of all")
    add_common(parser, "device", "precision", "seed")
    args = parser.parse_args()
    brier.check(args)
    args.data_path = args.data_path or args.work / "data"
    runtime = device.start(args.device, args.seed, args.precision)
    found = json.loads(args.result.read_text(encoding="utf-8"))
    if unknown := set(args.rows or ()) - {row["name"] for row in found["rows"]}:
        raise UserError(f"{args.result} has no row {', '.join(sorted(unknown))}")
    train, _, tokenizer = open_chunks(str(args.data_path), args.data_path, None)
    texts = passages(open_built(args.data_path / "test"), TEXTS, LENGTH)
    judge = Judge(None, train, tokenizer, runtime)
    found |= {"real_texts": judge.count(list(texts[:, LENGTH // 4 :])), "measured_on": environment(runtime)}
    for row in found["rows"]:
        if args.rows and row["name"] not in args.rows:
            continue
        run = args.work / row["name"]
        if "baseline" in row:
            scores, write_on = of_next(run, args, runtime)
        else:
            scores, write_on = of_vectors(run, round(row["nfe_per_token"] * row["chunk_size"]), args, runtime)
        torch.manual_seed(args.seed)
        with runtime.autocast():
            written = write_on(texts.to(runtime.device)).cpu()
        row |= {name: scores[name] for name in MEASURED} | asked(args)
        row |= {
            "texts": judge.count(list(written)),
            "sample": tokenizer.decode(torch.cat([texts[0, : LENGTH // 4], written[0]])),
        }
        print(
            f"{row['name']}: BrierLM {row['brier_lm']:.4f}, {row['brier']}, words {row['texts']['words']:.3f}",
            flush=True,
        )
    write_json(args.result, found)


def asked(args: argparse.Namespace) -> dict:
    return {"num_prompts": args.num_prompts, "continuations": args.continuations}


def of_next(run: Path, args: argparse.Namespace, runtime: device.Runtime) -> tuple[dict, Callable]:
    """Scores, and what writes texts on, of a model that writes one token, or one vector, after the other."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    settings = argparse.Namespace(**report["settings"] | asked(args) | {"data_path": str(args.data_path)})
    data, ahead = language_model.open_data(settings, run), LENGTH - LENGTH // 4
    if report["baseline"] == "autoregressive":
        model = autoregressive.LlamaForCausalLM.from_pretrained(run / "model").to(runtime.device).eval()
        scores = autoregressive.measure_samples(model, data, settings, runtime)
        return scores, lambda texts: autoregressive.generate(model, texts[:, : LENGTH // 4], ahead)
    of_training = Path(report["settings"]["vae_checkpoint"])
    vae = load_checkpoint(args.work / of_training.parent.name / of_training.name)[0].requires_grad_(False)
    model = calm.NextVector.from_pretrained(run / "model").to(runtime.device).eval()
    generator = torch.Generator(runtime.device).manual_seed(args.seed)
    scores = calm.measure(model, data, settings, runtime, vae)
    return scores, lambda texts: calm.generate(model, vae, texts[:, : LENGTH // 4], ahead, generator)


def of_vectors(run: Path, passes: int, args: argparse.Namespace, runtime: device.Runtime) -> tuple[dict, Callable]:
    """The same of a model that writes all vectors at once."""
    vae, denoiser, _, config = load_checkpoint(run / "best_diffusion.pt", runtime.device)
    settings = argparse.Namespace(num_samples=1, seed=args.seed, **asked(args))
    flow = Flow(vae, denoiser, config["noise_std"])
    held_out = HeldOut(flow, denoiser.times, open_built(args.data_path / "test"), settings, runtime)
    generator = torch.Generator(runtime.device).manual_seed(args.seed)
    with runtime.autocast():
        scores = held_out.brier_lm(passes)
    return scores, lambda texts: held_out.written_on(texts, passes, generator)


if __name__ == "__main__":
    errors.run(main)
