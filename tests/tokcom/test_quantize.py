"""Latents in few bits: the levels are Lloyd-Max's, packing loses nothing, and the error falls with every bit."""

import pytest
import torch

from tokcom.quantize import dequantize, levels, pack, quantize, unpack


def test_levels_are_those_that_max_published():
    assert torch.allclose(levels(1), torch.tensor([-0.7979, 0.7979]), atol=1e-4)
    assert torch.allclose(levels(2), torch.tensor([-1.5104, -0.4528, 0.4528, 1.5104]), atol=1e-4)


@pytest.mark.parametrize("bits, distortion", [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (8, 4.1e-5)])
def test_the_error_is_the_smallest_there_is(bits, distortion):
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    found = (dequantize(quantize(x, bits), bits) - x).square().mean()
    assert found == pytest.approx(distortion, rel=0.05)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_codes_come_back_and_take_no_byte_too_many(bits):
    codes = torch.randint(0, 2**bits, (7, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert len(packed) == -(-105 * bits // 8)
    assert torch.equal(unpack(packed, bits, (7, 5, 3)), codes)
