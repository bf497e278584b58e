"""Text -> tokens -> chunks of random length -> data/train, data/val, data/test, data/tokenizer.json, data/stats.json.

    python build_pretrain_data.py                                   # the text that every Python carries
    python build_pretrain_data.py --input novels/ --vocab_size 4096 # your own .txt, .jsonl, .parquet (also .gz, .zst)
    python build_pretrain_data.py --input texts/ --tasks 64 --executor slurm --partition cpu   # beyond one machine
    python build_pretrain_data.py --dataset_name wikitext --dataset_config wikitext-103-raw-v1 --tokenizer_path gpt2

corpus/builder.py says how the chunks are made.
"""

import argparse
import json
import os
from dataclasses import fields
from pathlib import Path

from corpus.builder import BuildSettings, build, split_text_into_random_token_chunks
from corpus.pipeline import EXECUTORS, build_in_tasks
from kit import errors
from kit.arguments import program

__all__ = ["main", "split_text_into_random_token_chunks"]  # the latter for use from Python
LESS_MEMORY = "close other programs, or split the input"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.set_defaults(**{field.name: field.default for field in fields(BuildSettings)})
    source = parser.add_argument_group("source; with none given, Python's own library and language reference")
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help="files and folders of .txt, .jsonl, .parquet, also .gz, .zst"
    )
    source.add_argument("--dataset_name", help="a Hugging Face dataset, by name or local folder, streamed")
    source.add_argument("--dataset_config", help="its configuration")
    source.add_argument("--dataset_split", help="its split")
    source.add_argument("--text_column", help="column that holds the text of .jsonl, .parquet, datasets")
    source.add_argument("--encoding", help="encoding of text files (default: UTF-8, UTF-16, GB18030 or Big5, detected)")
    tokens = parser.add_argument_group("tokens")
    tokens.add_argument(
        "--tokenizer_path", help="tokenizer.json, a folder with one, or a Hugging Face name (default: train a BPE)"
    )
    tokens.add_argument("--vocab_size", type=int, help="size of the byte-level BPE trained on the text")
    tokens.add_argument("--min_tokens", type=int, help="shortest chunk")
    tokens.add_argument("--max_tokens", type=int, help="longest chunk: 4096 fill a 64x64 image")
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default="data", help="folder to write")
    output.add_argument(
        "--overwrite", action=argparse.BooleanOptionalAction, default=False, help="replace a finished build"
    )
    output.add_argument("--val_fraction", type=float, help="fraction of the tokens that checkpoints are chosen by")
    output.add_argument("--test_fraction", type=float, help="fraction that reports are made on, whole documents")
    output.add_argument("--seed", type=int, help="seed of split and chunk lengths")
    output.add_argument("--num_workers", type="workers", default=os.cpu_count(), help="tokenizing threads")
    far = parser.add_argument_group("several tasks, for text beyond one machine (needs datatrove)")
    far.add_argument(
        "--tasks", type=int, help="tokenize in so many tasks (default: in this process); the result is the same"
    )
    far.add_argument("--executor", default="local", choices=EXECUTORS, help="what runs them")
    far.add_argument("--partition", help="of Slurm")
    far.add_argument("--time", default="24:00:00", help="limit of a Slurm job")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(max(1, args.num_workers))  # read once, at the tokenizer's first batch
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    settings = BuildSettings(**{field.name: getattr(args, field.name) for field in fields(BuildSettings)})
    if args.tasks is not None:
        options = {"partition": args.partition, "time": args.time} if args.executor == "slurm" else {}
        build_in_tasks(settings, args.output_dir, args.tasks, args.executor, args.overwrite, **options)
        if not (Path(args.output_dir) / "stats.json").exists():
            print(f"queued; {args.output_dir} appears when the last job is done")
            return
    else:
        build(settings, args.output_dir, args.overwrite)
    stats = json.loads((Path(args.output_dir) / "stats.json").read_text(encoding="utf-8"))
    for split, part in stats["splits"].items():
        print(f"{split:5} {part['documents']:9,} documents {part['chunks']:9,} chunks {part['tokens']:13,} tokens")
    print(
        f"{stats['bytes']:,} bytes, {stats['tokens_per_byte']:.3f} tokens per byte, vocabulary {stats['vocab_size']:,}"
    )
    print(f"wrote {args.output_dir}/{', '.join(stats['splits'])}, tokenizer.json, stats.json")


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
