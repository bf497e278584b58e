"""All tokens of all documents of a corpus in one file on disk, with what is known of each document."""

import hashlib
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from corpus.documents import Document
from corpus.tokenizer import Tokenizer
from kit.runlog import progress_bar

BATCH_PIECES = 32  # pieces of 65,536 characters that are tokenized at once; two batches are in flight


class Spool:
    """Token ids of the kept documents, back to back on disk; in memory, for each, their number (`lengths`), a random number
    (`keys`), its digest and bytes, and after how many documents each source ended."""

    def __init__(self, folder: Path):
        self.path = folder / "tokens.uint32"
        self.lengths = array("Q")
        self.keys = array("Q")
        self.sizes = array("Q")
        self.digests = bytearray()
        self.source_ends = array("Q")
        self.duplicates = 0

    @property
    def bytes(self) -> int:
        return sum(self.sizes)

    def add(self, digest: bytes, key: int) -> None:
        """Begin a document."""
        self.digests += digest
        self.keys.append(key)
        self.lengths.append(0)
        self.sizes.append(0)

    def save(self) -> None:
        """Write everything but the tokens beside them."""
        names = ("lengths", "keys", "sizes", "source_ends")
        numbers = {name: np.array(getattr(self, name), np.uint64) for name in names}
        digests = np.array(self.digests, np.uint8)
        np.savez(self.path.with_suffix(".npz"), **numbers, digests=digests, duplicates=self.duplicates)

    @classmethod
    def load(cls, folder: Path) -> "Spool":
        spool = cls(folder)
        with np.load(spool.path.with_suffix(".npz")) as saved:
            for name in ("lengths", "keys", "sizes", "source_ends"):
                setattr(spool, name, array("Q", saved[name].tobytes()))
            spool.digests, spool.duplicates = bytearray(saved["digests"].tobytes()), int(saved["duplicates"])
        return spool

    def slices(self, chosen: np.ndarray, block: int = 1 << 20) -> Iterator[np.ndarray]:
        """Tokens of the documents flagged in `chosen` (bool per document), in order, at most `block` at a time."""
        ends = np.cumsum(np.frombuffer(self.lengths, dtype=np.uint64)).astype(np.int64)
        with open(self.path, "rb") as file:  # a map of it would hold every page that was read
            for index in np.flatnonzero(chosen):
                for start in range(int(ends[index] - self.lengths[index]), int(ends[index]), block):
                    file.seek(start * np.dtype(np.uint32).itemsize)
                    yield np.fromfile(file, np.uint32, min(block, int(ends[index]) - start))

    def cut_end(self, index: int, size: int, continues: np.ndarray) -> None:
        """Make the last `size` tokens of document `index`, and the rest of a split character, the document after it."""
        tokens = np.memmap(self.path, dtype=np.uint32, mode="r")
        end = sum(self.lengths[: index + 1])
        start = end - min(size, self.lengths[index])
        while continues[tokens[start]]:
            start -= 1
        self.lengths[index] -= end - start
        self.lengths.insert(index + 1, end - start)
        self.keys.insert(index + 1, 0)


def tokenize(
    documents: Callable[[Callable[[int], None]], Iterator[Document]],
    total: int | None,
    seed: int,
    tokenizer: Tokenizer,
    folder: Path,
) -> Spool:
    """Tokenize every document that was not seen before. Reading and writing run beside the tokenizing threads.

    `documents(advance)` gives them and calls `advance(bytes)` when a source of them is done; `total`: bytes of all, if known. `seed`
    decides their random numbers.
    """
    spool = Spool(folder)
    random_key = seed.to_bytes(8, "little", signed=True)
    seen = Seen(folder)
    end = np.array([tokenizer.end_id], dtype=np.uint32)

    def pieces(bar) -> Iterator[tuple[str, bool, bool]]:
        """(text, begins a document, ends it) of all documents that are new."""

        def source_done(size: int) -> None:
            bar.update(size)
            spool.source_ends.append(len(spool.lengths))

        for document in documents(source_done):
            if not seen.is_new(document.digest):
                spool.duplicates += 1
                continue
            key = hashlib.blake2b(document.digest, key=random_key, digest_size=8).digest()
            spool.add(document.digest, int.from_bytes(key, "little"))
            previous = None
            for number, piece in enumerate(document.pieces()):
                if previous is not None:
                    yield previous, number == 1, False
                previous = piece
            yield previous, number == 0, True

    with (
        progress_bar(total, "tokenize", unit="B") as bar,
        open(spool.path, "wb") as file,
        ThreadPoolExecutor(1) as thread,
    ):
        document = 0
        for batch, ids in _ahead(thread, batches(pieces(bar), BATCH_PIECES), tokenizer):
            for (text, _, ends), tokens in zip(batch, ids):
                spool.sizes[document] += len(text.encode())
                tokens = np.concatenate([tokens, end]) if ends else tokens
                file.write(tokens.tobytes())
                spool.lengths[document] += len(tokens)
                document += ends
    seen.close()
    return spool


class Seen:
    """Which documents were seen, on disk, so that memory does not grow with them."""

    def __init__(self, folder: Path):
        self.table = sqlite3.connect(folder / "seen.sqlite")
        self.table.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID"
        )

    def is_new(self, digest: bytes) -> bool:
        """Whether a digest comes for the first time."""
        return bool(self.table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount)

    def close(self) -> None:
        self.table.close()


def _ahead(thread: ThreadPoolExecutor, batches: Iterator[list], tokenizer: Tokenizer) -> Iterator[tuple[list, list]]:
    """Each batch with its ids, the next one being tokenized meanwhile."""
    waiting = None
    for batch in batches:
        future = thread.submit(
            tokenizer.encode_pieces, [text for text, _, _ in batch], [begins for _, begins, _ in batch]
        )
        if waiting:
            yield waiting[0], waiting[1].result()
        waiting = batch, future
    if waiting:
        yield waiting[0], waiting[1].result()


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one perhaps shorter."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
