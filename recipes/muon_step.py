"""What Muon's step costs in either precision, on the matrices of the ladder's transformer of 15 minutes; writes results/muon_step.json.

OMP_NUM_THREADS=1 python -m recipes.muon_step
"""

import argparse
import statistics
import time
from types import SimpleNamespace
from unittest import mock

import torch

from baselines import autoregressive
from kit import device, errors, muon
from kit.arguments import add_common, program
from kit.runlog import environment, write_json
from recipes.markdown import RESULTS

SIZES = dict(hidden_size=192, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, max_length=128)
TURNS = 3


def main() -> None:
    parser = program(__doc__)
    add_common(parser, "seed")
    args = parser.parse_args()
    runtime = device.start("cpu", args.seed, "auto")
    model = autoregressive.build(
        argparse.Namespace(**SIZES), SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=512))
    )
    optimizer, _ = muon.build_optimizers("muon", model, 1e-3, 0.01, (0.9, 0.95))
    found: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for turn in range(TURNS + 1):  # the first, which sets up, is left out
        for precision, seconds in found.items():
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            with mock.patch.object(muon, "multiplies_bf16", lambda precision=precision: precision == "bfloat16"):
                start = time.perf_counter()
                optimizer.step()
                seconds += [time.perf_counter() - start] * (turn > 0)
    result = {
        "seconds": {precision: statistics.median(seconds) for precision, seconds in found.items()}, "ranges": {precision: [min(seconds), max(seconds)] for precision, seconds in found.items()},
        "chosen": "bfloat16" if device.multiplies_bf16() else "float32", "parameters": sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
        "environment": environment(runtime),
    }  # fmt: skip
    write_json(RESULTS / "muon_step.json", result)
    print(result["seconds"], "chosen:", result["chosen"])


if __name__ == "__main__":
    errors.run(main)
