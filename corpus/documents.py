"""Text from files and folders: find the sources, tell their encoding, hand out documents piece by piece.

A document is one `.txt` file, or one row of a `.jsonl` or `.parquet` file; `.gz` and `.zst` are opened on the way.
A file of any size is streamed: memory holds one piece of it.
"""

import codecs
import gzip
import hashlib
import io
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backports import zstd

from kit.errors import UserError

TEXT_SUFFIXES = (".txt", ".text")
ROW_SUFFIXES = (".jsonl", ".parquet")
MAX_LINE = 2**27  # characters of a row of JSONL; a packed file may unpack to a line without end
PACKED_SUFFIXES = (".gz", ".zst")
PIECE = 1 << 16  # characters
_BLOCK = 1 << 20  # characters read from disk at once
_SAMPLE = 1 << 20  # bytes looked at to guess an encoding

# The commonest characters of running Chinese in both scripts: real text is full of them, misread bytes are not.
_COMMON = frozenset(
    "，。、的一是了不我人在有他这個个来來上大到说說们們为為子和你地出道也时時年得就那要下以生会會自着著去之过過后後"
)
_PIECE_ENDS = (re.compile(r"\S\n(?=\S)"), re.compile(r"\n(?=[^\n])"))


@dataclass(frozen=True)
class Source:
    """A file of text and how to read it. `kind`: text, jsonl, parquet."""

    path: Path
    name: str
    kind: str


@dataclass(frozen=True)
class Document:
    """One document: `digest` (16 bytes) of its normalized text, and `pieces()`, that text in order.

    Pieces end, where the text allows, after a line break between two words, which no tokenizer in use merges across.
    """

    digest: bytes
    pieces: Callable[[], Iterator[str]]


def find_sources(paths: Iterable[str | Path]) -> list[Source]:
    """The text files among `paths` (files and folders, searched in name order), each once.

    A file that is named is read whatever its suffix (an unknown one as text); in a folder, other suffixes are passed
    over. Raises UserError for a path that is missing and for a folder without text.
    """
    found = {}
    for path in map(Path, paths):
        if path.is_file():
            members = [path]
        elif path.is_dir():
            members = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) and not _hidden(p, path))
            if not members:
                raise UserError(f"no .txt, .jsonl or .parquet file (or such a .gz, .zst) under {path}")
        else:
            raise UserError(f"no such file or folder: {path}")
        for member in members:
            name = member.relative_to(path).as_posix() if path.is_dir() else member.name
            found.setdefault(member.resolve(), Source(member, name, _kind(member) or "text"))
    return list(found.values())


def python_sources() -> list[Source]:
    """The text that every CPython carries: its library's sources and, in `pydoc_data`, the language reference."""
    library = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    files = sorted(p for p in library.rglob("*.py") if not left_out & set(p.relative_to(library).parts))
    return [Source(p, p.relative_to(library).as_posix(), "text") for p in files]


def documents(source: Source, encoding: str | None = None, text_column: str = "text") -> Iterator[Document]:
    """The documents of one source, line ends normalized to \\n, empty ones left out.

    Raises UserError for bytes that are not text, a broken archive, a malformed row.
    """
    if source.kind == "text":
        encoding, digest, empty = _survey(source.path, encoding)
        if not empty:
            yield Document(digest, lambda: cut_pieces(_read_text(source.path, encoding)))
        return
    for text in _row_texts(source, text_column):
        document = document_from_text(text)
        if document:
            yield document


