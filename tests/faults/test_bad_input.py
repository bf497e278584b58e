"""Files that were damaged at random: every loader reads them or refuses them in one line, soon, and nothing else happens.

./test.sh -m faults        # CASES=10000 over all loaders
"""

import argparse
import gzip
import json
import os
import random
import signal
import traceback

import numpy as np
import pyarrow as pa
import pytest
import torch
from backports import zstd
from PIL import Image
from pyarrow import parquet

from corpus.documents import documents, find_sources
from corpus.pairs import open_pairs
from corpus.tokenizer import load_tokenizer
from image_context.config import load_config
from image_context.dataset import read_records
from image_context.run_exp import read_results
from kit.errors import UserError
from kit.runlog import read_log
from kit.textfile import read_text
from picture import load_image
from pretrained import RELEASED, load_pretrained
from tests.conftest import sentences
from tokcom import inference as tokcom
from vit_cifar10.dataset import load_split, read_image
from vit_cifar10.pretrained import load_pretrained as load_vit

CASES = int(os.environ.get("CASES", "10000"))
LIMIT = 10  # seconds for a file
CPU = torch.device("cpu")
pytestmark = pytest.mark.faults


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """`raw` cut, flipped, overwritten, repeated, or something else altogether."""
    at, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    kind = rng.randrange(9)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + bytes(end - at) + raw[end:]
    if kind == 2:
        return raw[:at] + rng.randbytes(rng.randrange(1, 64)) + raw[at:]
    if kind == 3:
        return raw[:at] + raw[end:]
    if kind == 4:
        return rng.randbytes(rng.randrange(200))
    if kind == 5:
        return rng.choice(
            [
                b"",
                b"\0" * 999,
                b"\xff\xfe",
                b"[" * 50_000,
                b'{"a":' * 50_000,
                b"PK\x03\x04",
                b"\x89PNG\r\n\x1a\n",
                b"null",
                b"\xed\xa0\x80",
            ]
        )
    changed = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def read_documents(path) -> None:
    for source in find_sources([path]):
        for document in documents(source):
            for _ in document.pieces():
                pass


