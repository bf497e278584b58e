"""What is released comes back, matrices nearly, and damage is told."""

import json
import lzma

import pytest
import torch
from safetensors.torch import save_file

from kit.checkpoint import load_checkpoint
from kit.errors import UserError
from kit.released import load_released, save_released


def test_everything_comes_back_and_matrices_nearly(tmp_path):
    generator = torch.Generator().manual_seed(0)
    state = {
        "weights": {"a.weight": torch.randn(80, 90, generator=generator), "a.bias": torch.randn(90, generator=generator)},
        "position": torch.randn(1, 64, 128, generator=generator),
        "counts": [torch.randint(5, (10_000,), generator=generator), torch.arange(3, dtype=torch.int32), torch.empty(0)],
        "ids": torch.arange(9000).view(90, 100),
        "plain": {"name": "tölpel", "none": None, "levels": [1, 2.5, True]},
    }  # fmt: skip
    size = save_released(tmp_path / "m.safetensors", state)
    assert size < 7200 + 8192 + 72_000 + 20_000
    found = load_released(tmp_path / "m.safetensors")
    assert found["plain"] == state["plain"] and list(found) == list(state)
    assert torch.equal(found["weights"]["a.bias"], state["weights"]["a.bias"])
    for a, b in zip([*found["counts"], found["ids"]], [*state["counts"], state["ids"]]):
        assert torch.equal(a, b) and a.dtype == b.dtype
    for a, b in ((found["weights"]["a.weight"], state["weights"]["a.weight"]), (found["position"], state["position"])):
        assert a.shape == b.shape and (a - b).abs().max() <= b.abs().max() / 126 + 1e-6


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_released(path, {"config": {}, "counts": torch.arange(10_000)})
    whole = path.read_bytes()
    with pytest.raises(UserError, match="it lacks model_state_dict"):
        load_checkpoint(path)
    for content in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or no checkpoint"):
            load_checkpoint(path)
    save_file({"a": torch.zeros(3)}, str(path))
    with pytest.raises(UserError, match="no checkpoint of this project"):
        load_checkpoint(path)


def test_a_table_of_another_size_is_refused_before_it_fills_the_memory(tmp_path):
    bomb = torch.frombuffer(bytearray(lzma.compress(bytes(10_000_000))), dtype=torch.uint8)
    plain = {"counts": {"$packed": "counts", "dtype": "int64", "count": 5}}
    save_file({"counts": bomb}, str(tmp_path / "m.safetensors"), {"tokencolor": json.dumps(plain)})
    with pytest.raises(UserError, match="a table of 40 bytes has another size"):
        load_released(tmp_path / "m.safetensors")
