"""Prompts and their answers: texts whose first part is always given.

Rows {"prompt": …, "answer": …} of a .jsonl or .parquet file become chunks of prompt, line break, answer, and end tokens up to the
length of the longest answer, so that a model has to say itself where an answer ends. A twentieth of the prompts, chosen by their
hash, is for validation and another for the report; equal prompts are never on two sides.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpus.documents import find_sources, rows_of
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer, load_tokenizer, train_bpe
from kit.errors import UserError

HELD_OUT = 20  # every so many prompts for val, and for test
TOO_LONG = "leave it out, or raise `img_size`"


class Pairs(Chunks):
    """Chunks in memory whose first `given` (num_chunks,) tokens are the prompt."""

    def __init__(self, rows: list[tuple[np.ndarray, np.ndarray]], answer_length: int, end_id: int, origin: Path):
        if not rows:
            raise UserError(f"{origin} has too few rows to hold some of them out")
        self.files, self.origin = [], origin
        self.given = np.array([len(prompt) for prompt, _ in rows])
        self.lengths = self.given + answer_length
        parts = [
            each for prompt, answer in rows for each in (prompt, answer, np.full(answer_length - len(answer), end_id))
        ]
        self.tokens = np.concatenate(parts).astype(np.int32)
        self.offsets = np.append(0, np.cumsum(self.lengths))
        self.group_starts = np.array([0, len(rows)])
        self.least, self.largest = int(self.tokens.min()), int(self.tokens.max())
        self._start()

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens, self.offsets


@dataclass(frozen=True)
class PairSplits:
    """The three parts; every answer takes `answer_length` tokens, end tokens included."""

    train: Pairs
    val: Pairs
    test: Pairs
    tokenizer: Tokenizer
    answer_length: int


def open_pairs(
    path: str | Path,
    capacity: int,
    tokenizer: Tokenizer | None = None,
    tokenizer_path: str | None = None,
    vocab_size: int = 512,
) -> PairSplits:
    """The rows of a file or folder, with the tokenizer given or named, or one trained on them.

    Raises UserError for what is no such file and for rows longer than `capacity` tokens.
    """
    tokenizer = tokenizer or (load_tokenizer(tokenizer_path) if tokenizer_path else None)
    if tokenizer is None:
        tokenizer = train_bpe((part for pair in _rows(path) for part in pair), vocab_size)
    parts: list[list] = [[], [], []]
    for prompt, answer in _rows(path):
        place = int.from_bytes(hashlib.blake2b(prompt.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        part = {0: 1, 1: 2}.get(place % HELD_OUT, 0)
        first, second = tokenizer.encode_pieces([prompt + "\n", answer], [True, False])
        parts[part].append((first, np.append(second, tokenizer.end_id)))
    answer_length = max((len(answer) for part in parts for _, answer in part), default=0)
    longest = max((len(prompt) for part in parts for prompt, _ in part), default=0) + answer_length
    if longest > capacity:
        raise UserError(f"{path} has prompts and answers of {longest} tokens, but only {capacity} fit: {TOO_LONG}")
    splits = [Pairs(part, answer_length, tokenizer.end_id, Path(path)) for part in parts]
    return PairSplits(*splits, tokenizer, answer_length)


def _rows(path: str | Path) -> Iterator[tuple[str, str]]:
    for source in find_sources([path]):
        for where, row in rows_of(source, "prompt", "answer"):
            if not isinstance(row.get("prompt"), str) or not isinstance(row.get("answer"), str):
                raise UserError(f'{where}: expected {{"prompt": …, "answer": …}}')
            yield tuple(row[name].encode("utf-8", "replace").decode() for name in ("prompt", "answer"))
