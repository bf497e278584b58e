"""The data builder against the bare tokenizer, side by side on the same text. Writes results/builder_speed.json.

    python -m recipes.builder_speed --texts folder/of/txt --tokenizer_path gpt2 --megabytes 300

The text is repeated, each copy with another first line so that deduplication keeps it, to the size asked for. "Bare" is
`encode_batch` over the same pieces, in a process of its own. Speeds are wall-clock; memory is the peak of the process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from corpus.documents import documents, find_sources
from corpus.tokenizer import load_tokenizer
from kit.arguments import program
from kit.runlog import write_json

ROOT = Path(__file__).parent.parent


def bare(folder: str, tokenizer_path: str) -> None:
    """Print the seconds that encode_batch needs for all pieces of a folder, read beforehand."""
    backend = load_tokenizer(tokenizer_path).backend
    seconds = 0.0
    batch = []
    for source in find_sources([folder]):
        for document in documents(source):
            for piece in document.pieces():
                batch.append(piece)
                if len(batch) == 32:
                    seconds, batch = seconds + _timed(backend, batch), []
    if batch:
        seconds += _timed(backend, batch)
    print(seconds)


def _timed(backend, batch) -> float:
    start = time.perf_counter()
    backend.encode_batch(batch, add_special_tokens=False)
    return time.perf_counter() - start


def build(folder: str, tokenizer_path: str) -> tuple[float, float]:
    """Wall-clock seconds and peak megabytes of a whole build in a fresh process."""
    program = (
        "import resource, sys, build_pretrain_data as b; sys.argv[0] = b.__file__; b.main();"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    with tempfile.TemporaryDirectory() as output:
        command = [
            sys.executable,
            "-c",
            program,
            "--input",
            folder,
            "--tokenizer_path",
            tokenizer_path,
            "--output_dir",
            output,
        ]
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return time.perf_counter() - start, float(done.stdout.split()[-1])


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--texts", required=True, help="folder of .txt files")
    parser.add_argument("--tokenizer_path", required=True, help="tokenizer.json, folder or Hugging Face name")
    parser.add_argument("--megabytes", type=int, default=300, help="size of the text (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--output", default=str(ROOT / "results" / "builder_speed.json"), help="JSON file to write")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        bare(args.texts, args.tokenizer_path)
        return
    sources = [
        path.read_text(encoding="utf-8-sig", errors="replace") for path in sorted(Path(args.texts).glob("*.txt"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        written, copy = 0, 0
        while written < args.megabytes << 20:
            for index, text in enumerate(sources):
                written += (Path(folder) / f"{copy:03d}_{index:03d}.txt").write_text(
                    f"copy {copy}\n{text}", encoding="utf-8"
                )
            copy += 1
        runs = []
        for _ in range(args.runs):
            command = [
                sys.executable,
                "-m",
                "recipes.builder_speed",
                "--bare",
                "--texts",
                folder,
                "--tokenizer_path",
                args.tokenizer_path,
            ]
            bare_seconds = float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
            seconds, memory = build(folder, args.tokenizer_path)
            runs.append(
                {
                    "bare_seconds": bare_seconds,
                    "build_seconds": seconds,
                    "ratio": bare_seconds / seconds,
                    "peak_memory_mb": memory,
                }
            )
            print(json.dumps(runs[-1]), flush=True)
    ratios = [run["ratio"] for run in runs]
    result = {
        "megabytes": written >> 20,
        "tokenizer": Path(args.tokenizer_path).name,
        "runs": runs,
        "speed_ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
    }
    write_json(args.output, result)


if __name__ == "__main__":
    main()
