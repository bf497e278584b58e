"""Text -> tokens -> chunks of random length, as Parquet shards on disk.

Documents are deduplicated, tokenized on all cores and ended with an end token. Some of them, whole, become the test set
(what reports are made on), some the validation set (what checkpoints are chosen by); among few long documents, validation
is the end of one instead. Each set is then one long stream, cut into chunks whose length is uniform between `min_tokens`
and `max_tokens` and which never split a UTF-8 character. The result depends on the settings, not on the number of workers,
and appears only when it is complete: stats.json is written last. Memory does not grow with the corpus, apart from some
fifty bytes a document.
"""

import hashlib
import os
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

from corpus.documents import (
    Document,
    Source,
    documents,
    file_digest,
    find_sources,
    hub_documents,
    python_sources,
    size_on_disk,
)
from corpus.shards import GROUP_CHUNKS, close_shard
from corpus.spool import Spool, batches, tokenize
from corpus.tokenizer import Tokenizer, load_tokenizer, train_bpe
from kit.errors import UserError
from kit.runlog import progress_bar, write_json

SPLITS = ("train", "val", "test")
SHARD_TOKENS = 1 << 24
BPE_TRAINING_BYTES = 16 << 20  # more changes little, and a trainer holds every distinct word
BPE_WIDE_BYTE = 2.5  # what a byte beyond ASCII counts: text without spaces is all distinct words
LISTED_SOURCES = 1000


