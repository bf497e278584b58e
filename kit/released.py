"""Checkpoints small enough to ship: safetensors, with matrices in 7 bits and tables of integers compressed.

A released file holds what it takes to use a model and nothing to go on from. Everything that is no tensor lies as JSON in the
file's metadata. Matrices are rounded to 127 levels, symmetric and with a scale for each row; what has fewer dimensions stays float32.
What has been rounded, and tables of integers, byte by byte of all their numbers, are compressed by LZMA.
"""

import json
import lzma
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kit.errors import UserError
from kit.whole import whole

SUFFIX = ".safetensors"
TENSOR, SCALE, PACKED = "$tensor", "$scale", "$packed"  # keys that stand in the JSON for a tensor
LEVELS = 63  # above zero, and as many below
KEPT = 4096  # numbers below which a tensor is not worth compressing
MEMORY = 1 << 28  # bytes that a decompressor may take


def save_released(path: str | Path, state: dict, rounded: bool = True) -> int:
    """Write nested dicts and lists of tensors and plain values; returns the bytes of the file.

    Float matrices lose precision if they are to be `rounded`, nothing else does.
    """
    tensors: dict[str, torch.Tensor] = {}

    def put(name: str, tensor: torch.Tensor) -> str:
        tensors[name] = tensor.detach().cpu().contiguous()
        return name

    def pack(value, name: str):
        if isinstance(value, dict):
            return {key: pack(each, f"{name}/{key}") for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [pack(each, f"{name}/{index}") for index, each in enumerate(value)]
        if not isinstance(value, torch.Tensor):
            return value
        if (
            value.numel() < KEPT or (value.dim() == 1) == value.is_floating_point()
        ):  # float vectors, matrices of integers
            return {TENSOR: put(name, value)}
        if value.is_floating_point():
            if not rounded:
                return {TENSOR: put(name, value)}
            rows = value.detach().float().flatten(0, -2)
            scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / LEVELS
            put(f"{name}:scale", scale)
            levels = (rows / scale).round().to(torch.int8).flatten()
            return squeeze(levels, name) | {SCALE: f"{name}:scale", "shape": list(value.shape)}
        return squeeze(value, name)

    def squeeze(values: torch.Tensor, name: str) -> dict:
        flat = values.cpu().numpy()
        planes = np.ascontiguousarray(flat.view(np.uint8).reshape(-1, flat.itemsize).T)  # like bytes together
        raw = lzma.compress(planes.tobytes(), preset=9)
        put(name, torch.from_numpy(np.frombuffer(raw, np.uint8).copy()))
        return {PACKED: name, "dtype": str(flat.dtype), "count": len(flat)}

    plain = json.dumps(pack(state, ""), ensure_ascii=False)
    with whole(path) as partial:
        save_file(tensors, str(partial), metadata={"tokencolor": plain})
    return Path(path).stat().st_size


def load_released(path: str | Path) -> dict:
    """What `save_released` wrote. Raises UserError if the file is damaged or not one of these."""
    try:
        with safe_open(str(path), framework="pt") as file:
            plain = (file.metadata() or {}).get("tokencolor")
            if plain is None:
                raise UserError(f"{path} is no checkpoint of this project")
            return _unpack(json.loads(plain), file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, lzma.LZMAError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or no checkpoint ({str(error).splitlines()[0][:200]})") from error


def _unpack(value, file):
    if isinstance(value, list):
        return [_unpack(each, file) for each in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return file.get_tensor(value[TENSOR])
    if PACKED in value:
        dtype, count = np.dtype(value["dtype"]), value["count"]
        size = count * dtype.itemsize
        raw = lzma.LZMADecompressor(memlimit=MEMORY).decompress(
            file.get_tensor(value[PACKED]).numpy().tobytes(), size + 1
        )
        if len(raw) != size:
            raise ValueError(f"a table of {size} bytes has another size")
        planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, count)
        values = torch.from_numpy(planes.T.copy().reshape(-1).view(dtype))
        if SCALE in value:
            scale = file.get_tensor(value[SCALE])
            return (values.view(len(scale), -1).float() * scale).view(value["shape"])
        return values
    return {key: _unpack(each, file) for key, each in value.items()}