@pytest.fixture(scope="module")
def originals(trained, tokcom_checkpoint, vit_checkpoint, tmp_path_factory):
    """name -> (a good file, what reads it)."""
    folder = tmp_path_factory.mktemp("originals")
    text = sentences(3, 60)
    rows = [{"text": sentences(seed, 3)} for seed in range(20)]
    pairs = [{"prompt": f"{a} + 1 =", "answer": str(a + 1)} for a in range(60)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {
        "text.txt": text.encode(), "chinese.txt": "话说天下大势，分久必合，合久必分。".encode("gb18030") * 40, "rows.jsonl": lines,
        "rows.jsonl.gz": gzip.compress(lines), "rows.jsonl.zst": zstd.compress(lines), "pairs.jsonl": "".join(json.dumps(p) + "\n" for p in pairs).encode(),
        "log.jsonl": "".join(json.dumps({"step": i, "loss": 1 / (i + 1)}) + "\n" for i in range(30)).encode(),
        "results.jsonl": "".join(json.dumps({"id": f"q{i}", "codec": "text", "error": None}) + "\n" for i in range(9)).encode(),
        "records.jsonl": b"", "settings.yaml": open("image_context/configs/default.yaml", "rb").read(),
    }  # fmt: skip
    sample = {"task": "random", "length": 3, "document": "a b c", "question": "?", "answer": "a b c", "seed": 0}
    record = {"id": "x", "codec": "text", "augmentation": "clean", "sample": sample, "images": [], "text": "a b c"}
    files["records.jsonl"] = (json.dumps(record) + "\n").encode() * 5
    for name, content in files.items():
        (folder / name).write_bytes(content)
    parquet.write_table(pa.table({"text": [row["text"] for row in rows]}), folder / "rows.parquet")
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    Image.fromarray(noise).resize((64, 64)).save(folder / "picture.jpg")
    for split in ("train", "test"):
        np.savez(folder / f"cifar10_{split}.npz", images=np.repeat(noise[None], 20, 0), labels=np.arange(20) % 10)
    vae = tokcom.load_checkpoint(tokcom_checkpoint)[0]
    latents = tokcom.encode(vae, torch.arange(40)[None] % 9)[0]
    torch.save({"latents": latents, "num_tokens": 40, "vae": tokcom.fingerprint(vae)}, folder / "latents.pt")
    tokenizer = load_pretrained(trained / "best_model.pth", CPU).tokenizer
    (folder / "tok").mkdir()
    tokenizer.save(folder / "tok" / "tokenizer.json")

    def read_latents(path):
        tokcom.read_latents(argparse.Namespace(latents=path, checkpoint="x"), vae)

    return {
        "checkpoint of train.py": (trained / "best_model.pth", lambda path: load_pretrained(path, CPU)),
        "released checkpoint": (RELEASED / "english.safetensors", lambda path: load_pretrained(path, CPU)),
        "checkpoint of tokcom": (tokcom_checkpoint, tokcom.load_checkpoint),
        "checkpoint of vit_cifar10": (vit_checkpoint, lambda path: load_vit(path, CPU)),
        "latents": (folder / "latents.pt", read_latents), "tokenizer.json": (folder / "tok" / "tokenizer.json", load_tokenizer),
        "text": (folder / "text.txt", read_documents), "text of another encoding": (folder / "chinese.txt", read_documents),
        "text in UTF-8": (folder / "text.txt", read_text), "JSONL": (folder / "rows.jsonl", read_documents),
        "JSONL, gzip": (folder / "rows.jsonl.gz", read_documents), "JSONL, zstd": (folder / "rows.jsonl.zst", read_documents),
        "Parquet": (folder / "rows.parquet", read_documents), "pairs": (folder / "pairs.jsonl", lambda path: open_pairs(str(path), 64, vocab_size=300)),
        "log.jsonl": (folder / "log.jsonl", read_log), "results.jsonl": (folder / "results.jsonl", read_results),
        "records.jsonl": (folder / "records.jsonl", read_records), "YAML": (folder / "settings.yaml", load_config),
        "token picture": (folder / "picture.png", lambda path: load_image(path, 16)), "PNG": (folder / "picture.png", read_image),
        "JPEG": (folder / "picture.jpg", read_image), "npz": (folder / "cifar10_test.npz", lambda path: load_split(str(path.parent), "test", 16)),
    }  # fmt: skip


NAMES = (
    "checkpoint of train.py", "released checkpoint", "checkpoint of tokcom", "checkpoint of vit_cifar10", "latents", "tokenizer.json", "text",
    "text of another encoding", "text in UTF-8", "JSONL", "JSONL, gzip", "JSONL, zstd", "Parquet", "pairs", "log.jsonl", "results.jsonl",
    "records.jsonl", "YAML", "token picture", "PNG", "JPEG", "npz",
)  # fmt: skip
SLOW = {"released checkpoint": 0.1, "pairs": 0.2}  # fraction of the cases that others have


class TookTooLong(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused(originals, record, tmp_path, name):
    path, reader = originals[name]
    reader(path)
    raw, rng = path.read_bytes(), random.Random(name)
    count = max(1, round(CASES / (len(NAMES) - 2) * SLOW.get(name, 1.0)))
    place = tmp_path / path.name
    tracebacks, hangs = [], 0

    def late(*_):
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, late)
    try:
        for case in range(count):
            place.write_bytes(damaged(raw, rng))
            signal.alarm(LIMIT)
            try:
                reader(place)
            except UserError:
                pass
            except TookTooLong:
                hangs += 1
            except Exception:
                tracebacks.append(f"case {case}: {traceback.format_exc(limit=-3)}")
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    record("bad_inputs", name, tried=count, tracebacks=len(tracebacks), hangs=hangs)
    assert not hangs and not tracebacks, "\n".join(tracebacks[:3])
