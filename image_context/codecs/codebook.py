"""Our own two-dimensional color code: every 28x28 block carries its own symbols, so that one visual token carries them whole.

A page, in blocks and reading order: a header (black and white, 4-pixel modules, Reed-Solomon protected), a calibration of all
colors, data, parity. Block i of the data holds symbols i k ... i k + k - 1 and nothing of any other: what one visual token has to
say depends on one block alone, which is what a network can learn. Parity (Reed-Solomon over the data's bytes, interleaved) stands
in blocks of its own behind the data, and a VLM that has no use for it may pass it over. With `frame="fiducials"` the four
corners are finder patterns, by which a scaled, turned or tilted page is found; `frame="none"` is data alone, closed by an end symbol,
and can be read only by a codec with the same options.
"""

import math
import zlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from corpus.tokenizer import Tokenizer, load_tokenizer
from image_context.codecs.encoded import BLOCK, MAX_SIDE, DamagedCode, Encoded, count_blocks, to_bytes
from image_context.codecs.equalize import module_centers
from image_context.codecs.layout import (
    CODEWORD,
    COLORS,
    HEADER_MODULE,
    MAX_PARITY,
    MODULES,
    Layout,
    calibration,
    draw_modules,
    palette,
    slots,
    to_blocks,
)
from image_context.codecs.page import HEADER_BLOCKS, PAYLOADS, Header, read_page
from image_context.codecs.rectify import FINDER
from kit.errors import UserError

FRAMES = ("none", "header", "fiducials")
SMALLEST = 4  # blocks of an image, below which the processor scales it up
SLIMMEST = 200  # times as high as wide, above which the processor refuses an image