def document_from_text(text: str) -> Document | None:
    """A document held in memory, or None if there is nothing but white space in it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        return None
    data = text.encode("utf-8", "replace")  # JSON can spell lone surrogates, which no text holds
    text = data.decode()
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Document(digest, lambda: cut_pieces(iter([text])))


def cut_pieces(blocks: Iterator[str], size: int = PIECE) -> Iterator[str]:
    """The same text in pieces of about `size` characters, cut where it does no harm."""
    rest, more = "", True
    while more:
        block = next(blocks, None)
        more = block is not None
        rest += block or ""
        start = 0
        while len(rest) - start > 2 * size:
            end = _piece_end(rest, start + size, size // 2)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _piece_end(text: str, at: int, reach: int) -> int:
    """The best place to cut `text` between `at` and `at + reach`."""
    for pattern in _PIECE_ENDS:
        if match := pattern.search(text, at, at + reach):
            return match.end()
    return at


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# Files


def _kind(path: Path) -> str | None:
    packed = path.suffix.lower() in PACKED_SUFFIXES
    suffix = (Path(path.stem).suffix if packed else path.suffix).lower()
    if suffix in TEXT_SUFFIXES:
        return "text"
    if suffix == ".parquet" and packed:
        return None  # Parquet needs random access and is compressed already
    return suffix[1:] if suffix in ROW_SUFFIXES else None


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _open(path: Path):
    try:
        if path.suffix.lower() == ".gz":
            return gzip.open(path, "rb")
        if path.suffix.lower() == ".zst":
            return zstd.open(path, "rb")
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError)


def _read_text(path: Path, encoding: str) -> Iterator[str]:
    """Blocks of decoded text with \\n line ends. Raises UnicodeDecodeError where the encoding does not hold."""
    with _open(path) as raw, io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline=None) as text:
        while block := text.read(_BLOCK):
            yield block


def _survey(path: Path, encoding: str | None) -> tuple[str, bytes, bool]:
    """Read a text file once: the encoding under which all of it decodes, the digest, whether it is empty."""
    try:
        if encoding is None:
            with _open(path) as raw:
                candidates = _candidates(raw.read(_SAMPLE), path)
        else:
            candidates = [encoding]
        for candidate in candidates:
            digest, empty = hashlib.blake2b(digest_size=16), True
            try:
                for block in _read_text(path, candidate):
                    if "\0" in block:
                        raise UserError(f"{path} is a binary file (it holds NUL characters): remove it from the input")
                    digest.update(block.encode())
                    empty = empty and not block.strip()
                return candidate, digest.digest(), empty
            except UnicodeError:
                continue
    except _BROKEN as error:
        raise UserError(f"{path} is a damaged archive: {error}") from error
    except LookupError:
        raise UserError(f"unknown `encoding` {encoding!r}") from None
    tried = ", ".join(candidates)
    raise UserError(f"{path} is not text in {tried}: convert it, name its `encoding`, or remove it from the input")


def _candidates(sample: bytes, path: Path) -> list[str]:
    """Encodings to try on a file that begins with `sample`, likeliest first."""
    if sample.startswith(codecs.BOM_UTF8):
        return ["utf-8-sig"]
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ["utf-16"]
    zeros = sample.count(0)
    if zeros:
        odd = sample[1::2].count(0)  # ASCII in UTF-16-LE has its zeros at odd places
        wide = "utf-16-le" if 2 * odd > zeros else "utf-16-be"
        text = sample[: len(sample) // 2 * 2].decode(wide, "replace")
        if sum(c.isprintable() or c.isspace() for c in text) > 0.98 * len(text):
            return [wide]
        raise UserError(f"{path} is a binary file (it holds NUL bytes): remove it from the input")
    control = len(sample.translate(None, bytes(range(7, 14)) + b"\x1b" + bytes(range(32, 256))))
    if control > len(sample) // 200:
        raise UserError(f"{path} is a binary file (it is full of control bytes): remove it from the input")
    chinese = sorted(("gb18030", "big5"), key=lambda name: _familiarity(sample, name), reverse=True)
    return ["utf-8"] + [name for name in chinese if _familiarity(sample, name) > 0.08]


def _familiarity(sample: bytes, encoding: str) -> float:
    """Share of the non-ASCII characters of `sample`, read in `encoding`, that are among the commonest of Chinese."""
    wide = [c for c in sample.decode(encoding, "replace") if ord(c) > 127]
    return sum(c in _COMMON for c in wide) / len(wide) if wide else 0.0


# ----------------------------------------------------------------------------------------------------------------------
# Rows


def row_text(row: dict, text_column: str = "text") -> str | None:
    """The text of a row: its text column, or prompt and answer on lines of their own; "" for a null, None if it has neither."""
    if text_column in row and (row[text_column] is None or isinstance(row[text_column], str)):
        return row[text_column] or ""
    if isinstance(row.get("prompt"), str) and isinstance(row.get("answer"), str):
        return f"{row['prompt']}\n{row['answer']}"
    return None


def rows_of(source: Source, *columns: str) -> Iterator[tuple[str, dict]]:
    """Where each row of a .jsonl or .parquet file stands, and those of its `columns` that it has (of a .jsonl all).

    Raises UserError for a file of another kind, or one that cannot be read.
    """
    if source.kind == "text":
        raise UserError(f"{source.path} is no .jsonl or .parquet file")
    yield from _jsonl_rows(source.path) if source.kind == "jsonl" else _parquet_rows(source.path, columns)


def _row_texts(source: Source, text_column: str) -> Iterator[str]:
    for where, row in rows_of(source, text_column, "prompt", "answer"):
        text = row_text(row, text_column)
        if text is None:
            raise UserError(f'{where}: expected {{"{text_column}": …}} or {{"prompt": …, "answer": …}}')
        yield text


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict]]:
    number = 0
    try:
        with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE + 1), ""), 1):
                if len(line) > MAX_LINE:
                    raise UserError(
                        f"{path}, line {number}: longer than {MAX_LINE:,} characters, more than a document may have"
                    )
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: expected a JSON object")
                yield f"{path}, line {number}", row
    except (RecursionError, ValueError) as error:  # malformed JSON or UTF-8
        raise UserError(f"{path}, line {number}: not a JSON object in UTF-8 ({error})") from error
    except _BROKEN as error:
        raise UserError(f"{path} is a damaged archive: {error}") from error


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number, known = 0, [column for column in columns if column in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=256, columns=known):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a string that is not UTF-8 is a ValueError
        raise UserError(f"{path} is no readable Parquet file: {error}") from error


def hub_documents(name: str, config: str | None, split: str, text_column: str) -> Iterator[Document]:
    """Documents of a Hugging Face dataset (a name, or a local folder), streamed row by row."""
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the hub client raises its own family, ValueError, FileNotFoundError, connection errors
        raise UserError(f"cannot open dataset {name!r} (config {config!r}, split {split!r}): {error}") from error
    rows = iter(rows)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # a connection that breaks, a shard that is damaged
            raise UserError(f"reading dataset {name!r} failed: {error}") from error
        text = row_text(row, text_column)
        if text is None:
            raise UserError(f"dataset {name!r} has no text column {text_column!r}; its columns are {', '.join(row)}")
        document = document_from_text(text)
        if document:
            yield document


def size_on_disk(sources: Iterable[Source]) -> int:
    """Bytes of all sources as they lie on disk."""
    return sum(os.path.getsize(source.path) for source in sources)
