"""BrierLM from more prompts, of the runs that recipes/tokcom_language.sh left in --work, in the rows of its result.

    python -m recipes.tokcom_brier --work checkpoints/tokcom_shakespeare --result results/tokcom/shakespeare.json

Small models get four tokens right together so rarely that the recipe's own prompts may not show it. Each row keeps all else; it is
given `brier_lm`, `brier`, `num_prompts` and `brier_environment`.
"""

import argparse
import json
from pathlib import Path

import torch

from baselines import autoregressive
from corpus import language_model
from corpus.chunks import open_built
from kit import device, errors
from kit.arguments import add_common, program
from kit.runlog import environment, write_json
from tokcom import calm
from tokcom.evaluate import HeldOut
from tokcom.flow import Flow
from tokcom.inference import load_checkpoint

MEASURED = ("brier_lm", "brier")


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--result", type=Path, required=True, help="JSON file of recipes.tokcom_language, changed in place"
    )
    parser.add_argument("--num_prompts", type=int, default=4096, help="prompts continued, twice each")
    add_common(parser, "device", "precision", "seed")
    args = parser.parse_args()
    runtime = device.start(args.device, args.seed, args.precision)
    found = json.loads(args.result.read_text(encoding="utf-8"))
    for row in found["rows"]:
        run = args.work / row["name"]
        if "baseline" in row:
            scores = of_next(run, args, runtime)
        else:
            scores = of_vectors(run, round(row["nfe_per_token"] * row["chunk_size"]), args, runtime)
        row |= {name: scores[name] for name in MEASURED}
        row |= {"num_prompts": args.num_prompts, "brier_environment": environment(runtime)}
        print(f"{row['name']}: BrierLM {row['brier_lm']:.4f}, {row['brier']}", flush=True)
    write_json(args.result, found)


def of_next(run: Path, args: argparse.Namespace, runtime: device.Runtime) -> dict:
    """Of a model that writes one token, or one vector, after the other."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    settings = argparse.Namespace(
        **{**report["settings"], "num_prompts": args.num_prompts, "data_path": str(args.work / "data")}
    )
    data = language_model.open_data(settings, run)
    if report["baseline"] == "autoregressive":
        model = autoregressive.LlamaForCausalLM.from_pretrained(run / "model").to(runtime.device).eval()
        return autoregressive.measure_samples(model, data, settings, runtime)
    vae = load_checkpoint(args.work / "chunk4" / "best_vae.pt")[0]
    model = calm.NextVector.from_pretrained(run / "model").to(runtime.device).eval()
    return calm.measure(model, data, settings, runtime, vae.requires_grad_(False))


def of_vectors(run: Path, passes: int, args: argparse.Namespace, runtime: device.Runtime) -> dict:
    """Of a model that writes all vectors at once."""
    vae, denoiser, _, config = load_checkpoint(run / "best_diffusion.pt", runtime.device)
    settings = argparse.Namespace(num_samples=1, num_prompts=args.num_prompts, seed=args.seed)
    flow = Flow(vae, denoiser, config["noise_std"])
    held_out = HeldOut(flow, denoiser.times, open_built(args.work / "data" / "test"), settings, runtime)
    with torch.no_grad(), runtime.autocast():
        return held_out.brier_lm(passes)


if __name__ == "__main__":
    errors.run(main)
