"""Chunks of token ids in Parquet shards, opened from their footers alone.

A footer of the data builder says how long each chunk is, and Parquet's own statistics say which ids lie between the least and
the largest. So a hundred gigabytes open in seconds; tokens are read row group by row group when they are asked for.
"""

import itertools
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import torch
from pyarrow import parquet
from torch.utils.data import Dataset

from kit.errors import UserError, note

GROUP_CHUNKS = 32  # of a row group: to read one chunk is to read its row group
LENGTHS = "chunk_lengths"  # key in a shard's metadata: JSON list
OPEN_FILES = 256
CACHE_BYTES = 256 << 20  # of tokens that were read last, per process


class Footer(NamedTuple):
    """What is known of a shard without its tokens."""

    lengths: np.ndarray  # (chunks,)
    group_sizes: list[int]  # chunks in each row group
    least: int
    largest: int
    slow: bool  # a large row group must be read for every chunk


class Chunks(Dataset):
    """Chunks of token ids. Item i is a long tensor (n,); `lengths` (num_chunks,) holds every n.

    `origin` names them in messages. Raises UserError for shards that cannot be read or hold no chunks of integers.
    """

    def __init__(self, files: Sequence[Path], origin: Path):
        self.files, self.origin = list(files), origin
        with ThreadPoolExecutor(8) as pool:
            footers = list(pool.map(self._footer, self.files))
        self.lengths = np.concatenate([footer.lengths for footer in footers])
        if not len(self.lengths):
            raise UserError(f"{origin} holds no chunks")
        self.least, self.largest = min(f.least for f in footers), max(f.largest for f in footers)
        sizes = [len(footer.group_sizes) for footer in footers]
        self.file_starts = np.cumsum([0, *sizes])  # the first row group of each file
        self.group_starts = np.cumsum([0, *itertools.chain.from_iterable(f.group_sizes for f in footers)])
        if any(f.slow for f in footers) and 4 * self.lengths.sum() > CACHE_BYTES:
            note(f"{origin} has large row groups, slow to read in random order: rebuild it with build_pretrain_data.py")
        self._start()

    def _start(self) -> None:
        self._open, self._recent, self._recent_bytes = lru_cache(OPEN_FILES)(self._open_file), OrderedDict(), 0

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}  # for loader processes

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        index = range(len(self))[int(index)]
        group = int(np.searchsorted(self.group_starts, index, side="right")) - 1
        tokens, offsets = self._group(group)
        place = index - self.group_starts[group]
        return torch.from_numpy(tokens[offsets[place] : offsets[place + 1]].astype(np.int64))

    def check(self, capacity: int, vocab_size: int, setting: str) -> None:
        """Raises UserError if a chunk is longer than `capacity`, which `setting` sets, or an id outside the vocabulary."""
        if self.lengths.max() > capacity:
            raise UserError(
                f"{self.origin} has chunks of up to {self.lengths.max()} tokens, but only {capacity} fit: "
                f"raise `{setting}`, or rebuild the data with `max_tokens` {capacity}"
            )
        for extreme in (self.least, self.largest):
            if not 0 <= extreme < vocab_size:
                raise UserError(
                    f"{self.origin} holds token id {extreme}, outside the vocabulary of {vocab_size}: "
                    "another tokenizer made it"
                )

    def statistics(self, vocab_size: int, limit: int = 20_000_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Counts (V,) and pairs of neighbors (n, 2), for palettes and the unigram posterior.

        Row groups are read in random order until `limit` tokens were seen.
        """
        counts, pairs, seen = np.zeros(vocab_size, dtype=np.int64), [], 0
        for group in np.random.default_rng(seed).permutation(len(self.group_starts) - 1):
            if seen >= limit:
                break
            tokens, offsets = self._read(group)
            counts += np.bincount(tokens, minlength=vocab_size)
            inside = np.ones(max(len(tokens) - 1, 0), dtype=bool)
            inside[offsets[1:-1] - 1] = False  # the last token of a chunk has no neighbor
            pairs.append(np.stack([tokens[:-1], tokens[1:]], axis=1)[inside])
            seen += len(tokens)
        return counts, np.concatenate(pairs)

    STRETCHES = 64

    def fold_of(self, index: torch.Tensor, folds: int) -> torch.Tensor:
        """In which of `folds` parts chunks (B,) are, from 0: the chunks lie in 64 stretches, dealt out in turn.

        Neighboring chunks, mostly of one document, are in one part, and each part holds text from everywhere.
        """
        return index * self.STRETCHES // len(self) % folds

    def folds(self, count: int, limit: int = 20_000_000) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """The chunks of each fold, for counting n-grams: lists of (tokens (n,), first (m,)), chunks back to back and where
        each begins. Of more than `limit` tokens, the beginning of each stretch.
        """
        result = [[] for _ in range(count)]
        edges = [-(-len(self) * i // self.STRETCHES) for i in range(self.STRETCHES + 1)]
        for number, (low, high) in enumerate(itertools.pairwise(edges)):
            ends = np.cumsum(self.lengths[low:high])
            chosen = int(np.searchsorted(ends, limit // self.STRETCHES)) + 1
            parts = list(self._stretch(low, min(low + chosen, high)))
            if parts:
                result[number % count].append((np.concatenate(parts), np.append(0, ends)[: min(chosen, high - low)]))
        return result

    def _stretch(self, low: int, high: int) -> Iterator[np.ndarray]:
        """Tokens of the chunks `low` to `high`, back to back, in parts."""
        group = int(np.searchsorted(self.group_starts, low, side="right")) - 1
        while low < high:
            tokens, offsets = self._read(group)
            start, stop = self.group_starts[group : group + 2]
            yield tokens[offsets[low - start] : offsets[min(high, stop) - start]]
            low, group = stop, group + 1

    def _group(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """`_read`, from memory if it was read lately."""
        if number in self._recent:
            self._recent.move_to_end(number)
            return self._recent[number]
        found = self._recent[number] = self._read(number)
        self._recent_bytes += found[0].nbytes
        while self._recent_bytes > CACHE_BYTES and len(self._recent) > 1:
            self._recent_bytes -= self._recent.popitem(last=False)[1][0].nbytes
        return found

    def _read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (n,) of a row group, chunks back to back, and where these begin and end (m + 1,)."""
        file = int(np.searchsorted(self.file_starts, number, side="right")) - 1
        try:
            return _columns(self._open(file), number - int(self.file_starts[file]))
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(f"cannot read {self.files[file]}: {error}") from error

    def _open_file(self, number: int) -> parquet.ParquetFile:
        return parquet.ParquetFile(self.files[number])

    def _footer(self, path: Path) -> Footer:
        try:
            with parquet.ParquetFile(path) as file:
                return read_footer(file)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(f"cannot read the Parquet shards under {self.origin}: {path.name}: {error}") from error


def read_footer(file: parquet.ParquetFile) -> Footer:
    """A shard's lengths, row groups and range of ids. What another writer left out of the footer is read from the tokens."""
    kind, metadata = file.schema_arrow.field("tokens").type, file.metadata
    lists = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if not lists or not pyarrow.types.is_integer(kind.value_type):
        raise ValueError(f"column `tokens` holds {kind}, not lists of integers")
    group_sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    column = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path.split(".")[0] == "tokens")
    known = (metadata.metadata or {}).get(LENGTHS.encode())
    statistics = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    if known and all(s is not None and s.has_min_max for s in statistics):
        lengths = np.array(json.loads(known), dtype=np.int64)
        if len(lengths) != metadata.num_rows:
            raise ValueError(f"its footer names {len(lengths)} lengths for {metadata.num_rows} chunks")
        return Footer(lengths, group_sizes, min(s.min for s in statistics), max(s.max for s in statistics), False)
    lengths, least, largest = [np.empty(0, np.int64)], 0, 0
    for group in range(metadata.num_row_groups):
        tokens, offsets = _columns(file, group)
        lengths.append(np.diff(offsets))
        if len(tokens):
            least, largest = min(least, int(tokens.min())), max(largest, int(tokens.max()))
    slow = max(group_sizes, default=0) > GROUP_CHUNKS
    return Footer(np.concatenate(lengths), group_sizes, least, largest, slow)


def _columns(file: parquet.ParquetFile, group: int) -> tuple[np.ndarray, np.ndarray]:
    column = file.read_row_group(group, columns=["tokens"], use_threads=False).column("tokens").combine_chunks()
    tokens = column.flatten()
    if column.null_count or tokens.null_count:
        raise ValueError("column `tokens` holds nulls")
    offsets = column.offsets.to_numpy()
    return tokens.to_numpy(), (offsets - offsets[0]).astype(np.int64)


def close_shard(writer: parquet.ParquetWriter, lengths: Sequence[int]) -> None:
    """Write the footer: with the lengths of all chunks, in order."""
    writer.add_key_value_metadata({LENGTHS: json.dumps([int(n) for n in lengths])})
    writer.close()
