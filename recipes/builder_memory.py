"""Memory of a data build and of a training start on much text, over time. Writes results/builder_memory.json and .png.

    python -m recipes.builder_memory                       # 10 GB of text; takes five times that of disk, and an hour or more
    python -m recipes.builder_memory --gigabytes 2 --tokenizer_path gpt2

The text is words drawn by Zipf's law from a made-up lexicon, in documents of 20,000 words, a line of JSON each. What is measured is the memory that a
program and the processes it started hold (resident, shared pages counted once each), every second.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from kit.arguments import program
from kit.figures import plt, save
from kit.runlog import write_json

ROOT = Path(__file__).parent.parent
DOCUMENT = 20_000  # words
FILE = 100 << 20  # bytes
TRAINING = ("--model", "JiT-Ti/4", "--batch_size", "2", "--max_steps", "20", "--val_samples", "4", "--device", "cpu")


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--gigabytes", type=float, default=10, help="size of the text")
    parser.add_argument("--tokenizer_path", help="tokenizer.json, folder or Hugging Face name (default: train a BPE)")
    parser.add_argument("--work", help="folder for text and data, on a disk with room (default: a temporary one)")
    parser.add_argument("--output", default=str(ROOT / "results" / "builder_memory.json"), help="JSON file to write")
    return parser.parse_args()


def write_text(folder: Path, size: float) -> int:
    """Files of made-up text of `size` bytes in all; returns the bytes written."""
    rng, written, number = np.random.default_rng(0), 0, 0
    letters = np.array(list("etaoinshrdlucmfw"))
    lexicon = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(50_000)])
    share = 1 / np.arange(1, len(lexicon) + 1)
    edges = np.cumsum(share / share.sum())
    while written < size:
        with open(folder / f"{number:05d}.jsonl", "w", encoding="utf-8") as file:
            while file.tell() < min(FILE, size - written):
                words = lexicon[np.searchsorted(edges, rng.random(DOCUMENT)).clip(max=len(lexicon) - 1)]
                file.write(json.dumps({"text": " ".join(words)}) + "\n")
            written += file.tell()
        number += 1
    return written


def watched(command: list) -> dict:
    """Seconds and megabytes of a program's memory until it ended. Raises CalledProcessError if it failed."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    seconds, megabytes, start = [], [], time.monotonic()
    while process.poll() is None:
        held = 0
        with suppress(psutil.Error):  # ended meanwhile
            parent = psutil.Process(process.pid)
            for each in [parent, *parent.children(recursive=True)]:
                with suppress(psutil.Error):
                    held += each.memory_full_info().pss
        seconds.append(round(time.monotonic() - start, 1))
        megabytes.append(held >> 20)
        time.sleep(1)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=process.stderr.read())
    return {"seconds": seconds, "megabytes": megabytes}


def plot(result: dict, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, (name, color) in zip(axes, (("build", "C0"), ("training", "C2"))):
        minutes = np.array(result[name]["seconds"]) / 60
        axis.plot(minutes, result[name]["megabytes"], color=color)
        axis.set_xlabel("minutes")
        axis.set_title(f"{name}, {result['gigabytes']:.2g} GB of text", loc="left")
    axes[0].set(ylabel="memory held (MB)", ylim=(0, None))
    save(figure, path)


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        texts, data, run = (Path(folder) / name for name in ("texts", "data", "run"))
        texts.mkdir()
        size = write_text(texts, args.gigabytes * 1e9)
        build = [sys.executable, "build_pretrain_data.py", "--input", texts, "--output_dir", data]
        build += ["--tokenizer_path", args.tokenizer_path] if args.tokenizer_path else []
        result = {"gigabytes": size / 1e9, "build": watched(build)}
        result["tokens"] = json.loads((data / "stats.json").read_text(encoding="utf-8"))["tokens"]
        result["training"] = watched([sys.executable, "train.py", "--data_path", data, "--output_dir", run, *TRAINING])
    for name in ("build", "training"):
        held = result[name]["megabytes"]
        result[name] |= {"peak": max(held), "peak_of_first_third": max(held[: max(1, len(held) // 3)])}
        print(f"{name}: at most {max(held):,} MB, in its first third {result[name]['peak_of_first_third']:,} MB")
    write_json(args.output, result)
    plot(result, Path(args.output).with_suffix(".png"))


if __name__ == "__main__":
    main()