@dataclass(frozen=True)
class BuildSettings:
    """What decides the content of a build. Without `input` and `dataset_name`: the text every Python carries."""

    input: list[str] | None = None  # files and folders
    dataset_name: str | None = None  # a Hugging Face dataset
    dataset_config: str | None = None
    dataset_split: str = "train"
    text_column: str = "text"
    encoding: str | None = None  # None: detected
    tokenizer_path: str | None = None  # None: a byte-level BPE of `vocab_size` is trained
    vocab_size: int = 512
    min_tokens: int = 256
    max_tokens: int = 4096
    val_fraction: float = 0.01  # of the tokens, by document; 0: no such split
    test_fraction: float = 0.01
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for values that make no sense."""
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise UserError(f"`min_tokens` {self.min_tokens} and `max_tokens` {self.max_tokens}: need 1 <= min <= max")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"`{name}` {getattr(self, name)}: need a fraction from 0 to below 1")
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError(
                f"`val_fraction` {self.val_fraction} and `test_fraction` {self.test_fraction}: need less than 1 together"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"`seed` {self.seed}: need 0 or more, below 2^63")
        if self.input and self.dataset_name:
            raise UserError("give `input` or `dataset_name`, not both")


def build(
    settings: BuildSettings, output_dir: str | Path, overwrite: bool = False, tokenizer: Tokenizer | None = None
) -> dict:
    """Write train/, val/, test/, tokenizer.json and stats.json to `output_dir`; returns what went into stats.json.

    `tokenizer`, if given, takes the place of the one the settings name. Raises UserError for bad input and, without
    `overwrite`, for a finished build; nothing half-written is then left behind.
    """
    corpus, partial = begin(settings, Path(output_dir), overwrite)
    try:
        tokenizer = tokenizer or choose_tokenizer(settings, corpus)
        return finish(corpus.tokenize(tokenizer, partial), tokenizer, corpus, partial, Path(output_dir))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def begin(settings: BuildSettings, output: Path, overwrite: bool) -> tuple["Corpus", Path]:
    """The corpus, and an empty folder inside `output` to build in. Raises UserError as `build` does, before anything is made."""
    settings.check()
    if (output / "stats.json").exists() and not overwrite:
        raise UserError(f"{output} already holds a finished build: pass `overwrite` or choose another `output_dir`")
    for split in SPLITS:
        foreign = [p for p in (output / split).glob("*") if not p.match(f"{split}-[0-9]*.parquet")]
        if foreign:
            raise UserError(
                f"{foreign[0]} is no shard of this builder and would be replaced: choose another `output_dir`"
            )
    corpus = Corpus(settings)
    if next(corpus.documents(), None) is None:
        raise UserError("the input holds no text (every document is empty)")
    partial = output / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot create `output_dir` {output}: {error.strerror}") from error
    return corpus, partial


def finish(spool: Spool, tokenizer: Tokenizer, corpus: "Corpus", partial: Path, output: Path) -> dict:
    """Split and cut what was tokenized, and move the build into place; returns what went into stats.json."""
    stats = write_splits(spool, tokenizer, corpus.settings, partial)
    stats["sources"] = corpus.sources_summary()
    stats["settings"] = asdict(corpus.settings)
    tokenizer.save(partial / "tokenizer.json")
    publish(partial, output, stats)
    return stats


# ----------------------------------------------------------------------------------------------------------------------
# Corpus


class Corpus:
    """The documents that the arguments name, to be read in the same order as often as needed.

    `part` of `parts` holds every `parts`-th of their files.
    """

    def __init__(self, settings: BuildSettings, part: int = 0, parts: int = 1):
        self.settings = settings
        self.hub = settings.dataset_name is not None
        self.sources: list[Source] = (
            [] if self.hub else find_sources(settings.input) if settings.input else python_sources()
        )
        self.sources = self.sources[part::parts]
        self.bytes = size_on_disk(self.sources)

    def documents(self, advance=lambda size: None) -> Iterator[Document]:
        """Every document; calls `advance(bytes)` when a source is done."""
        settings = self.settings
        if self.hub:
            yield from hub_documents(
                settings.dataset_name, settings.dataset_config, settings.dataset_split, settings.text_column
            )
        for source in self.sources:
            yield from documents(source, settings.encoding, settings.text_column)
            advance(source.path.stat().st_size)

    def tokenize(self, tokenizer: Tokenizer, folder: Path) -> Spool:
        """Every document that is new, as tokens in `folder`."""
        total = None if self.hub else self.bytes
        return tokenize(self.documents, total, self.settings.seed, tokenizer, folder)

    def sources_summary(self, names: set[str] | None = None) -> dict:
        """Where the text came from: hashes of its files, or of those of these `names` (one combined hash always, each file's for up to 1000 files)."""
        if self.hub:
            settings = self.settings
            return {
                "dataset": settings.dataset_name,
                "config": settings.dataset_config,
                "split": settings.dataset_split,
            }
        sources = [s for s in self.sources if names is None or s.name in names]
        files = [{"name": s.name, "bytes": s.path.stat().st_size, "sha256": file_digest(s.path)} for s in sources]
        combined = hashlib.sha256("".join(f"{f['name']}\0{f['sha256']}\n" for f in files).encode()).hexdigest()
        summary = {"files": len(files), "bytes": sum(f["bytes"] for f in files), "sha256": combined}
        return summary | ({"listing": files} if len(files) <= LISTED_SOURCES else {})


def choose_tokenizer(settings: BuildSettings, corpus: Corpus) -> Tokenizer:
    """The tokenizer that the settings name, or a BPE trained on an even sample of the corpus."""
    if settings.tokenizer_path:
        return load_tokenizer(settings.tokenizer_path)
    fraction = BPE_TRAINING_BYTES / max(1, corpus.bytes)

    def sample() -> Iterator[str]:
        taken, due = 0, 0.0
        with progress_bar(corpus.bytes or None, "train tokenizer", unit="B") as bar:
            for document in corpus.documents(advance=bar.update):
                for piece in document.pieces():
                    size = len(piece.encode())
                    due += size * fraction
                    if taken < due and taken < BPE_TRAINING_BYTES:
                        taken += size + (BPE_WIDE_BYTE - 1) * _wide_bytes(piece, size)
                        yield piece
                if corpus.hub and taken >= BPE_TRAINING_BYTES:
                    return

    return train_bpe(sample(), settings.vocab_size)


def _wide_bytes(text: str, size: int) -> int:
    """How many of the `size` UTF-8 bytes of `text` belong to characters beyond ASCII."""
    return 0 if size == len(text) else size - len(text.encode("ascii", "ignore"))


# ----------------------------------------------------------------------------------------------------------------------
# Splitting and cutting


def split_documents(
    lengths: np.ndarray, keys: np.ndarray, target: float, min_tokens: int, at_any_size: bool
) -> np.ndarray:
    """Which documents (bool) are held out: whole ones of about `target` tokens, at least `min_tokens`, or none.

    Documents are drawn in the order of their random keys; one that would hold out far too much is passed over. If none
    fits, the shortest that holds a chunk goes, but only `at_any_size`. At least one document always stays.
    """
    held_out = np.zeros(len(lengths), dtype=bool)
    total = 0
    for index in np.argsort(keys, kind="stable"):
        if total >= target:
            break
        if total + lengths[index] <= 1.5 * target:
            held_out[index] = True
            total += int(lengths[index])
    for index in np.argsort(lengths, kind="stable"):
        if total >= min_tokens or not at_any_size:
            break
        if not held_out[index] and total + lengths[index] >= min_tokens:
            held_out[index] = True
            total += int(lengths[index])
    if held_out.all():
        held_out[np.argmax(lengths)] = False
    return held_out & (lengths[held_out].sum() >= min_tokens)


def assign_splits(spool: Spool, settings: BuildSettings, continues: np.ndarray) -> np.ndarray:
    """The split of every document, as its place in SPLITS: test is drawn first, val from the rest.

    Where no documents can be held out, the end of the longest that is left is, cut off as a document of its own in
    `spool`: for val also where whole documents would be far too much, so that training keeps them.
    """
    splits = np.zeros(len(spool.lengths), dtype=np.int8)
    total = sum(spool.lengths)
    for number, fraction in ((2, settings.test_fraction), (1, settings.val_fraction)):
        if fraction == 0:
            continue
        target = max(fraction * total, settings.min_tokens)
        left = np.flatnonzero(splits == 0)
        lengths, keys = np.array(spool.lengths, dtype=np.int64)[left], np.array(spool.keys)[left]
        held_out = split_documents(lengths, keys, target, settings.min_tokens, at_any_size=SPLITS[number] == "test")
        splits[left[held_out]] = number
        if not held_out.any():
            longest = int(left[np.argmax(lengths)])
            spool.cut_end(longest, int(target), continues)
            splits = np.insert(splits, longest + 1, number)
    return splits


def cut_chunks(
    slices: Iterator[np.ndarray],
    total: int,
    continues: np.ndarray,
    min_tokens: int,
    max_tokens: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Cut a stream of `total` tokens into chunks of uniformly random length in [min_tokens, max_tokens].

    `continues` (V,) flags tokens that begin inside a character; no chunk starts with one, if need be by being up to
    three tokens shorter. The last lengths are chosen so that nothing is left over where that is possible.
    """
    held = np.empty(0, dtype=np.uint32)
    left = total
    while left >= min_tokens:
        while len(held) < min(left, max_tokens + 1):
            held = np.concatenate([held, next(slices)])
        longest = left if left <= max_tokens else min(max_tokens, max(left - min_tokens, min_tokens))
        length = left if left <= max_tokens else int(rng.integers(min_tokens, longest + 1))
        while length < len(held) and length > 1 and continues[held[length]]:
            length -= 1
        yield held[:length]
        held = held[length:]
        left -= length


def split_text_into_random_token_chunks(
    text: str, tokenizer: Tokenizer, max_tokens: int = 4096, min_tokens: int = 256, seed: int = 0
) -> list[str]:
    """A text as chunks of random length, min_tokens to max_tokens each; what is left at the end, if shorter, is dropped."""
    tokens = tokenizer.encode(text)
    rng, continues = np.random.default_rng(seed), tokenizer.continues_character()
    chunks = cut_chunks(iter([tokens]), len(tokens), continues, min_tokens, max_tokens, rng)
    return tokenizer.decode_batch(chunks)


def write_splits(spool: Spool, tokenizer: Tokenizer, settings: BuildSettings, folder: Path) -> dict:
    """Cut all sets and write their Parquet shards under `folder`; returns the numbers for stats.json."""
    documents, tokens = len(spool.lengths), sum(spool.lengths)
    if tokens < settings.min_tokens * (1 + (settings.val_fraction > 0) + (settings.test_fraction > 0)):
        raise UserError(
            f"the text is too short: {tokens} tokens for chunks of at least {settings.min_tokens}; add text or lower `min_tokens`"
        )
    continues = tokenizer.continues_character()
    splits = assign_splits(spool, settings, continues)
    lengths = np.array(spool.lengths, dtype=np.int64)
    stats = {
        "documents": documents,
        "duplicates_removed": spool.duplicates,
        "chunks": 0,
        "tokens": 0,
        "bytes": spool.bytes,
        "tokens_per_byte": round(tokens / spool.bytes, 6),
        "vocab_size": tokenizer.vocab_size,
        "end_token": tokenizer.end_token,
        "splits": {},
    }
    for number, split in enumerate(SPLITS):
        chosen = splits == number
        if not chosen.any():  # its fraction is 0
            continue
        total = int(lengths[chosen].sum())
        if total < settings.min_tokens:
            raise UserError(
                f"{split} would hold only {total} tokens, fewer than one chunk: add documents or lower `min_tokens`"
            )
        rng = np.random.default_rng([settings.seed % 2**63, number])
        chunks = cut_chunks(spool.slices(chosen), total, continues, settings.min_tokens, settings.max_tokens, rng)
        sizes = write_shards(chunks, folder / split, split, tokenizer, total)
        edges = np.linspace(settings.min_tokens, settings.max_tokens, 17).round().astype(int)
        stats["splits"][split] = {
            "documents": int(chosen.sum()),
            "chunks": len(sizes),
            "tokens": int(sizes.sum()),
            "dropped_tokens": total - int(sizes.sum()),
            "length_histogram": {"edges": edges.tolist(), "chunks": np.histogram(sizes, edges)[0].tolist()},
        }
        stats["chunks"] += len(sizes)
        stats["tokens"] += int(sizes.sum())
    return stats


def write_shards(
    chunks: Iterator[np.ndarray], folder: Path, split: str, tokenizer: Tokenizer, total: int
) -> np.ndarray:
    """Write chunks as Parquet (columns text, tokens) and return their lengths."""
    schema = pyarrow.schema([("text", pyarrow.string()), ("tokens", pyarrow.list_(pyarrow.int32()))])
    folder.mkdir()
    sizes, writer, first = array("L"), None, 0  # `first`: of the open shard
    with progress_bar(total, f"write {split}", unit="token") as bar:
        for batch in batches(chunks, GROUP_CHUNKS):
            if writer is None:
                shard = len(list(folder.iterdir()))
                writer = parquet.ParquetWriter(folder / f"{split}-{shard:05d}.parquet", schema)
            columns = [tokenizer.decode_batch(batch), [chunk.astype(np.int32) for chunk in batch]]
            writer.write_table(pyarrow.table(columns, schema=schema))
            sizes.extend(map(len, batch))
            bar.update(sum(map(len, batch)))
            if sum(sizes[first:]) >= SHARD_TOKENS:
                close_shard(writer, sizes[first:])
                writer, first = None, len(sizes)
    if writer:
        close_shard(writer, sizes[first:])
    return np.array(sizes, dtype=np.int64)


def publish(partial: Path, output: Path, stats: dict) -> None:
    """Move the finished build into place; stats.json, which readers ask for, goes first when old and comes last when new."""
    (output / "stats.json").unlink(missing_ok=True)
    for name in SPLITS:
        shutil.rmtree(output / name, ignore_errors=True)
        if name in stats["splits"]:
            os.replace(partial / name, output / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        os.replace(partial / name, output / name)
    write_json(output / "stats.json", stats)
