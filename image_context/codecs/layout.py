"""Symbols <-> bytes <-> modules <-> pixels of a codebook page, and the parity over its bytes."""

import math
from dataclasses import dataclass

import numpy as np
from reedsolo import ReedSolomonError, RSCodec

from image_context.codecs.encoded import BLOCK

COLORS = (2, 4, 8, 16, 32, 64)
MODULES = (1, 2, 4, 7, 14, 28)
HEADER_MODULE = 4  # pixels, of header and calibration
MAX_PARITY = 128  # bytes of a codeword
CODEWORD = 255  # bytes of a Reed-Solomon codeword over GF(256)


def palette(colors: int) -> np.ndarray:
    """RGB (colors, 3) uint8: corners of the cube as far apart as they can be, or a lattice, neighbors one bit apart."""
    if colors == 2:
        return np.array([[0] * 3, [255] * 3], np.uint8)
    if colors == 4:
        return np.array([[0, 0, 0], [255, 255, 0], [255, 0, 255], [0, 255, 255]], np.uint8)
    # of red, green, blue: green is the brightest, and blue arrives worst
    bits = {8: (1, 1, 1), 16: (1, 2, 1), 32: (2, 2, 1), 64: (2, 2, 2)}[colors]
    levels = {1: np.array([0, 255]), 2: np.array([0, 85, 255, 170])}  # Gray code: 0, 1, 3, 2 in rising order
    index = np.arange(colors)
    red, rest = index & (2 ** bits[0] - 1), index >> bits[0]
    green, blue = rest & (2 ** bits[1] - 1), rest >> bits[1]
    return np.stack([levels[b][c] for b, c in zip(bits, (red, green, blue))], axis=1).astype(np.uint8)


@dataclass(frozen=True)
class Layout:
    """How symbols of `symbol_bits` bits become blocks of modules."""

    colors: int
    module: int
    symbol_bits: int
    per_block: int
    parity: int

    @property
    def modules(self) -> int:
        return (BLOCK // self.module) ** 2

    @property
    def module_bits(self) -> int:
        return self.colors.bit_length() - 1

    @property
    def capacity(self) -> int:
        """Bits that a block can hold."""
        return self.modules * self.module_bits

    @property
    def block_bytes(self) -> int:
        """Bytes of a block's symbols, the last one padded: what parity is computed over."""
        return -(-self.per_block * self.symbol_bits // 8)

    @property
    def calibration_blocks(self) -> int:
        return len(calibration(self.colors))

    def data_blocks(self, symbols: int) -> int:
        return -(-symbols // self.per_block)

    def codewords(self, data_blocks: int) -> int:
        return -(-data_blocks * self.block_bytes // (CODEWORD - self.parity)) if self.parity else 0

    def parity_blocks(self, data_blocks: int) -> int:
        return -(-self.parity * self.codewords(data_blocks) // (self.capacity // 8)) if self.parity else 0

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

    def to_modules(self, data: np.ndarray) -> np.ndarray:
        """Color numbers (blocks, modules) of bytes (blocks, n)."""
        bits = np.zeros((len(data), self.capacity), np.uint8)
        given = np.unpackbits(data, axis=1)[:, : self.capacity]
        bits[:, : given.shape[1]] = given
        weights = 1 << np.arange(self.module_bits - 1, -1, -1)
        return bits.reshape(len(data), self.modules, self.module_bits) @ weights

    def from_modules(self, modules: np.ndarray, count: int) -> np.ndarray:
        """Bytes (blocks, count) of color numbers (blocks, modules)."""
        shifts = np.arange(self.module_bits - 1, -1, -1)
        bits = ((modules[:, :, None] >> shifts) & 1).astype(np.uint8).reshape(len(modules), -1)
        data = np.packbits(bits, axis=1)[:, :count]
        return np.pad(data, ((0, 0), (0, count - data.shape[1])))

    def add_parity(self, data: np.ndarray) -> np.ndarray:
        """Bytes (parity_blocks, room // 8) that protect the data's bytes. Codeword j holds bytes j, j + m, j + 2m ..."""
        m = self.codewords(len(data))
        coder, flat = RSCodec(self.parity), data.tobytes()
        parts = [coder.encode(flat[j::m])[-self.parity :] for j in range(m)]
        width = self.capacity // 8
        stream = bytes(byte for column in zip(*parts) for byte in column)
        return np.frombuffer(stream.ljust(self.parity_blocks(len(data)) * width, b"\0"), np.uint8).reshape(-1, width)

    def correct(self, data: np.ndarray, parity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corrected bytes (blocks, block_bytes) of read data and parity blocks, and which of them cannot be corrected."""
        m = self.codewords(len(data))
        coder, flat = RSCodec(self.parity), bytearray(data.tobytes())
        stream, failed = parity.tobytes()[: self.parity * m], np.zeros(len(flat), bool)
        for j in range(m):
            try:
                flat[j::m] = coder.decode(bytes(flat[j::m]) + stream[j::m])[0]
            except ReedSolomonError:
                failed[j::m] = True
        return np.frombuffer(bytes(flat), np.uint8).reshape(data.shape), failed.reshape(data.shape)

    def affected(self, failed: np.ndarray) -> np.ndarray:
        """Which symbols (blocks * per_block,) have a bit in one of the bytes `failed` (blocks, block_bytes)."""
        bits = failed.repeat(8, axis=1)[:, : self.per_block * self.symbol_bits]
        return bits.reshape(-1, self.symbol_bits).any(1)


def calibration(colors: int) -> np.ndarray:
    """Color numbers (blocks, 49) of the calibration: every color equally often, in an order that mixes neighbors."""
    modules = (BLOCK // HEADER_MODULE) ** 2
    index = np.arange({32: 2, 64: 3}.get(colors, 1) * modules)
    return ((5 * index + index // colors) % colors).reshape(-1, modules)


def draw_modules(rgb: np.ndarray) -> np.ndarray:
    """Pixels (n, 28, 28, 3) of blocks of modules (n, modules, 3)."""
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
