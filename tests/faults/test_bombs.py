"""Small files that unpack to large ones are refused by what their headers say, in little memory."""

import gzip
import resource
import struct
import subprocess
import sys
import zlib

import pytest
from backports import zstd

from tests.runs import ROOT


def png_of(width: int, height: int) -> bytes:
    """A PNG of one color, of any size, in a few kilobytes or megabytes."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row, body = zlib.compressobj(9), bytes(1 + width // 8 + 1), b""
    for _ in range(height):
        body += packer.compress(row)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", body + packer.flush()) + part(b"IEND", b"")


LINE = b'{"text": "' + b"a" * 2**29 + b'"}\n'
BOMBS = {
    "token picture": ("bomb.png", lambda: png_of(30_000, 30_000), ["inference.py", "--mode", "decode", "--image"], "pixels"),
    "photograph": ("bomb.png", lambda: png_of(30_000, 30_000), ["-m", "vit_cifar10.predict", "--checkpoint", "{vit}"], "pixels"),
    "page": ("bomb.png", lambda: png_of(30_000, 30_000), ["-m", "image_context.convert", "decode", "--codec", "codebook", "--input"], "pixel"),
    "JSONL, zstd": ("bomb.jsonl.zst", lambda: zstd.compress(LINE), ["build_pretrain_data.py", "--output_dir", "{out}", "--input"], "longer than"),
    "JSONL, gzip": ("bomb.jsonl.gz", lambda: gzip.compress(LINE, 1), ["build_pretrain_data.py", "--output_dir", "{out}", "--input"], "longer than"),
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name, vit_checkpoint, tmp_path):
    file, content, command, told = BOMBS[name]
    (tmp_path / file).write_bytes(content())
    command = [part.format(vit=vit_checkpoint, out=tmp_path / "out") for part in command]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    done = subprocess.run(
        [sys.executable, *command, tmp_path / file], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and told in done.stderr, done.stderr[-500:]
    assert max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) < 2e6  # kilobytes
