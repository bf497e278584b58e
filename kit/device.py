"""Device and distributed start-up: one call at the top of an entry point; torchrun is optional."""

import functools
import itertools
import os
import random
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from kit.errors import UserError

_numbers = itertools.count()  # of the calls of `main_first`, alike on all ranks
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Runtime:
    """Where this process computes. `dtype` is what autocast uses; float32 means no autocast."""

    device: torch.device
    dtype: torch.dtype
    rank: int
    world_size: int
    store: dist.Store | None = None  # by which processes find each other, where there are several

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def autocast(self):
        """Context in which matrix products run in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def to(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the device, without waiting for what the device is doing."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """`values` added over all ranks (in place where there are several)."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, value: float) -> float:
        """The mean of a number over ranks, the same on each."""
        if self.world_size == 1:
            return value  # also because mps has no float64
        return float(self.sum(torch.tensor([value], dtype=torch.float64, device=self.device))) / self.world_size

    def any(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on one of them."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def sum_of(self, number: int) -> int:
        """A number of this rank's, added over all ranks."""
        if self.world_size == 1:
            return number
        return int(self.sum(torch.tensor(float(number), dtype=torch.float64, device=self.device)))

    def agree(self, number: int) -> int:
        """The main rank's `number`, on every rank."""
        if self.world_size == 1:
            return number
        return int(self.sum(torch.tensor(float(number) * self.is_main, dtype=torch.float64, device=self.device)))

    def parallel(self, module: torch.nn.Module, **options) -> torch.nn.Module:
        """The module, whose gradients are averaged over ranks where there are several; `options` are DDP's."""
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(module, device_ids=ids, **options)

    def check_agreement(self, module: torch.nn.Module) -> None:
        """Raises RuntimeError where ranks hold different weights: then their gradients were not exchanged."""
        if self.world_size == 1:
            return
        total = torch.stack([p.detach().double().sum() for p in module.parameters()]).sum()
        bounds = torch.stack([total, -total])
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        if bounds[0] != -bounds[1]:
            raise RuntimeError(f"ranks hold different weights (sums from {-bounds[1]} to {bounds[0]})")

    def no_sync(self, module: torch.nn.Module):
        """Context in which a module of `parallel` keeps its gradients to itself, to be exchanged with those of a later pass."""
        return module.no_sync() if self.world_size > 1 else nullcontext()

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self):
        """The main rank passes through the context, then all others: for what one has to build and the rest to find.

        They wait on the host, for up to a day; a barrier of NCCL's would give up after ten minutes.
        """
        if self.world_size == 1:
            yield
            return
        key = f"main_first/{next(_numbers)}"
        if not self.is_main:
            self.store.wait([key], timedelta(days=1))
        yield
        if self.is_main:
            self.store.set(key, "done")

    def finish(self) -> None:
        """Leave the other ranks, once all have what they exchanged: gloo aborts a rank whose peer closes in the middle of it.

        A thread of gloo's that lets go of a tensor needs Python's lock, which an ending interpreter does not give: the rank hangs or
        aborts. Barriers carry no tensors, and waiting for them leaves the lock to the threads that are behind.
        """
        if self.world_size > 1:
            for _ in range(8):
                dist.barrier()
            self.store.set(f"finish/{self.rank}", "done")
            self.store.wait([f"finish/{rank}" for rank in range(self.world_size)], timedelta(minutes=10))
            dist.destroy_process_group()


def matmul_rate(runtime: Runtime, seconds: float = 0.3) -> float:
    """Operations a second of a large square matrix product on the runtime's device, in its dtype, the best of several."""
    side = 8192 if runtime.device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=runtime.device, dtype=runtime.dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    (a @ b)[0, 0].item()  # the first one also sets things up
    while not best or time.perf_counter() < end:
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def autocast_dtype(device: torch.device) -> torch.dtype:
    """What matrix products on `device` are computed in here: autocast's dtype, float32 outside of it."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def start(device: str = "auto", seed: int = 0, precision: str = "auto") -> Runtime:
    """Choose the device, seed every generator, join the process group that torchrun announces.

    `device`: auto (a GPU of CUDA, else the CPU), cpu, cuda, cuda:N, mps (Apple's GPUs; not yet measured). `precision`: bf16 or fp32; auto is bf16 where the hardware multiplies in it (CUDA, and
    CPUs with AMX or AVX-512's bf16) and fp32 elsewhere.
    Raises UserError for a device that is not there or a precision it lacks.
    """
    if seed < 0:
        raise UserError(f"`seed` {seed}: need 0 or more")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if precision == "auto":
        precision = "bf16" if chosen.type == "cuda" or multiplies_bf16() else "fp32"
    if chosen.type == "cuda":
        if precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise UserError(f"{torch.cuda.get_device_name(chosen)} has no bf16; use `precision` fp32")
        torch.cuda.set_device(chosen)
    store = _join("nccl" if chosen.type == "cuda" else "gloo", rank, world_size) if world_size > 1 else None
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return Runtime(chosen, torch.bfloat16 if precision == "bf16" else torch.float32, rank, world_size, store)


def _join(backend: str, rank: int, world_size: int) -> dist.Store:
    """Join the group of processes that torchrun started. After a restart its store still holds the dead ones' addresses."""
    store, _, _ = next(dist.rendezvous("env://", rank, world_size))
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    return store


@functools.cache
def multiplies_bf16() -> bool:
    """Whether this processor has instructions for products in bf16: AMX, or AVX-512's. Without them float32 is far faster."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("no mps device is visible here; use `device` cpu")
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise UserError("no CUDA device is visible here; use `device` cpu")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(f"{name}: this machine shows {torch.cuda.device_count()} CUDA device(s); lower NUM_GPUS")
    return torch.device("cuda", index)
