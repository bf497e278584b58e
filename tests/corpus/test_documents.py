"""Files of every encoding and packing become the same documents; what is not text is refused by name."""

import gzip
import json

import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet

from corpus.documents import cut_pieces, documents, find_sources, hub_documents, python_sources
from kit.errors import UserError

CHINESE = (
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。这是一个我们的故事，有人来到这里，他说了不少的话。\n"
    * 40
)
TRADITIONAL = (
    "這是一個我們的故事，有人來到這裡，他說了不少的話。那時候的人都知道，他們為了生活，一個一個地來到城裡。\n" * 40
)


def read(path, **options):
    return ["".join(d.pieces()) for source in find_sources([path]) for d in documents(source, **options)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"])
def test_chinese_and_english_in_every_encoding(tmp_path, encoding):
    text = "Chapter 1\n" + CHINESE
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read(tmp_path) == [text]


def test_big5_is_told_from_gb18030(tmp_path):
    (tmp_path / "a.txt").write_bytes(TRADITIONAL.encode("big5"))
    assert read(tmp_path) == [TRADITIONAL]


@pytest.mark.parametrize("novel", ["honglou_meng", "sanguo_yanyi", "shuihu_zhuan", "xiyou_ji"])
def test_real_novels_in_gb18030(shared, tmp_path, novel):
    text = (shared / "zh_novels" / f"{novel}_simplified.txt").read_text(encoding="utf-8")
    (tmp_path / "a.txt").write_bytes(text.encode("gb18030"))
    assert read(tmp_path) == [text]


def test_line_ends_are_normalized_and_empty_documents_dropped(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    (tmp_path / "b.txt").write_bytes(b" \r\n\n")
    (tmp_path / "c.txt").write_bytes(b"")
    assert read(tmp_path) == ["one\ntwo\nthree\n"]


def test_packed_files_and_rows(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed by gzip"))
    (tmp_path / "b.txt.zst").write_bytes(zstd.compress(b"packed by zstd"))
    rows = [{"text": "a row"}, {"prompt": "what?", "answer": "that."}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    parquet.write_table(pyarrow.table({"text": ["from parquet", " "]}), tmp_path / "d.parquet")
    (tmp_path / "e.jpg").write_bytes(b"\xff\xd8")
    assert read(tmp_path) == ["packed by gzip", "packed by zstd", "a row", "what?\nthat.", "from parquet"]


def test_pieces_make_the_text_again_and_stay_small():
    text = CHINESE * 30 + "x" * 5000 + "\n  indented\n\n\nend"
    for blocks in ([text], [text[i : i + 777] for i in range(0, len(text), 777)]):
        pieces = list(cut_pieces(iter(blocks), 1000))
        assert "".join(pieces) == text and max(map(len, pieces)) <= 2000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", bytes(range(256)) * 50, "binary file"),
        ("a.txt", b"good text\n" * 200_000 + b"\0\0\0", "binary file"),
        ("a.txt", "café au lait, très bien".encode("latin-1"), "not text in utf-8"),
        ("a.txt", CHINESE.encode()[:1000] + b"\xff" + CHINESE.encode(), "not text in utf-8"),
        ("a.txt.gz", gzip.compress(b"text" * 10000, mtime=0)[:-20], "damaged archive"),
        (
            "a.txt.gz",
            gzip.compress(bytes(range(32, 127)) * 300, mtime=0)[:60] + b"zzzzzzzzzzzzzzzzzzzz",
            "damaged archive",
        ),
        ("a.txt.zst", b"no zstd", "damaged archive"),
        ("a.txt.zst", zstd.compress(bytes(range(32, 127)) * 9000)[:-20], "damaged archive"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2"),
        ("a.jsonl", b'{"body": "x"}\n', "line 1"),
        ("a.jsonl", b"[1, 2]\n", "line 1"),
        ("a.parquet", b"PAR1 no", "no readable Parquet"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path)
    assert name in str(caught.value)


def test_a_named_encoding_is_used(tmp_path):
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    assert read(tmp_path, encoding="latin-1") == ["café"]
    with pytest.raises(UserError, match="unknown `encoding`"):
        read(tmp_path, encoding="klingon")


def test_missing_and_textless_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        find_sources([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"no \.txt"):
        find_sources([tmp_path])


def test_python_brings_several_megabytes_of_text():
    sources = python_sources()
    assert sum(s.path.stat().st_size for s in sources) > 5e6
    assert any("pydoc_data" in s.name for s in sources)


def test_a_dataset_is_streamed_through_the_datasets_library(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": f"document {i}"}) for i in range(5)))
    found = ["".join(d.pieces()) for d in hub_documents(str(tmp_path), None, "train", "text")]
    assert found == [f"document {i}" for i in range(5)]
    with pytest.raises(UserError, match="no text column 'body'"):
        list(hub_documents(str(tmp_path), None, "train", "body"))
    with pytest.raises(UserError, match="cannot open dataset"):
        list(hub_documents(str(tmp_path / "absent"), None, "train", "text"))
