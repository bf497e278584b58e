"""Latents in a few bits for each number: Lloyd-Max quantization of the standard normal distribution, which normalized latents are near.

Levels are the means of their cells and cell borders lie midway (Max, IRE Trans. Inf. Theory 1960; Lloyd, IEEE Trans. Inf. Theory
1982): no quantizer of so many levels has a smaller squared error. The error acts on the decoder as noise does.
"""

import math
from functools import cache

import numpy as np
import torch

MAX_BITS = 8
ITERATIONS = 500  # of Lloyd's algorithm


@cache
def levels(bits: int) -> torch.Tensor:
    """The 2^bits values (2^bits,), ascending, that stand for a standard normal number."""
    x = math.sqrt(3) * torch.special.ndtri(
        (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    )  # right for many
    end = torch.tensor([torch.inf], dtype=torch.float64)
    for _ in range(ITERATIONS):
        edges = torch.cat([-end, (x[1:] + x[:-1]) / 2, end])
        density = (-0.5 * edges.square()).exp() / math.sqrt(2 * math.pi)
        x = (density[:-1] - density[1:]) / torch.special.ndtr(edges).diff()
    return x.float()


def quantize(latents: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest level of each number: indices (...) uint8 of latents (...), for 1 to 8 bits."""
    table = levels(bits).to(latents.device)
    return torch.bucketize(latents.float().contiguous(), (table[1:] + table[:-1]) / 2).to(torch.uint8)


def dequantize(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Latents (...) float32 of indices (...)."""
    return levels(bits).to(codes.device)[codes.long()]


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Indices (...) one after the other without gaps: bytes (ceil(n bits / 8),) uint8."""
    planes = np.unpackbits(codes.cpu().numpy().reshape(-1, 1), axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(planes))


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Indices of `shape` from what `pack` made of them."""
    count = math.prod(shape)
    planes = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits)
    whole = np.pad(planes, ((0, 0), (8 - bits, 0)))
    return torch.from_numpy(np.packbits(whole, axis=1)).view(shape)
