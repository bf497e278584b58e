"""What optimizer, rate and dropout do to the models of a rung of the ladder: all its runs, and which of each model validation chose.

python -m recipes.sweep checkpoints/ladder/shakespeare/15 results/shakespeare/15-sweep.json
"""

import json
from pathlib import Path

import torch

from corpus.chunks import open_chunks
from kit import errors
from kit.arguments import program
from kit.errors import UserError
from kit.runlog import write_json
from pretrained import load_pretrained

MODELS = {
    "autoregressive": "autoregressive",
    "masked": "masked diffusion",
    "ngram3": "network with n-grams",
    "ngram0": "network alone",
}
OF_REPORT = ("nll", "bits_per_byte", "bits_per_byte_ci", "parameters", "training_flops")


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("rung", type=Path, help="folder of a rung, with a run for each model, rate and dropout")
    parser.add_argument("output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    rows = []
    for prefix, model in MODELS.items():
        tried = [row(model, path.parent) for path in args.rung.glob(f"{prefix}-*/log.jsonl") if ended(path.parent)]
        for each in sorted(tried, key=lambda row: (row["size"], row["optimizer"], row["lr"], row["dropout"])):
            rows.append(each | {"chosen": each["val_loss"] == min(row["val_loss"] for row in tried)})
            print(
                f"{model:20} {each['optimizer']} rate {each['lr']:g} dropout {each['dropout']:g}: {each['val_loss']:.3f} on val"
            )
    if not rows:
        raise UserError(f"{args.rung} holds no run that has ended")
    write_json(args.output, rows)


def ended(run: Path) -> bool:
    return (run / "report.json").is_file() or (run / "finished").is_file()


def row(model: str, run: Path) -> dict:
    """A run's settings and its best validation loss: nats per token of a baseline, whose report also says what the test text costs;
    of a network the mean over its noise levels, which compares with that of other networks alone. FLOPs of training, without n-grams.
    """
    settings, found = (json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("config", "env"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    best = min((r for r in log if "val_loss" in r), key=lambda r: r["val_loss"])
    kept = {
        "baseline": model, "size": settings.get("model") or f"{settings['hidden_size']}×{settings['num_hidden_layers']}", "optimizer": settings.get("optimizer", "adamw"), "lr": settings["lr"], "dropout": settings["dropout"], "val_loss": best["val_loss"], "best_step": best["step"],
        "steps": max(r["step"] for r in log), "environment": found,
    }  # fmt: skip
    report = run / "report.json"
    if report.is_file():
        said = json.loads(report.read_text(encoding="utf-8"))
        kept |= {name: said[name] for name in OF_REPORT} | {"steps": said["steps"], "seconds": said["training_seconds"]}
    else:
        kept |= cost_of(run, settings, kept["steps"])
    return kept


def cost_of(run: Path, settings: dict, steps: int) -> dict:
    """Parameters of a network and the FLOPs of its training."""
    loaded = load_pretrained(run / "best_model.pth", torch.device("cpu"))
    lengths = open_chunks(settings["data_path"], run / "data", loaded.tokenizer)[0].lengths
    network, texts = loaded.diffusion.network, steps * settings["batch_size"] * settings["grad_accum"]
    flops = texts * network.training_flops(float(lengths.mean()), settings["self_cond_prob"])
    return {"parameters": sum(p.numel() for p in network.parameters()), "training_flops": flops}


if __name__ == "__main__":
    errors.run(main)
