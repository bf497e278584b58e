"""Prompts with one right answer each, by chance: sums, sorted words, entries of a dictionary.

python -m recipes.make_pairs --output_file pairs.jsonl --count 60000
"""

import json
import random
from pathlib import Path

from kit import errors
from kit.arguments import add_common, program
from kit.errors import UserError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def addition(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(1000), rng.randrange(1000)
    return f"{a} + {b} =", str(a + b)


def sorting(rng: random.Random) -> tuple[str, str]:
    letters = rng.sample(LETTERS, rng.randint(3, 6))
    return f"sort {' '.join(letters)}", " ".join(sorted(letters))


def lookup(rng: random.Random) -> tuple[str, str]:
    keys = rng.sample(LETTERS, rng.randint(3, 6))
    values = [rng.randrange(10, 100) for _ in keys]
    index = rng.randrange(len(keys))
    return f"{' '.join(f'{k}:{v}' for k, v in zip(keys, values))} ? {keys[index]}", str(values[index])


TASKS = {"addition": addition, "sorting": sorting, "lookup": lookup}


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--output_file", required=True, help="where to write rows {prompt, answer}")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="which")
    parser.add_argument("--count", type=int, default=60_000, help="rows, the tasks in turn")
    add_common(parser, "seed")
    args = parser.parse_args()
    if args.count < 1:
        raise UserError(f"--count {args.count}: need at least 1")
    rng = random.Random(args.seed)
    rows = [TASKS[args.tasks[i % len(args.tasks)]](rng) for i in range(args.count)]
    text = "".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in dict(rows).items())
    Path(args.output_file).write_text(text, encoding="utf-8")
    print(f"wrote {len(dict(rows)):,} rows to {args.output_file}")


if __name__ == "__main__":
    errors.run(main)
