"""Text -> sequences of tokens, padded to whole chunks."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from corpus.builder import BuildSettings
from corpus.chunks import build_once, open_built, open_chunks
from corpus.loader import collate
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer
from kit.errors import UserError


def open_data(
    data_path: str | None, build_dir: Path, tokenizer: Tokenizer | None, **settings
) -> tuple[Chunks, Chunks, Tokenizer]:
    """Training and validation sequences and the tokenizer.

    `data_path`: a folder of the data builder, or any text it accepts; None: the dataset that `settings` (of
    BuildSettings) name, or the text every Python carries. Raises UserError for a path without text.
    """
    if data_path is None:
        tokenizer = build_once(build_dir, BuildSettings(**settings), tokenizer)
        train, val = open_built(build_dir / "train"), open_built(build_dir / "val")
    else:
        settings = {name: value for name, value in settings.items() if not name.startswith("dataset_")}
        train, val, tokenizer = open_chunks(data_path, build_dir, tokenizer, **settings)
    if val is None:
        raise UserError(f"no validation sequences beside {data_path}: build it with --val_fraction above 0")
    return train, val, tokenizer


def in_order(chunks: Chunks, count: int, batch_size: int, chunk_size: int) -> Iterator[dict]:
    """`count` sequences from all over the set, in batches, as they lie on disk."""
    chosen = torch.linspace(0, len(chunks) - 1, min(count, len(chunks))).round().long().tolist()
    return chosen_batches(chunks, chosen, batch_size, chunk_size)


def chosen_batches(chunks: Chunks, chosen: Sequence[int], batch_size: int, chunk_size: int) -> Iterator[dict]:
    """The sequences of those indices, in batches."""
    for start in range(0, len(chosen), batch_size):
        yield collate([chunks[i] for i in chosen[start : start + batch_size]], chunk_size)