@dataclass(frozen=True)
class CodebookCodec:
    """A text as colored modules.

    `colors` 2, 4, 8, 16, 32, 64; `module` pixels on a side, a divisor of 28; `payload`: `tokens` (ids of `tokenizer`, a Tokenizer or
    where to load one), `bytes` (UTF-8), `zstd` (the same compressed: short, but nothing is local any more);
    `symbols_per_block` 0 = as many as fit; `parity` bytes of Reed-Solomon parity in each 255 (corrects half as many wrong ones);
    `frame` none, header or fiducials; `max_side` blocks on a side of a page; `columns` blocks in a row, 0 = as many as rows (a
    single column is what a VLM with rotary positions learns fastest). Raises UserError where these do not fit.
    """

    colors: int = 8
    module: int = 4
    payload: str = "bytes"
    tokenizer: object = field(default=None, compare=False)
    symbols_per_block: int = 0
    parity: int = 0
    frame: str = "header"
    max_side: int = MAX_SIDE
    columns: int = 0

    name = "codebook"

    def __post_init__(self):
        for option, values in (("colors", COLORS), ("module", MODULES), ("payload", PAYLOADS), ("frame", FRAMES)):
            if getattr(self, option) not in values:
                raise UserError(
                    f"codebook {option} {getattr(self, option)!r}: choose from {', '.join(map(str, values))}"
                )
        if self.payload == "tokens" and self.tokenizer is None:
            raise UserError("codebook payload tokens needs a tokenizer")
        if not 0 <= self.parity <= MAX_PARITY:
            raise UserError(f"codebook parity {self.parity}: need 0 to {MAX_PARITY} bytes of {CODEWORD}")
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
                f"a block of {self.module}-pixel modules in {self.colors} colors"
            )
        if not self.fitting:
            raise UserError(
                f"no symbol of {self.symbol_bits} bits fits a block of {self.module}-pixel modules in {self.colors} colors: "
                "take smaller modules or more colors"
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
        return Layout(self.colors, self.module, self.symbol_bits, 0, 0).capacity // self.symbol_bits

    @cached_property
    def layout(self) -> Layout:
        return Layout(
            self.colors, self.module, self.symbol_bits, self.symbols_per_block or self.fitting, self.parity
        )  # fmt: skip

    @property
    def capacity_bits(self) -> float:
        """Bits that one block, one visual token, can show."""
        return float(self.layout.capacity)

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
            raise UserError(
                f"the text needs {len(parts)} codebook pages, and 65535 can be numbered: use smaller modules"
            )
        return Encoded([self._draw(part, i, len(parts), document) for i, part in enumerate(parts)])

    def _draw(self, symbols: np.ndarray, page: int, pages: int, document: int) -> Image.Image:
        layout, data = self.layout, self.layout.pack(symbols)
        parts = [draw_modules(palette(self.colors)[layout.to_modules(data)])]
        if self.frame != "none":
            header = Header(
                layout, self.frame == "fiducials", self.payload, self._vocabulary(), page, pages, len(symbols),
                zlib.crc32(data.tobytes()), document,
            )  # fmt: skip
            bits = np.unpackbits(np.frombuffer(header.to_bytes(), np.uint8))
            bits = np.pad(bits, (0, -len(bits) % (BLOCK // HEADER_MODULE) ** 2)).reshape(HEADER_BLOCKS, -1)
            parts = [
                draw_modules(palette(2)[bits]),
                draw_modules(palette(self.colors)[calibration(self.colors)]),
                *parts,
            ]
        if self.parity and len(data):
            parts.append(draw_modules(palette(self.colors)[layout.to_modules(layout.add_parity(data))]))
        blocks = np.concatenate(parts)
        corners = 4 * (self.frame == "fiducials")
        width = self.columns or max(2, math.ceil(math.sqrt(len(blocks) + corners)))
        height = max(SMALLEST // width, 2, -(-(len(blocks) + corners) // width))
        pixels = np.full((height * width, BLOCK, BLOCK, 3), 255, np.uint8)
        places = slots(height, width, corners > 0)
        pixels[places[: len(blocks)]] = blocks
        if corners:
            pixels[[0, width - 1, (height - 1) * width, height * width - 1]] = FINDER[:, :, None]
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

        Raises DamagedCode if a page cannot be found, is missing or is damaged beyond what parity corrects.
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
        pages: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for header, symbols, valid in sorted(
            read, key=lambda page: page[2].sum()
        ):  # of two photographs of a page, the better
            pages[header.page] = symbols, valid
        missing = [i for i in range(first.pages) if i not in pages]
        lost = sum(int((~valid).sum()) for _, valid in pages.values())
        read_in = sum(len(valid) for _, valid in pages.values())
        pages |= {i: (np.zeros(1, np.int64), np.zeros(1, bool)) for i in missing}  # each leaves one mark in the text
        symbols, valid = (np.concatenate([pages[i][part] for i in sorted(pages)]) for part in (0, 1))
        if missing or lost:
            unchecked = lost and not first.layout.parity  # a checksum tells that something is wrong, and not what
            told = []
            if lost:
                what = "are doubtful: their page fails its checksum" if unchecked else "cannot be read"
                told.append(f"{lost} of {read_in} symbols {what}")
            if missing:
                told.append(f"{len(missing)} of {first.pages} pages are missing")
            if unchecked and first.payload != "zstd":
                valid = valid | np.concatenate([np.full(len(pages[i][1]), i not in missing) for i in sorted(pages)])
            raise DamagedCode(" and ".join(told), self._to_text(symbols, valid, first.payload, partial=True), lost)
        return self._to_text(symbols, valid, first.payload)

    def _decode_bare(self, images: list[Image.Image]) -> str:
        symbols = []
        for image in images:
            if image.width % BLOCK or image.height % BLOCK:
                raise UserError(
                    f"an image of {image.width}x{image.height} is no page of whole blocks; frame none needs one"
                )
            blocks = to_blocks(np.asarray(image.convert("RGB"), np.float32))
            means = module_centers(blocks, self.module)
            modules = ((means[:, :, None] - palette(self.colors).astype(np.float32)) ** 2).sum(-1).argmin(-1)
            symbols.append(self.layout.unpack(self.layout.from_modules(modules, self.layout.block_bytes)))
        stream = np.concatenate(symbols) if symbols else np.zeros(0, np.int64)
        ends = np.flatnonzero(stream == self.alphabet)
        symbols = stream[: ends[0]] if len(ends) else np.trim_zeros(stream, "b")
        valid = symbols < self.alphabet
        lost = int((~valid).sum())
        if not len(ends) or lost:
            told = [] if len(ends) else ["no end symbol"]
            if lost:
                told.append(f"{lost} of {len(symbols)} symbols do not exist")
            told = f"no codebook text in {len(images)} images: {' and '.join(told)}"
            raise DamagedCode(told, self._to_text(symbols, valid, self.payload, partial=True), lost)
        return self._to_text(symbols, valid, self.payload)

    def _to_text(self, symbols: np.ndarray, valid: np.ndarray, payload: str, partial: bool = False) -> str:
        """The text of symbols (n,); with `partial`, U+FFFD for what is not valid."""
        if payload == "tokens":
            runs = np.split(np.arange(len(symbols)), np.flatnonzero(np.diff(valid)) + 1)
            return "".join(self._tokenizer.decode(symbols[r]) if valid[r].all() else "\ufffd" for r in runs if len(r))
        data = np.where(valid, symbols, 0xFF).astype(np.uint8).tobytes()
        if payload == "zstd" and partial:  # one wrong bit ruins all that follows
            try:
                start = zstd().ZstdDecompressor().decompress(data[: valid.argmin()])
            except zstd().ZstdError:
                start = b""
            return start.decode("utf-8", errors="ignore") + "\ufffd"
        if payload == "zstd":
            module = zstd()
            try:
                data = module.decompress(data)
            except module.ZstdError as error:
                raise DamagedCode(f"the pages hold no zstd stream: {error}", lost=len(symbols)) from error
        try:
            return data.decode("utf-8", errors="replace" if partial else "strict")
        except UnicodeDecodeError as error:
            raise DamagedCode("the symbols are no text", data.decode("utf-8", "replace"), len(symbols)) from error

    def visual_tokens(self, encoded: Encoded) -> int:
        return count_blocks(encoded.images)


def zstd():
    """Python's own zstd module, or the same from backports before 3.14."""
    try:
        from compression import zstd as module
    except ImportError:
        from backports import zstd as module
    return module
