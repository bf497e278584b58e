"""Shards open by their footers, whatever wrote them, and give the chunks that were written."""

import pickle
import subprocess
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from corpus import shards
from corpus.chunks import open_built
from kit.errors import UserError
from tests.runs import ROOT


def write(path, chunks, group=4, lengths=None):
    """A shard as the builder writes it; without `lengths` as others do."""
    path.parent.mkdir(exist_ok=True)
    schema = pyarrow.schema([("text", pyarrow.string()), ("tokens", pyarrow.list_(pyarrow.int32()))])
    writer = parquet.ParquetWriter(path, schema)
    for i in range(0, len(chunks), group):
        part = chunks[i : i + group]
        writer.write_table(pyarrow.table([["x"] * len(part), part], schema=schema))
    if lengths is None:
        writer.close()
    else:
        shards.close_shard(writer, lengths)


@pytest.fixture
def chunks():
    rng = np.random.default_rng(0)
    return [rng.integers(5, 300, n, dtype=np.int32) for n in rng.integers(1, 40, 103)]


@pytest.mark.parametrize("ours", [True, False])
def test_chunks_of_several_shards_come_back_in_any_order(chunks, tmp_path, ours, monkeypatch):
    for number, part in enumerate((chunks[:50], chunks[50:51], chunks[51:])):
        write(tmp_path / "train" / f"{number}.parquet", part, lengths=[len(c) for c in part] if ours else None)
    monkeypatch.setattr(shards, "CACHE_BYTES", 1000)  # a few row groups
    opened = open_built(tmp_path / "train")
    assert opened.lengths.tolist() == [len(c) for c in chunks] and len(opened) == 103
    for index in np.random.default_rng(1).permutation(103):
        assert np.array_equal(opened[index], chunks[index])
    assert np.array_equal(opened[-1], chunks[-1])
    assert opened._recent_bytes <= 1000
    copy = pickle.loads(pickle.dumps(opened))  # as a spawned loader process gets it
    assert np.array_equal(copy[77], chunks[77])
    with pytest.raises(IndexError):
        opened[103]
    opened.check(40, 300, "img_size")
    with pytest.raises(UserError, match="outside the vocabulary of 299"):
        opened.check(40, 299, "img_size")


def test_a_build_is_opened_without_reading_its_tokens(data, monkeypatch):
    expected = [len(chunk) for chunk in open_built(data / "train")]
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", lambda *_, **__: pytest.fail("tokens were read"))
    opened = open_built(data / "train")
    opened.check(64, 300, "img_size")
    assert opened.lengths.tolist() == expected


def test_folds_hold_each_chunk_once(data):
    opened = open_built(data / "train")
    found = opened.folds(3)
    for number, fold in enumerate(found):
        mine = [i for i in range(len(opened)) if opened.fold_of(i, 3) == number]
        pieces = [piece for tokens, first in fold for piece in np.split(tokens, first[1:])]
        assert len(pieces) == len(mine) and all(np.array_equal(a, opened[b]) for a, b in zip(pieces, mine))
    few = opened.folds(2, limit=64 * 20)
    assert all(20 <= len(tokens) <= 20 + 64 for fold in few for tokens, _ in fold)


@pytest.mark.parametrize(
    "column, message",
    [
        (pyarrow.array([[1.5], [2.0]]), "not lists of integers"),
        (pyarrow.array([[[1]], [[2]]]), "not lists of integers"),
        (pyarrow.array(["a", "b"]), "not lists of integers"),
        (pyarrow.array([[1, 2], None], pyarrow.list_(pyarrow.int32())), "holds nulls"),
        (pyarrow.array([[1, 2], [None]], pyarrow.list_(pyarrow.int32())), "holds nulls"),
    ],
)
def test_columns_that_are_no_tokens_are_refused(column, message, tmp_path):
    (tmp_path / "train").mkdir()
    parquet.write_table(pyarrow.table({"tokens": column}), tmp_path / "train" / "a.parquet")
    with pytest.raises(UserError, match=message):
        open_built(tmp_path / "train")


def test_a_footer_that_does_not_fit_and_a_damaged_shard_are_refused(chunks, tmp_path):
    write(tmp_path / "a" / "a.parquet", chunks, lengths=[3, 4])
    with pytest.raises(UserError, match="names 2 lengths for 103 chunks"):
        open_built(tmp_path / "a")
    (tmp_path / "a" / "a.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(UserError, match="cannot read the Parquet shards"):
        open_built(tmp_path / "a")


OPEN = """
import sys, time
from pathlib import Path
from corpus.chunks import LengthBuckets, open_built
start = time.time()
chunks = open_built(Path(sys.argv[1]))
chunks.check(4096, 4096, "img_size")
first = next(LengthBuckets(chunks.lengths, 32, 0).batches())
assert len(chunks[first[0]]) == chunks.lengths[first[0]]
seconds = time.time() - start
status = Path("/proc/self/status").read_text()  # getrusage's peak is the parent's, where that was larger
print(seconds, 1024 * int(status.split("VmHWM:")[1].split()[0]), chunks.lengths.sum())
"""


def test_a_hundred_gigabytes_open_in_seconds(tmp_path):
    """One shard of the usual size under many names."""
    rng = np.random.default_rng(0)
    chunks = [rng.integers(4096, size=n, dtype=np.int32) for n in rng.integers(256, 4097, 7700)]
    write(tmp_path / "train" / "0.parquet", chunks, shards.GROUP_CHUNKS, [len(c) for c in chunks])
    size = (tmp_path / "train" / "0.parquet").stat().st_size
    text = 4 * sum(map(len, chunks)) / 2  # that the text column would take, compressed
    copies = int(100e9 / (size + text))
    for number in range(1, copies):
        (tmp_path / "train" / f"{number}.parquet").symlink_to("0.parquet")
    command = [sys.executable, "-c", OPEN, str(tmp_path / "train")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    seconds, peak, tokens = map(float, result.stdout.split())
    assert tokens == copies * sum(map(len, chunks)) > 2e10
    assert seconds < 20 and peak < 2e9, (seconds, peak)
