"""How fast is it? Training, sampling and loading, each beside a plain way to do the same, measured in one run.

    python bench.py                                  # on this machine: results/bench_cpu.json or results/bench_cuda.json
    python bench.py --what train sample              # only some of it
    python bench.py --model JiT-B/4 --img_size 64 --vocab_size 4096 --batch_size 2 --steps 4

Rows that are compared take turns, and the median counts. Tokens are valid ones; padding is computed and not counted. Texts are
random tokens of random lengths from a quarter of `max_tokens` on: speed does not depend on what they say.
  train    ours; the same network on whole pictures, with all logits at once and pictures made on the host (`reference`); a JiT
           without the path at the resolution of tokens, on whole pictures, with JiT's own loss (`pixels`)
  sample   one text in so many passes; as many tokens by a GPT-2 of the same size with a key-value cache (transformers)
  loader   batches from Parquet shards
  growth   training against picture size, vocabulary and batch
  processes   two processes of one thread each against one (on a CPU)
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from corpus.loader import collate
from diffusion import Diffusion
from kit import device, errors
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.figures import plt, save
from kit.runlog import environment, write_json
from kit.times import TimeSampler
from model import build_jit_model
from palette import Layout, build_palette

PARTS = ("train", "sample", "loader", "growth", "processes")
LESS_MEMORY = "lower `batch_size` or `img_size`"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--what", nargs="+", default=PARTS, choices=PARTS, help="what to measure")
    parser.add_argument("--model", default="JiT-B/4" if gpu else "JiT-Ti/4", help="JiT-{N,Ti,S,B,L,H}/{patch size}")
    parser.add_argument("--img_size", type=int, default=64 if gpu else 16, help="side of the picture")
    parser.add_argument("--vocab_size", type=int, default=4096 if gpu else 512, help="tokens")
    parser.add_argument("--batch_size", type=int, default=32, help="texts in a step")
    parser.add_argument("--steps", type=int, default=30 if gpu else 8, help="steps that are timed in each row")
    parser.add_argument("--passes", type=int, default=32, help="forward passes of a sample")
    parser.add_argument("--output_file", help="JSON (default: results/bench_DEVICE.json), with a figure beside it")
    add_common(parser, "device", "precision", "seed", "compile")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if min(args.img_size, args.batch_size, args.steps, args.passes) < 1:
        raise UserError("--img_size, --batch_size, --steps and --passes need at least 1")
    runtime = device.start(args.device, args.seed, args.precision)
    if runtime.world_size > 1:  # a part of `processes`
        speed = Training(args, runtime).run(args.steps)
        total = runtime.sum_of(round(speed))
        if runtime.is_main:
            print(json.dumps({"tokens_per_second": total}))
        runtime.finish()
        return
    path = Path(args.output_file or f"results/bench_{runtime.device.type}.json")
    report = {"settings": {k: v for k, v in vars(args).items() if k not in ("what", "output_file")}}
    report["matmul_rate"] = device.matmul_rate(runtime, 2.0)
    measure = {"train": train, "sample": sample, "loader": loader, "growth": growth, "processes": processes}
    for name in args.what:
        if name == "processes" and runtime.device.type != "cpu":
            continue
        report[name] = measure[name](args, runtime)
        print(name, json.dumps(report[name], indent=2))
    report["peak_memory_bytes"] = (
        torch.cuda.max_memory_allocated() if runtime.device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )  # fmt: skip
    report["environment"] = environment(runtime)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    if "growth" in report:
        plot_growth(report["growth"], path.with_suffix(".png"))
    print(f"wrote {path}")


def in_turn(rows: dict[str, Callable[[], float]], rounds: int = 3) -> dict[str, float]:
    """The median of what each row returns, the rows taking turns."""
    found = {name: [] for name in rows}
    for _ in range(rounds):
        for name, row in rows.items():
            found[name].append(row())
    return {name: statistics.median(values) for name, values in found.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Training


class Training:
    """Steps of a new network on random texts. `whole`: on whole pictures, by the shortest way to write it down."""

    def __init__(self, args: argparse.Namespace, runtime: device.Runtime, whole: bool = False, pixels: bool = False):
        self.args, self.runtime, self.whole = args, runtime, whole
        sizes = {"token_depth": 0} if pixels else {}
        vocab_size = None if pixels else args.vocab_size
        network = build_jit_model(args.model, args.img_size, vocab_size=vocab_size, **sizes)
        palette, layout = build_palette("shuffled", args.vocab_size), Layout(args.img_size, network.patch_size)
        self.diffusion = Diffusion(network, palette, layout, "pixel" if pixels else "token").to(runtime.device)
        if args.compile:
            self.diffusion.compile()
        self.parallel = runtime.parallel(self.diffusion, find_unused_parameters=True, broadcast_buffers=False)
        self.optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
        self.times = TimeSampler("logit_normal", 1.0, 1.2)
        rng = np.random.default_rng(args.seed)  # on all devices the same lengths, as in a step of train.py
        capacity = args.img_size**2
        lengths = np.sort(rng.integers(max(1, capacity // 4), capacity + 1, 64 * args.batch_size))
        self.batches = []
        for rows in rng.permutation(lengths.reshape(64, -1)):
            chunks = [torch.from_numpy(rng.integers(args.vocab_size, size=n)) for n in rows]
            batch = collate(chunks, capacity if whole else layout.multiple)
            self.batches.append({name: runtime.to(value) for name, value in batch.items()})

    def flops_per_token(self) -> float:
        """Of a training step, three forward passes' worth, for each valid token at the mean length."""
        length = 5 / 8 * self.args.img_size**2
        return self.diffusion.network.training_flops(self.args.img_size**2 if self.whole else length, 0) / length

    def run(self, steps: int) -> float:
        """Valid tokens a second on this device, after a warm-up."""
        tokens = 0
        for number in range(-2, steps):
            if number == 0:
                self.wait()
                start = time.perf_counter()
            batch = self.batches[number % len(self.batches)]
            tokens += int(batch["num_tokens"].sum()) if number >= 0 else 0
            self.step(batch["tokens"], batch["mask"])
        self.wait()
        return tokens / (time.perf_counter() - start)

    def step(self, tokens: torch.Tensor, mask: torch.Tensor) -> None:
        t = self.runtime.to(self.times.sample(torch.rand(len(tokens))))
        with self.runtime.autocast():
            loss = self.plain_loss(tokens, mask, t) if self.whole else self.our_loss(tokens, mask, t)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.diffusion.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def our_loss(self, tokens, mask, t):
        noise = torch.randn(*tokens.shape, 3, device=tokens.device)
        return self.parallel(tokens, mask, t, noise)[0]

    def plain_loss(self, tokens, mask, t):
        """The same loss on a whole picture that is made on the host, with the logits of all pixels at once."""
        d, network = self.diffusion, self.diffusion.network
        x = d.palette.colors.cpu()[tokens.cpu()]
        noise = torch.randn(x.shape)
        z = (t.cpu()[:, None, None] * x + (1 - t.cpu())[:, None, None] * noise).to(tokens.device)
        if network.vocab_size is None:
            error = (network(z, t, mask).float() - x.to(z.device)) / (1 - t).clamp_min(0.05)[:, None, None]
            return (error.square().mean(-1) * mask).sum() / mask.sum()
        likelihood = d.log_likelihood(z, t[:, None].expand(mask.shape))
        soft = (likelihood + d.log_unigram).softmax(-1) @ network.embedding
        logits = network.head(network(z, t, mask, soft=soft)).float() + likelihood
        nll = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(mask.shape)
        return (nll * mask).sum() / mask.sum()

    def wait(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()


def train(args: argparse.Namespace, runtime: device.Runtime) -> dict:
    ways = {
        "ours": Training(args, runtime),
        "reference": Training(args, runtime, whole=True),
        "pixels": Training(args, runtime, whole=True, pixels=True),
    }
    speeds = in_turn({name: lambda way=way: way.run(args.steps) for name, way in ways.items()})
    rate = device.matmul_rate(runtime, 2.0)
    return {
        name: {
            "tokens_per_second": round(speed),
            "flops_per_token": round(ways[name].flops_per_token()),
            "matmul_fraction": round(speed * ways[name].flops_per_token() / rate, 3),
            "ours_faster_by": round(speeds["ours"] / speed, 2),
        }
        for name, speed in speeds.items()
    }


def growth(args: argparse.Namespace, runtime: device.Runtime) -> dict:
    """Tokens a second of training against one size at a time."""
    sizes = {
        "img_size": [args.img_size // 2, args.img_size, args.img_size * 2],
        "vocab_size": [args.vocab_size // 4, args.vocab_size, args.vocab_size * 4, args.vocab_size * 16],
        "batch_size": [max(1, args.batch_size // 8), max(1, args.batch_size // 2), args.batch_size],
    }
    rows = {}
    for name, values in sizes.items():
        for value in values:
            changed = argparse.Namespace(**{**vars(args), name: value})
            if name == "img_size":  # as many tokens in a step
                changed.batch_size = max(1, args.batch_size * args.img_size**2 // value**2)
            rows[name, value] = lambda changed=changed: Training(changed, runtime).run(args.steps)
    speeds = in_turn(rows)
    return {
        name: [{"value": value, "tokens_per_second": round(speeds[name, value])} for value in values]
        for name, values in sizes.items()
    }


def processes(args: argparse.Namespace, runtime: device.Runtime) -> dict:
    """Tokens a second of one process and of two, with one thread each, as a fraction of twice one."""

    def run(count: int) -> float:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(count),
            __file__,
        ]
        for name in ("model", "img_size", "vocab_size", "batch_size", "steps", "precision"):
            command += [f"--{name}", str(getattr(args, name))]
        if count == 1:
            command = [sys.executable, "-c", ALONE, *command[6:]]
        done = subprocess.run(
            [*command, "--device", "cpu"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            raise UserError(f"a process of the benchmark failed: {done.stderr.strip().splitlines()[-1]}")
        return json.loads(done.stdout.splitlines()[-1])["tokens_per_second"]

    speeds = in_turn({"one": lambda: run(1), "two": lambda: run(2)})
    return {
        **{name: round(speed) for name, speed in speeds.items()},
        "efficiency": round(speeds["two"] / 2 / speeds["one"], 3),
    }


ALONE = """
import json, sys
sys.argv = sys.argv[1:]
import bench
from kit import device
args = bench.parse_args()
runtime = device.start(args.device, args.seed, args.precision)
print(json.dumps({"tokens_per_second": bench.Training(args, runtime).run(args.steps)}))
"""


# ----------------------------------------------------------------------------------------------------------------------
# Sampling, loading


def sample(args: argparse.Namespace, runtime: device.Runtime) -> dict:
    """Seconds for one text that fills a picture, and for as many tokens of a GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    training = Training(argparse.Namespace(**{**vars(args), "batch_size": 1}), runtime)
    diffusion, count = training.diffusion.eval(), args.img_size**2
    size = sum(p.numel() for p in diffusion.network.parameters())
    width, depth = gpt2_shape(size, args.vocab_size, count)
    config = GPT2Config(
        vocab_size=args.vocab_size, n_positions=count, n_embd=width, n_layer=depth, n_head=max(1, width // 64),
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    gpt2 = GPT2LMHeadModel(config).to(runtime.device, runtime.dtype).eval()
    mask = torch.ones(1, count, dtype=torch.bool, device=runtime.device)
    grid = training.times.grid(args.passes)

    def ours() -> float:
        start = time.perf_counter()
        with torch.no_grad(), runtime.autocast():
            diffusion.sample(mask, grid).sum().item()
        return time.perf_counter() - start

    def theirs() -> float:
        first = torch.zeros(1, 1, dtype=torch.long, device=runtime.device)
        start = time.perf_counter()
        with torch.no_grad():
            gpt2.generate(
                first, max_new_tokens=count - 1, min_new_tokens=count - 1, do_sample=True, use_cache=True, pad_token_id=0,
                attention_mask=torch.ones_like(first),
            ).sum().item()  # fmt: skip
        return time.perf_counter() - start

    ours()
    seconds = in_turn({"ours": ours, "gpt2": theirs}, 3 if count <= 1024 else 1)
    return {
        "tokens": count, "passes": args.passes, "parameters": size, "gpt2_parameters": sum(p.numel() for p in gpt2.parameters()),
        "seconds": round(seconds["ours"], 3), "gpt2_seconds": round(seconds["gpt2"], 3),
        "faster_by": round(seconds["gpt2"] / seconds["ours"], 1),
    }  # fmt: skip


def gpt2_shape(parameters: int, vocab_size: int, positions: int) -> tuple[int, int]:
    """Width, a multiple of 64, and depth of a GPT-2 of about so many parameters, near GPT-2's own proportions."""

    def excess(shape):
        width, depth = shape
        return abs(12 * width**2 * depth + (vocab_size + positions) * width - parameters)

    return min(((width, max(2, round(width / 64))) for width in range(64, 2049, 64)), key=excess)


def loader(args: argparse.Namespace, runtime: device.Runtime) -> dict:
    """Tokens a second of batches read from Parquet shards, by one process."""
    import pyarrow
    from pyarrow import parquet

    from corpus.chunks import LengthBuckets, open_built
    from corpus.loader import batches
    from corpus.shards import GROUP_CHUNKS

    rng, capacity = np.random.default_rng(args.seed), args.img_size**2
    lengths = rng.integers(max(1, capacity // 4), capacity + 1, max(64 * args.batch_size, 4_000_000 // capacity))
    with tempfile.TemporaryDirectory() as folder:
        rows = [rng.integers(args.vocab_size, size=n, dtype=np.int32) for n in lengths]
        parquet.write_table(
            pyarrow.table({"tokens": rows}), Path(folder) / "train-00000.parquet", row_group_size=GROUP_CHUNKS
        )
        chunks = open_built(Path(folder))
        order = LengthBuckets(chunks.lengths, args.batch_size, args.seed)
        start, tokens = time.perf_counter(), 0
        for batch in batches(chunks, islice(order.batches(), order.steps_per_epoch), 16):
            tokens += int(batch["num_tokens"].sum())
        return {"tokens_per_second": round(tokens / (time.perf_counter() - start))}


def plot_growth(found: dict, path: Path) -> None:
    """Tokens a second of training against picture size, vocabulary and batch."""
    labels = {
        "img_size": "side of the picture",
        "vocab_size": "tokens in the vocabulary",
        "batch_size": "texts in a step",
    }
    figure, axes = plt.subplots(1, len(found), figsize=(9.6, 3.2), sharey=True)
    for axis, (name, rows) in zip(axes, found.items()):
        values = [row["value"] for row in rows]
        axis.plot(values, [row["tokens_per_second"] for row in rows], "o-")
        axis.set_xscale("log", base=2)
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.set_xlabel(labels[name])
    highest = max(row["tokens_per_second"] for rows in found.values() for row in rows)
    axes[0].set_ylim(0, 1.1 * highest)
    axes[0].set_ylabel("training, tokens a second")
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    save(figure, path)


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
