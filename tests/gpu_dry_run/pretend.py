"""A CUDA device that is not there, on which a training script runs as it is and every wait for the device is counted.

A stub of torch's device guard (guard.cpp) lets a CPU build of torch believe in cuda:0. Tensors on it are fake: they have a
shape, a type and a device, and no values; what stays on the host is real. So the Python of a step runs in full, and shows
tensors on the wrong device, types that do not go together, and every host synchronization, with launches and bytes moved.
It does not show kernels that are missing or slow, or memory that runs out.

Import this before torch, in a process of its own: it patches torch. Written for the torch that requirements.txt names.
"""

import collections
import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = str(Path(__file__).parents[2])


def load_guard() -> None:
    """Compile the stub once, and load it before torch starts, which then finds its hooks registered."""
    if "torch" in sys.modules:
        raise ImportError("import pretend before torch")
    torch_folder = Path(importlib.util.find_spec("torch").origin).parent
    environment = hashlib.sha256(str(torch_folder).encode()).hexdigest()[:8]  # whose libraries it is linked to
    folder = (
        Path(tempfile.gettempdir()) / f"pretend-cuda-{os.getuid()}-{importlib.metadata.version('torch')}-{environment}"
    )
    library, include, lib = folder / "libguard.so", torch_folder / "include", torch_folder / "lib"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        includes = [f"-I{include}", f"-I{include}/torch/csrc/api/include"]
        links = [f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed", "-lc10", "-ltorch_cpu"]
        source = str(Path(__file__).with_name("guard.cpp"))
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", *includes, source, *links, "-o", str(partial)]
        subprocess.run(command, check=True)
        partial.rename(library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


load_guard()

import torch  # noqa: E402
import torch.amp.autocast_mode as autocast_mode  # noqa: E402
import torch.cuda.amp.common as amp_common  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

amp_common.amp_definitely_not_available = lambda: False
autocast_mode.amp_definitely_not_available = lambda: False
torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
torch.Tensor.pin_memory = lambda self, *args: self
load = torch.load


def load_for_real(*args, **kwargs):
    with unset_fake_temporarily():
        return load(*args, **kwargs)


class HostGenerator(torch.Generator):
    """A generator for any device; one of CUDA's needs CUDA."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)


torch.load = load_for_real
torch.Generator = HostGenerator
torch.__future__.set_overwrite_module_params_on_conversion(True)  # a real parameter cannot hold a fake tensor

VIEWS = {
    "view", "_unsafe_view", "expand", "permute", "transpose", "t", "slice", "select", "unsqueeze", "squeeze", "split", "chunk",
    "detach", "alias", "as_strided", "unbind", "unfold", "split_with_sizes", "_reshape_alias", "lift_fresh", "diagonal",
    "unflatten", "empty", "empty_like", "new_empty", "empty_strided", "device", "layout", "is_pinned",
}  # fmt: skip


def on_cuda(value) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


class Pretend(TorchDispatchMode):
    """Counts what reaches the device. `hits`: the fraction of true values that a mask on the device is taken to have."""

    def __init__(self, hits: float = 1.0):
        super().__init__()
        self.hits = hits
        self.launches, self.bytes, self.waits, self.copies = 0, collections.Counter(), collections.Counter(), 0

    def snapshot(self) -> dict:
        return {
            "launches": self.launches, "bytes": sum(self.bytes.values()), "waits": dict(self.waits), "copies": self.copies,
            "lines": dict(self.bytes),
        }  # fmt: skip

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        target = kwargs.get("device")
        involved = any(map(on_cuda, leaves)) or (target is not None and torch.device(target).type == "cuda")
        if not involved and not any(isinstance(value, FakeTensor) for value in leaves):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func is aten._local_scalar_dense.default:
            self._wait("item", args[0])
            return True if args[0].dtype == torch.bool else 0.5 if args[0].dtype.is_floating_point else 0
        if func is aten.nonzero.default:
            self._wait("nonzero", args[0])
            return torch.stack(self._hits(args[0]), 1)
        if func is aten._unique2.default:
            self._wait("unique", args[0])
            one = args[0].new_empty(1)
            return one, one.long(), one.long()
        if func is aten.split_with_sizes.default and sum(args[1]) != args[0].shape[0]:  # sizes read from the device
            size, left = divmod(args[0].shape[0], len(args[1]))
            args = (args[0], [size + (i < left) for i in range(len(args[1]))])
        if func is aten.equal.default:
            self._wait("equal", args[0])
            return True
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            args = (args[0], self._indices(name, args), *args[2:])
        if func is aten._to_copy.default:
            target = torch.device(target or args[0].device).type
            if on_cuda(args[0]) and target == "cpu":
                self._wait("copy to the host", args[0])
                with unset_fake_temporarily():  # real again
                    return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if not on_cuda(args[0]) and target == "cuda":
                if kwargs.get("non_blocking") or not args[0].ndim:
                    self.copies += 1
                else:
                    self._wait("copy to the device", args[0])
        if func is aten.copy_.default and on_cuda(args[0]) != on_cuda(args[1]):
            self._wait("copy between host and device", args[0])
            return args[0]
        result = func(*args, **kwargs)
        tensors = [x for x in (*leaves, *tree_leaves(result)) if isinstance(x, torch.Tensor)]
        if any(map(on_cuda, tensors)) and name not in VIEWS:
            # scattering touches as much of its first argument as it scatters; in place a result is no second tensor
            sparse = name in ("scatter_add_", "index_add_", "gather", "index_select", "index", "embedding")
            self.count(name, [x for x in tensors if x is not args[0]] if sparse else tensors)
        return result

    def count(self, name: str, tensors) -> None:
        """One launch that reads or writes all of these."""
        self.launches += 1
        self.bytes[line(name)] += sum(touched(tensor) for tensor in tensors)

    def _wait(self, kind: str, tensor) -> None:
        if (on_cuda(tensor) or "device" in kind) and not between_steps():
            self.waits[f"{kind} at {line()}"] += 1

    def _hits(self, mask: torch.Tensor) -> list[torch.Tensor]:
        """Indices of as many true values as `hits` says."""
        index, found = torch.arange(int(mask.numel() * self.hits), device=mask.device), []
        for size in reversed(mask.shape):
            found.insert(0, index % size)
            index = torch.div(index, size, rounding_mode="floor")
        return found

    def _indices(self, name: str, args) -> list:
        indices = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self._wait(f"boolean {name}", index)
                indices += self._hits(index)
            else:
                if index is not None and index.ndim and not on_cuda(index) and on_cuda(args[0]):
                    self._wait(f"{name} with an index copied to the device", index)
                indices.append(index)
        return indices


BETWEEN_STEPS = {"measure", "example", "validate", "samples", "save", "write", "refit"}  # functions that may wait


def between_steps() -> bool:
    """Whether validation, a checkpoint, the log or the noise schedule asks, and not the step itself."""
    frame = sys._getframe(2)
    while frame:
        if frame.f_code.co_name in BETWEEN_STEPS and frame.f_code.co_filename.startswith(ROOT):
            return True
        frame = frame.f_back
    return False


def line(operation: str = "") -> str:
    """Where in the project the operation was called; in the backward pass, which torch runs by itself, which one it was."""
    frame = sys._getframe(2)
    while frame:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and "site-packages" not in name and "gpu_dry_run" not in name:
            return f"{os.path.relpath(name, ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return f"backward pass {operation}"


def touched(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, what it repeats by a stride of zero counted once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride else 1
    return count


class Kernel(torch.autograd.Function):
    """An operation that is one kernel on a GPU each way, and that a build for CPUs would take apart."""

    @staticmethod
    def forward(ctx, name, seen, like, *tensors):
        ctx.name, ctx.seen = name, seen
        ctx.save_for_backward(*tensors)
        result = torch.empty_like(like)
        seen.count(name, (*tensors, result))
        return result

    @staticmethod
    def backward(ctx, gradient):
        tensors = ctx.saved_tensors
        wanted = [torch.empty_like(x) if needed else None for x, needed in zip(tensors, ctx.needs_input_grad[3:])]
        made = [x for x in wanted if x is not None]
        ctx.seen.count(f"{ctx.name} backward", (gradient, *tensors, *made))
        return None, None, None, *wanted


def use_kernels(seen: Pretend) -> None:
    """Normalization, attention and SiLU as a GPU's kernels."""
    norm, attention = torch.nn.functional.rms_norm, torch.nn.functional.scaled_dot_product_attention
    activation = torch.nn.functional.silu

    def rms_norm(x, shape, weight=None, eps=None):
        if not on_cuda(x):
            return norm(x, shape, weight, eps)
        return Kernel.apply("rms_norm", seen, x, x, *(() if weight is None else (weight,)))

    def scaled_dot_product_attention(q, k, v, attn_mask=None, **kwargs):
        if not on_cuda(q):
            return attention(q, k, v, attn_mask=attn_mask, **kwargs)
        if len({each.dtype for each in (q, k, v)}) > 1:
            raise RuntimeError(f"attention between {q.dtype}, {k.dtype} and {v.dtype}")
        return Kernel.apply("attention", seen, q, q, k, v)

    def silu(x, inplace=False):
        return Kernel.apply("silu", seen, x, x) if on_cuda(x) else activation(x)

    torch.nn.functional.silu = silu
    torch.nn.functional.rms_norm = rms_norm
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention


@contextlib.contextmanager
def pretend(hits: float = 1.0):
    """Inside, what is on cuda:0 is fake, and the `Pretend` that is yielded counts."""
    with FakeTensorMode(allow_non_fake_inputs=True), Pretend(hits) as seen:
        use_kernels(seen)
        yield seen
