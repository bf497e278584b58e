"""What a codebook page says of itself, and how a page is read out of an image."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from PIL import Image
from reedsolo import ReedSolomonError, RSCodec

from image_context.codecs.encoded import BLOCK
from image_context.codecs.equalize import module_centers, read_colors
from image_context.codecs.layout import (
    COLORS,
    HEADER_MODULE,
    MAX_PARITY,
    MODULES,
    Layout,
    calibration,
    palette,
    slots,
    to_blocks,
)
from image_context.codecs.rectify import candidates

PAYLOADS = ("tokens", "bytes", "zstd")
HEADER_BLOCKS = 6
HEADER_BYTES = HEADER_BLOCKS * (BLOCK // HEADER_MODULE) ** 2 // 8
FIELD_BYTES = (1, 1, 1, 1, 1, 2, 1, 2, 2, 3, 4, 2, 2)
HEADER_CODER = RSCodec(HEADER_BYTES - sum(FIELD_BYTES) - 2)
MAGIC = 0xC5
PATIENCE = 6  # ways to see a page that have a header and no valid data, before the best of them has to do


@dataclass(frozen=True)
class Header:
    """What a page says of itself."""

    layout: Layout
    fiducials: bool
    payload: str
    vocabulary: int  # fingerprint of the tokenizer, 0 without one
    page: int
    pages: int
    symbols: int  # on this page
    check: int  # CRC-32 of the page's data bytes
    document: int  # fingerprint of all pages' symbols

    def to_bytes(self) -> bytes:
        layout = self.layout
        values = (
            MAGIC, PAYLOADS.index(self.payload) * 2 + self.fiducials, layout.module_bits, layout.module, layout.symbol_bits,
            layout.per_block, layout.parity, self.page, self.pages, self.symbols, self.check, self.vocabulary, self.document,
        )  # fmt: skip
        body = b"".join(value.to_bytes(size, "big") for value, size in zip(values, FIELD_BYTES, strict=True))
        body += zlib.crc32(body).to_bytes(4, "big")[:2]
        return bytes(HEADER_CODER.encode(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Header | None":
        """The header, or None where these bytes hold none."""
        try:
            body = bytes(HEADER_CODER.decode(data)[0])
        except ReedSolomonError:
            return None
        if body[0] != MAGIC or zlib.crc32(body[:-2]).to_bytes(4, "big")[:2] != body[-2:]:
            return None
        ends = accumulate(FIELD_BYTES)
        values = [int.from_bytes(body[end - size : end], "big") for end, size in zip(ends, FIELD_BYTES)]
        _, kind, module_bits, module, bits, per_block, parity, page, pages, symbols, check, vocabulary, document = (
            values
        )
        known = kind >> 1 < len(PAYLOADS) and 1 << module_bits in COLORS and module in MODULES and parity <= MAX_PARITY
        if not known or not bits * per_block or page >= pages:
            return None  # a header that this codec never writes
        layout = Layout(1 << module_bits, module, bits, per_block, parity)
        return cls(layout, bool(kind & 1), PAYLOADS[kind >> 1], vocabulary, page, pages, symbols, check, document)


def read_page(image: Image.Image) -> tuple[Header, np.ndarray, np.ndarray] | None:
    """Header, symbols (n,) and which of them are valid (n,) of one page, or None if there is none in the image."""
    best, tried = None, 0
    for pixels, fiducials in candidates(image.convert("RGB"), lambda rows, fid: read_header(rows, fid) is not None):
        header = read_header(pixels, fiducials)
        if header is None or header.fiducials != fiducials:
            continue
        for symbols, valid in read_data(pixels, header):
            if valid.all():
                return header, symbols, valid
            if best is None or valid.sum() > best[2].sum():
                best = header, symbols, valid
        tried += 1
        if tried == PATIENCE:
            break
    return best


def read_header(pixels: np.ndarray, fiducials: bool) -> Header | None:
    """The header of a page (H, W, 3) whose sides are multiples of 28 and whose blocks lie where they were drawn."""
    height, width = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    places = slots(height, width, fiducials)[:HEADER_BLOCKS]
    if len(places) < HEADER_BLOCKS:
        return None
    light = module_centers(to_blocks(pixels)[places], HEADER_MODULE).mean(-1)
    bits = light > (light.min() + light.max()) / 2
    return Header.from_bytes(np.packbits(bits.reshape(-1)[: HEADER_BYTES * 8]).tobytes())


def read_data(pixels: np.ndarray, header: Header) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Symbols (n,) and which are valid (n,), from ever more patient readings until one is valid."""
    layout = header.layout
    blocks = slots(pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK, header.fiducials)
    start = HEADER_BLOCKS + layout.calibration_blocks
    count = layout.data_blocks(header.symbols)
    if count == 0:
        yield np.zeros(0, np.int64), np.ones(0, bool)
        return
    stop = start + count + layout.parity_blocks(count)
    if stop > len(blocks):
        return
    known = calibration(layout.colors)
    for modules in read_colors(
        pixels, blocks[HEADER_BLOCKS:start], known, blocks[start:stop], layout.module, palette(layout.colors)
    ):
        data = layout.from_modules(modules[:count], layout.block_bytes)
        failed = np.full(data.shape, zlib.crc32(np.ascontiguousarray(data).tobytes()) != header.check)
        if failed.any() and layout.parity:
            data, failed = layout.correct(data, layout.from_modules(modules[count:], layout.capacity // 8))
            if not failed.any():
                failed[:] = zlib.crc32(data.tobytes()) != header.check
        yield layout.unpack(data)[: header.symbols], ~layout.affected(failed)[: header.symbols]
