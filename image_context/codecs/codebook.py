"""Our own two-dimensional color code: every 28x28 block carries its own symbols, so that one visual token carries them whole.

A page, in blocks and reading order: a header (black and white, 4-pixel cells, Reed-Solomon protected), a calibration of all
colors, data, parity. Block i of the data holds symbols i k ... i k + k - 1 and nothing of any other: what one visual token has to
say depends on one block alone, which is what a network can learn. Parity (Reed-Solomon over the data's bytes, interleaved) stands
in blocks of its own behind the data, and a reader that has no use for it may pass it over. With `frame="fiducials"` the four
corners are bull's-eyes, by which a scaled, turned or tilted page is found; `frame="none"` is data alone, closed by an end symbol,
and can be read only by a codec with the same options.
"""

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image
from reedsolo import ReedSolomonError, RSCodec

from image_context.codecs.encoded import BLOCK, MAX_SIDE, DamagedCode, Encoded, count_blocks, to_bytes
from image_context.codecs.equalize import cell_centers, read_colors
from image_context.codecs.rectify import BULLSEYE, candidates
from kit.errors import UserError
from kit.tokenizer import Tokenizer, load_tokenizer

COLORS = (2, 4, 8, 16, 64)
CELLS = (1, 2, 4, 7, 14, 28)
PAYLOADS = ("tokens", "bytes", "zstd")
FRAMES = ("none", "header", "fiducials")
HEADER_CELL = 4
HEADER_BLOCKS = 6
HEADER_BYTES = HEADER_BLOCKS * (BLOCK // HEADER_CELL) ** 2 // 8
MAGIC = 0xC5
SMALLEST = 4  # blocks of an image, below which the processor scales it up
SLIMMEST = 200  # times as high as wide, above which the processor refuses an image
CODEWORD = 255  # bytes of a Reed-Solomon codeword over GF(256)


def palette(colors: int) -> np.ndarray:
    """RGB (colors, 3) uint8: corners of the cube as far apart as they can be, or a lattice, neighbors one bit apart."""
    if colors == 4:
        return np.array([[0, 0, 0], [255, 255, 0], [255, 0, 255], [0, 255, 255]], np.uint8)
    bits = {2: (1, 1, 1), 8: (1, 1, 1), 16: (1, 2, 1), 64: (2, 2, 2)}[colors]  # 16: four levels of green, the brightest
    levels = {1: np.array([0, 255]), 2: np.array([0, 85, 255, 170])}  # Gray code: 0, 1, 3, 2 in rising order
    if colors == 2:
        return np.array([[0] * 3, [255] * 3], np.uint8)
    index = np.arange(colors)
    red, rest = index & (2 ** bits[0] - 1), index >> bits[0]
    green, blue = rest & (2 ** bits[1] - 1), rest >> bits[1]
    return np.stack([levels[b][c] for b, c in zip(bits, (red, green, blue))], axis=1).astype(np.uint8)


@dataclass(frozen=True)
class Layout:
    """How symbols of `symbol_bits` bits become blocks of cells."""

    colors: int
    cell: int
    symbol_bits: int
    per_block: int
    parity: int

    @property
    def cells(self) -> int:
        return (BLOCK // self.cell) ** 2

    @property
    def cell_bits(self) -> int:
        return self.colors.bit_length() - 1

    @property
    def room(self) -> int:
        """Bits that a block can hold."""
        return self.cells * self.cell_bits

    @property
    def block_bytes(self) -> int:
        """Bytes of a block's symbols, the last one padded: what parity is computed over."""
        return -(-self.per_block * self.symbol_bits // 8)

    @property
    def calibration_blocks(self) -> int:
        return 3 if self.colors == 64 else 1

    def data_blocks(self, symbols: int) -> int:
        return -(-symbols // self.per_block)

    def codewords(self, data_blocks: int) -> int:
        return -(-data_blocks * self.block_bytes // (CODEWORD - self.parity)) if self.parity else 0

    def parity_blocks(self, data_blocks: int) -> int:
        return -(-self.parity * self.codewords(data_blocks) // (self.room // 8)) if self.parity else 0

    def pack(self, symbols: np.ndarray) -> np.ndarray:
        """Bytes (blocks, block_bytes) of symbols (n,), missing ones 0."""
        blocks = self.data_blocks(len(symbols))
        padded = np.zeros(blocks * self.per_block, np.uint32)
        padded[: len(symbols)] = symbols
        shifts = np.arange(self.symbol_bits - 1, -1, -1, dtype=np.uint32)
        bits = ((padded[:, None] >> shifts) & 1).astype(np.uint8).reshape(blocks, self.per_block * self.symbol_bits)
        return np.packbits(bits, axis=1)

    def unpack(self, data: np.ndarray) -> np.ndarray:
        """Symbols (blocks * per_block,) of bytes (blocks, block_bytes)."""
        bits = np.unpackbits(data, axis=1)[:, : self.per_block * self.symbol_bits]
        weights = 1 << np.arange(self.symbol_bits - 1, -1, -1, dtype=np.int64)
        return bits.reshape(-1, self.symbol_bits) @ weights

    def to_cells(self, data: np.ndarray) -> np.ndarray:
        """Color numbers (blocks, cells) of bytes (blocks, n)."""
        bits = np.zeros((len(data), self.room), np.uint8)
        given = np.unpackbits(data, axis=1)[:, : self.room]
        bits[:, : given.shape[1]] = given
        weights = 1 << np.arange(self.cell_bits - 1, -1, -1)
        return bits.reshape(len(data), self.cells, self.cell_bits) @ weights

    def from_cells(self, cells: np.ndarray, count: int) -> np.ndarray:
        """Bytes (blocks, count) of color numbers (blocks, cells)."""
        shifts = np.arange(self.cell_bits - 1, -1, -1)
        bits = ((cells[:, :, None] >> shifts) & 1).astype(np.uint8).reshape(len(cells), -1)
        data = np.packbits(bits, axis=1)[:, :count]
        return np.pad(data, ((0, 0), (0, count - data.shape[1])))

    def add_parity(self, data: np.ndarray) -> np.ndarray:
        """Bytes (parity_blocks, room // 8) that protect the data's bytes. Codeword j holds bytes j, j + m, j + 2m ..."""
        m = self.codewords(len(data))
        coder, flat = RSCodec(self.parity), data.tobytes()
        parts = [coder.encode(flat[j::m])[-self.parity :] for j in range(m)]
        width = self.room // 8
        stream = bytes(byte for column in zip(*parts) for byte in column)
        return np.frombuffer(stream.ljust(self.parity_blocks(len(data)) * width, b"\0"), np.uint8).reshape(-1, width)

    def mend(self, data: np.ndarray, parity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mended bytes, whole (blocks,) bool) of read data and parity blocks."""
        m = self.codewords(len(data))
        coder, flat = RSCodec(self.parity), bytearray(data.tobytes())
        stream, failed = parity.tobytes()[: self.parity * m], np.zeros(len(flat), bool)
        for j in range(m):
            try:
                flat[j::m] = coder.decode(bytes(flat[j::m]) + stream[j::m])[0]
            except ReedSolomonError:
                failed[j::m] = True
        return np.frombuffer(bytes(flat), np.uint8).reshape(data.shape), ~failed.reshape(data.shape).any(1)


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
            (MAGIC, 1), (PAYLOADS.index(self.payload) * 2 + self.fiducials, 1), (layout.cell_bits, 1), (layout.cell, 1),
            (layout.symbol_bits, 1), (layout.per_block, 2), (layout.parity, 1), (self.page, 2), (self.pages, 2),
            (self.symbols, 3), (self.check, 4), (self.vocabulary, 2), (self.document, 2),
        )  # fmt: skip
        body = b"".join(value.to_bytes(size, "big") for value, size in values)
        body += zlib.crc32(body).to_bytes(4, "big")[:2]
        return bytes(RSCodec(HEADER_BYTES - len(body)).encode(body))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Header | None":
        """The header, or None where these bytes hold none."""
        sizes = (1, 1, 1, 1, 1, 2, 1, 2, 2, 3, 4, 2, 2)
        length = sum(sizes) + 2
        try:
            body = bytes(RSCodec(HEADER_BYTES - length).decode(data)[0])
        except ReedSolomonError:
            return None
        if body[0] != MAGIC or zlib.crc32(body[:-2]).to_bytes(4, "big")[:2] != body[-2:]:
            return None
        ends = np.cumsum(sizes).tolist()
        values = [int.from_bytes(body[end - size : end], "big") for end, size in zip(ends, sizes)]
        _, kind, cell_bits, cell, bits, per_block, parity, page, pages, symbols, check, vocabulary, document = values
        layout = Layout(1 << cell_bits, cell, bits, per_block, parity)
        return cls(layout, bool(kind & 1), PAYLOADS[kind >> 1], vocabulary, page, pages, symbols, check, document)


@dataclass(frozen=True)
class CodebookCodec:
    """A text as colored cells.

    `colors` 2, 4, 8, 16, 64; `cell` pixels on a side, a divisor of 28; `payload`: `tokens` (ids of `tokenizer`, a Tokenizer or
    where to load one), `bytes` (UTF-8), `zstd` (the same compressed: short, but nothing is local any more);
    `symbols_per_block` 0 = as many as fit; `parity` bytes of Reed-Solomon parity in each 255 (mends half as many wrong ones);
    `frame` none, header or fiducials; `max_side` blocks on a side of a page; `columns` blocks in a row, 0 = as many as rows (a
    single column is what a reader with rotary positions learns fastest). Raises UserError where these do not fit.
    """

    colors: int = 8
    cell: int = 4
    payload: str = "bytes"
    tokenizer: object = field(default=None, compare=False)
    symbols_per_block: int = 0
    parity: int = 0
    frame: str = "header"
    max_side: int = MAX_SIDE
    columns: int = 0

    name = "codebook"

    def __post_init__(self):
        for option, values in (("colors", COLORS), ("cell", CELLS), ("payload", PAYLOADS), ("frame", FRAMES)):
            if getattr(self, option) not in values:
                raise UserError(
                    f"codebook {option} {getattr(self, option)!r}: choose from {', '.join(map(str, values))}"
                )
        if self.payload == "tokens" and self.tokenizer is None:
            raise UserError("codebook payload tokens needs a tokenizer")
        if not 0 <= self.parity <= 128:
            raise UserError(f"codebook parity {self.parity}: need 0 to 128 bytes of 255")
        if self.parity and self.frame == "none":
            raise UserError("codebook parity needs a frame: a page without a header says nothing of it")
        if not 2 <= self.max_side <= 512:
            raise UserError(f"codebook max_side {self.max_side}: need 2 to 512 blocks")
        if not 0 <= self.columns <= self.max_side or (self.columns == 1 and self.frame == "fiducials"):
            raise UserError(f"codebook columns {self.columns}: need 0 to max_side, and 2 or more with fiducials")
        if self.columns and self.max_side > SLIMMEST * self.columns:
            raise UserError(
                f"codebook max_side {self.max_side}: with {self.columns} columns at most {SLIMMEST * self.columns}"
            )
        if not 0 <= self.symbols_per_block <= self.fitting:
            raise UserError(
                f"codebook symbols_per_block {self.symbols_per_block}: {self.fitting} symbols of {self.symbol_bits} bits fit "
                f"a block of {self.cell}-pixel cells in {self.colors} colors"
            )
        if not self.fitting:
            raise UserError(
                f"no symbol of {self.symbol_bits} bits fits a block of {self.cell}-pixel cells in {self.colors} colors: "
                "take smaller cells or more colors"
            )
        if self.blocks_per_page < 1:
            raise UserError(f"codebook max_side {self.max_side}: no room for data beside frame and parity")

    # ------------------------------------------------------------------------------------------------------------------
    # Sizes

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        if self.payload != "tokens":
            return None
        return self.tokenizer if isinstance(self.tokenizer, Tokenizer) else load_tokenizer(self.tokenizer)

    @property
    def alphabet(self) -> int:
        """Number of different symbols of the payload."""
        return self._tokenizer.vocab_size if self._tokenizer else 256

    @property
    def symbol_bits(self) -> int:
        return (self.alphabet if self.frame == "none" else self.alphabet - 1).bit_length()

    @property
    def fitting(self) -> int:
        """Symbols that fit one block."""
        return (BLOCK // self.cell) ** 2 * (self.colors.bit_length() - 1) // self.symbol_bits

    @cached_property
    def layout(self) -> Layout:
        return Layout(
            self.colors, self.cell, self.symbol_bits, self.symbols_per_block or self.fitting, self.parity
        )  # fmt: skip

    @property
    def capacity_bits(self) -> float:
        """Bits that one block, one visual token, can show."""
        return float(self.layout.room)

    @property
    def overhead(self) -> int:
        """Blocks of a page that carry neither data nor parity."""
        if self.frame == "none":
            return 0
        return HEADER_BLOCKS + self.layout.calibration_blocks + 4 * (self.frame == "fiducials")

    @cached_property
    def blocks_per_page(self) -> int:
        """Data blocks of a full page."""
        free = self.max_side * (self.columns or self.max_side) - self.overhead
        count = free * (CODEWORD - self.parity) // CODEWORD + 1
        while count > 0 and count + self.layout.parity_blocks(count) > free:
            count -= 1
        return count

    # ------------------------------------------------------------------------------------------------------------------
    # Writing

    def encode(self, text: str) -> Encoded:
        """Raises UserError for a text that the tokenizer does not carry exactly, or that takes more than 65,535 pages."""
        symbols = self.to_symbols(text)
        document = zlib.crc32(symbols.astype(np.uint32).tobytes()) & 0xFFFF
        if self.frame == "none":
            symbols = np.append(symbols, self.alphabet)
        size = self.blocks_per_page * self.layout.per_block
        parts = [symbols[at : at + size] for at in range(0, len(symbols), size)] or [symbols]
        if len(parts) > 0xFFFF:
            raise UserError(f"the text needs {len(parts)} codebook pages, and 65535 can be numbered: use smaller cells")
        return Encoded([self._draw(part, i, len(parts), document) for i, part in enumerate(parts)])

    def _draw(self, symbols: np.ndarray, page: int, pages: int, document: int) -> Image.Image:
        layout, data = self.layout, self.layout.pack(symbols)
        parts = [draw_cells(palette(self.colors)[layout.to_cells(data)])]
        if self.frame != "none":
            header = Header(
                layout, self.frame == "fiducials", self.payload, self._vocabulary(), page, pages, len(symbols),
                zlib.crc32(data.tobytes()), document,
            )  # fmt: skip
            bits = np.unpackbits(np.frombuffer(header.to_bytes(), np.uint8))
            bits = np.pad(bits, (0, -len(bits) % (BLOCK // HEADER_CELL) ** 2)).reshape(HEADER_BLOCKS, -1)
            parts = [draw_cells(palette(2)[bits]), draw_cells(palette(self.colors)[calibration(self.colors)]), *parts]
        if self.parity and len(data):
            parts.append(draw_cells(palette(self.colors)[layout.to_cells(layout.add_parity(data))]))
        blocks = np.concatenate(parts)
        corners = 4 * (self.frame == "fiducials")
        width = self.columns or max(2, math.ceil(math.sqrt(len(blocks) + corners)))
        height = max(SMALLEST // width, 2, -(-(len(blocks) + corners) // width))
        pixels = np.full((height * width, BLOCK, BLOCK, 3), 255, np.uint8)
        places = slots(height, width, corners > 0)
        pixels[places[: len(blocks)]] = blocks
        if corners:
            pixels[[0, width - 1, (height - 1) * width, height * width - 1]] = BULLSEYE[:, :, None]
        pixels = pixels.reshape(height, width, BLOCK, BLOCK, 3).transpose(0, 2, 1, 3, 4)
        return Image.fromarray(pixels.reshape(height * BLOCK, width * BLOCK, 3))

    def to_symbols(self, text: str) -> np.ndarray:
        """Symbols (n,) of a text."""
        if self._tokenizer:
            ids = self._tokenizer.encode(text)
            if self._tokenizer.decode(ids) != text:
                raise UserError("this tokenizer does not give the text back exactly: take codebook payload bytes")
            return ids.astype(np.uint32)
        data = to_bytes(text)
        if self.payload == "zstd":
            data = zstd().compress(data, 19)
        return np.frombuffer(data, np.uint8).astype(np.uint32)

    def _vocabulary(self) -> int:
        return zlib.crc32(self._tokenizer.to_json().encode()) & 0xFFFF if self._tokenizer else 0

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def decode(self, images: list[Image.Image], text: str = "") -> str:
        """The text of pages in any order. A page's header says how to read it, whatever this codec's own options.

        Raises DamagedCode if a page cannot be found, is missing or is damaged beyond what parity mends.
        """
        if self.frame == "none":
            return self._decode_bare(images)
        read = [page for page in (read_page(image) for image in images) if page]
        if not read:
            raise DamagedCode(f"no codebook page in {len(images)} images", lost=len(images))
        first = read[0][0]
        if any((h.document, h.pages) != (first.document, first.pages) for h, _, _ in read):
            raise DamagedCode("these images hold pages of several texts; pass those of one")
        if first.payload == "tokens" and first.vocabulary != self._vocabulary():
            raise UserError("these pages hold ids of another tokenizer than this codec's")
        pages = {header.page: (symbols, whole) for header, symbols, whole in read}
        missing = [i for i in range(first.pages) if i not in pages]
        lost = sum(int((~whole).sum()) for _, whole in pages.values())
        symbols = np.concatenate([pages[i][0] for i in sorted(pages)])
        whole = np.concatenate([pages[i][1] for i in sorted(pages)])
        if missing or lost:
            told = f"{lost} of {len(symbols)} symbols cannot be read" if lost else ""
            told += (" and " if told and missing else "") + (
                f"{len(missing)} of {first.pages} pages are missing" if missing else ""
            )
            raise DamagedCode(told, self._to_text(symbols, whole, first.payload, partial=True), lost)
        return self._to_text(symbols, whole, first.payload)

    def _decode_bare(self, images: list[Image.Image]) -> str:
        symbols = []
        for image in images:
            if image.width % BLOCK or image.height % BLOCK:
                raise UserError(
                    f"an image of {image.width}x{image.height} is no page of whole blocks; frame none needs one"
                )
            blocks = to_blocks(np.asarray(image.convert("RGB"), np.float32))
            means = cell_centers(blocks, self.cell)
            cells = ((means[:, :, None] - palette(self.colors).astype(np.float32)) ** 2).sum(-1).argmin(-1)
            symbols.append(self.layout.unpack(self.layout.from_cells(cells, self.layout.block_bytes)))
        stream = np.concatenate(symbols) if symbols else np.zeros(0, np.int64)
        ends = np.flatnonzero(stream == self.alphabet)
        if not len(ends) or (stream[: ends[0]] > self.alphabet).any():
            raise DamagedCode(f"no codebook text in {len(images)} images: no end symbol, or symbols that do not exist")
        return self._to_text(stream[: ends[0]], np.ones(ends[0], bool), self.payload)

    def _to_text(self, symbols: np.ndarray, whole: np.ndarray, payload: str, partial: bool = False) -> str:
        """The text of symbols (n,); with `partial`, U+FFFD for what is not whole."""
        if payload == "tokens":
            runs = np.split(np.arange(len(symbols)), np.flatnonzero(np.diff(whole)) + 1)
            return "".join(self._tokenizer.decode(symbols[r]) if whole[r].all() else "\ufffd" for r in runs if len(r))
        data = np.where(whole, symbols, 0xFF).astype(np.uint8).tobytes()
        if payload == "zstd":
            if partial:
                return ""  # one wrong bit ruins all of a compressed text
            data = zstd().decompress(data)
        return data.decode("utf-8", errors="replace" if partial else "strict")

    def visual_tokens(self, encoded: Encoded) -> int:
        return count_blocks(encoded.images)


def read_page(image: Image.Image) -> tuple[Header, np.ndarray, np.ndarray] | None:
    """Header, symbols (n,) and which of them are whole (n,) of one page, or None if there is none in the image."""
    best = None
    for pixels, fiducials in candidates(image.convert("RGB"), lambda rows, fid: read_header(rows, fid) is not None):
        header = read_header(pixels, fiducials)
        if header is None or header.fiducials != fiducials:
            continue
        for symbols, whole in read_data(pixels, header):
            if whole.all():
                return header, symbols, whole
            if best is None or whole.sum() > best[2].sum():
                best = header, symbols, whole
    return best


def read_header(pixels: np.ndarray, fiducials: bool) -> Header | None:
    """The header of a page (H, W, 3) whose sides are multiples of 28 and whose blocks lie where they were drawn."""
    height, width = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    places = slots(height, width, fiducials)[:HEADER_BLOCKS]
    if len(places) < HEADER_BLOCKS:
        return None
    light = cell_centers(to_blocks(pixels)[places], HEADER_CELL).mean(-1)
    bits = light > (light.min() + light.max()) / 2
    return Header.from_bytes(np.packbits(bits.reshape(-1)[: HEADER_BYTES * 8]).tobytes())


def read_data(pixels: np.ndarray, header: Header) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Symbols (n,) and which are whole (n,), from ever more patient readings until one is whole."""
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
    for cells in read_colors(
        pixels, blocks[HEADER_BLOCKS:start], known, blocks[start:stop], layout.cell, palette(layout.colors)
    ):
        data = layout.from_cells(cells[:count], layout.block_bytes)
        whole = np.ones(count, bool)
        if zlib.crc32(np.ascontiguousarray(data).tobytes()) != header.check:
            whole[:] = False
            if layout.parity:
                data, whole = layout.mend(data, layout.from_cells(cells[count:], layout.room // 8))
                if whole.all() and zlib.crc32(data.tobytes()) != header.check:
                    whole[:] = False
        yield layout.unpack(data)[: header.symbols], whole.repeat(layout.per_block)[: header.symbols]


# ----------------------------------------------------------------------------------------------------------------------
# Blocks and cells


def calibration(colors: int) -> np.ndarray:
    """Color numbers (blocks, 49) of the calibration: every color equally often, in an order that mixes neighbors."""
    cells = (BLOCK // HEADER_CELL) ** 2
    index = np.arange((3 if colors == 64 else 1) * cells)
    return ((5 * index + index // colors) % colors).reshape(-1, cells)


def draw_cells(rgb: np.ndarray) -> np.ndarray:
    """Pixels (n, 28, 28, 3) of blocks of cells (n, cells, 3)."""
    side = math.isqrt(rgb.shape[1])
    return rgb.reshape(-1, side, side, 3).repeat(BLOCK // side, 1).repeat(BLOCK // side, 2)


def slots(height: int, width: int, fiducials: bool) -> np.ndarray:
    """Raster numbers of the blocks of a page that are not corners taken by fiducials."""
    places = np.arange(height * width)
    return np.delete(places, [0, width - 1, (height - 1) * width, height * width - 1]) if fiducials else places


def to_blocks(pixels: np.ndarray) -> np.ndarray:
    """Blocks (n, 28, 28, 3) in reading order of pixels (H, W, 3)."""
    height, width = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    return pixels.reshape(height, BLOCK, width, BLOCK, 3).swapaxes(1, 2).reshape(-1, BLOCK, BLOCK, 3)


def zstd():
    """Python's own zstd module, or the same from backports before 3.14."""
    try:
        from compression import zstd as module
    except ImportError:
        from backports import zstd as module
    return module
