"""QR codes: segno writes them, zxing-cpp reads them. A long text takes several symbols, each of which knows its place."""

import zlib
from dataclasses import dataclass

import numpy as np
import segno
import zxingcpp
from PIL import Image
from segno import consts

from image_context.codecs.encoded import BLOCK, DamagedCode, Encoded, count_blocks, to_bytes
from kit.errors import UserError

MAGIC = b"TC"  # by which a symbol of ours is told from any other in the picture
HEADER = 10  # bytes: MAGIC, CRC-32 of the whole text, number of this symbol, number of symbols
LEVELS = "LMQH"


@dataclass(frozen=True)
class QRCodec:
    """Byte-mode QR symbols of one version (1 to 40) and error-correction level (L, M, Q, H), one to an image.

    `module`: pixels on a side of a module; `quiet`: modules of white around a symbol (ISO/IEC 18004 asks for 4). Images are
    padded with white to multiples of 28 pixels.
    """

    version: int = 40
    level: str = "M"
    module: int = 4
    quiet: int = 4

    name = "qr"

    def __post_init__(self):
        if not 1 <= self.version <= 40 or self.level not in LEVELS or len(self.level) != 1:
            raise UserError(
                f"no QR version {self.version} level {self.level!r}; versions are 1 to 40, levels L, M, Q, H"
            )
        if not 1 <= self.module <= 64 or not 0 <= self.quiet <= 64:
            raise UserError(f"QR module {self.module} pixels, quiet zone {self.quiet} modules: need 1 to 64, 0 to 64")
        if self.capacity < 1:
            raise UserError(f"QR version {self.version} level {self.level} has no room beside its {HEADER}-byte header")

    @property
    def capacity(self) -> int:
        """Bytes of text in one symbol."""
        bits = consts.SYMBOL_CAPACITY[self.version][segno_level(self.level)]
        return (bits - 4 - (8 if self.version < 10 else 16)) // 8 - HEADER

    @property
    def capacity_bits(self) -> float:
        """Bits of text in a full symbol for each visual token of its image."""
        side = -(-self.module * (17 + 4 * self.version + 2 * self.quiet) // BLOCK)
        return 8 * self.capacity / side**2

    def encode(self, text: str) -> Encoded:
        """Raises UserError for a text that takes more than 65,535 symbols."""
        data = to_bytes(text)
        parts = [data[at : at + self.capacity] for at in range(0, len(data), self.capacity)] or [b""]
        if len(parts) > 0xFFFF:
            raise UserError(
                f"{len(data)} bytes need {len(parts)} QR symbols of {self.capacity}, and 65535 can be numbered"
            )
        check = zlib.crc32(data).to_bytes(4, "big")
        return Encoded([self._draw(MAGIC + check + pair(i, len(parts)) + part) for i, part in enumerate(parts)])

    def _draw(self, data: bytes) -> Image.Image:
        symbol = segno.make(
            data, version=self.version, error=self.level, mode="byte", micro=False, boost_error=False
        )  # fmt: skip
        modules = np.pad(1 - np.array([list(row) for row in symbol.matrix], np.uint8), self.quiet, constant_values=1)
        pixels = modules.repeat(self.module, 0).repeat(self.module, 1) * np.uint8(255)
        room = -len(pixels) % BLOCK
        pixels = np.pad(pixels, (room // 2, room - room // 2), constant_values=255)
        return Image.fromarray(pixels).convert("RGB")

    def decode(self, images: list[Image.Image], text: str = "") -> str:
        """Raises DamagedCode if symbols are missing or do not belong together."""
        found: dict[bytes, dict[int, bytes]] = {}
        totals: dict[bytes, int] = {}
        for image in images:
            for symbol in zxingcpp.read_barcodes(image.convert("L"), formats=zxingcpp.BarcodeFormat.QRCode):
                head, body = symbol.bytes[:HEADER], symbol.bytes[HEADER:]
                check, index, total = head[2:6], int.from_bytes(head[6:8], "big"), int.from_bytes(head[8:], "big")
                if head.startswith(MAGIC) and index < total:
                    found.setdefault(check, {})[index] = body
                    totals[check] = total
        if not found:
            raise DamagedCode(f"no QR symbol can be read in {len(images)} images", lost=len(images))
        if len(found) > 1:
            raise DamagedCode(f"these images hold symbols of {len(found)} texts; pass those of one")
        check, parts = found.popitem()
        missing = [i for i in range(totals[check]) if i not in parts]
        data = b"".join(
            parts.get(i, b"\xff") for i in range(totals[check])
        )  # no UTF-8: a mark where a symbol is missing
        if missing:
            whole = data.decode("utf-8", errors="replace")
            raise DamagedCode(f"{len(missing)} of {totals[check]} QR symbols cannot be read", whole, len(missing))
        if zlib.crc32(data).to_bytes(4, "big") != check:
            told = "the QR symbols do not add up to the text they were written from"
            raise DamagedCode(told, data.decode("utf-8", errors="replace"), len(parts))
        return data.decode("utf-8")

    def visual_tokens(self, encoded: Encoded) -> int:
        return count_blocks(encoded.images)


def pair(index: int, total: int) -> bytes:
    """Two numbers below 65536 as four bytes."""
    return index.to_bytes(2, "big") + total.to_bytes(2, "big")


def segno_level(level: str) -> int:
    """segno's number of an error-correction level."""
    return {"L": consts.ERROR_LEVEL_L, "M": consts.ERROR_LEVEL_M, "Q": consts.ERROR_LEVEL_Q, "H": consts.ERROR_LEVEL_H}[
        level
    ]
