"""Checkpoints: one file of plain dicts and tensors, written atomically, loaded without running code from it.

What a file says is believed only after it was checked: its parts against the checksums that the archive carries, its settings against
a schema, its sizes against the tensors that are there, before anything is built by them.
"""

import os
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError, create_model
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kit.errors import UserError
from kit.released import SUFFIX, load_released

MOST_CONSTANTS = 2**24  # numbers in a table that a module computes when it is built, such as angles of positions
LAST = "last.pth"
BEST = "best_model.pth"


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write `state` to `path` so that the file is either the old one or the whole new one.

    Raises UserError if the disk is full or the folder cannot be written; the old file is then untouched. A folder that is gone is not
    made anew, lest a run go on whose log and settings went with it.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as either
        with suppress(OSError):
            partial.unlink()
        kept = f"; {path} keeps its previous content" if path.exists() else ""
        advice = "free some disk space"
        if isinstance(error, FileNotFoundError):
            advice = "its folder was removed, or never made"
        elif isinstance(error, PermissionError):
            advice = "choose a folder that can be written"
        raise UserError(f"cannot write {path} ({_first_line(error)}): {advice}{kept}") from error


class BackgroundWriter:
    """Writes checkpoints as `save_checkpoint` does, in a thread, one after another, while training goes on.

    A write that failed raises its error at the next `save` or `wait`.
    """

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, path: str | Path, state: dict) -> None:
        """Begin to write a copy of `state`, once what was begun before is written."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(path, _copied(state)))
        self._thread.start()

    def wait(self) -> None:
        """Until everything is written."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _write(self, path: str | Path, state: dict) -> None:
        try:
            save_checkpoint(path, state)
        except Exception as error:  # raised where somebody listens
            self._error = error


def _copied(value):
    """Nested dicts and lists with copies, on the CPU, of their tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value


def load_checkpoint(path: str | Path, required: tuple = ("model_state_dict", "config")) -> dict:
    """Read a checkpoint onto the CPU with `weights_only=True`, or a released one (kit/released.py).

    Raises UserError if the file is missing, truncated, carries anything but plain data, or lacks a `required` key.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    if path.suffix == SUFFIX:
        state = load_released(path)
        if "ema_state_dict" in state:  # a released file has no other weights
            state.setdefault("model_state_dict", state["ema_state_dict"])
        return _complete(state, required, path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself compares no checksums
            if archive.testzip():
                raise zipfile.BadZipFile("a checksum differs")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged, or holds objects other than plain data; it was not loaded") from error
    except Exception as error:  # a damaged archive surfaces as RuntimeError, EOFError, KeyError, ValueError, ...
        raise UserError(f"{path} is damaged or no checkpoint ({_first_line(error)})") from error
    return _complete(state, required, path)


def _complete(state, required: tuple, path: Path) -> dict:
    missing = [key for key in required if not isinstance(state, dict) or key not in state]
    if missing == ["optimizer_state_dict"]:
        raise UserError(f"{path} holds no optimizer, only what it takes to use the model: continue from {LAST}")
    if missing:
        raise UserError(f"{path} is no checkpoint of this project: it lacks {', '.join(missing)}")
    return state


def resume_path(resume: str | None, output_dir: str | Path) -> Path | None:
    """The checkpoint to continue from: `resume` itself, or `last.pth` of `output_dir` for "auto"; None starts afresh.

    Where torchrun has started the processes again (`--max_restarts`), None continues from what is there.
    Raises UserError if a resume was asked for and nothing is there, or if a fresh start would overwrite a run.
    """
    last = Path(output_dir) / LAST
    if resume is None and last.exists() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        resume = "auto"
    if resume is None:
        if last.exists():
            raise UserError(f"{output_dir} already holds a run: pass `resume` auto, or choose another `output_dir`")
        return None
    path = last if resume == "auto" else Path(resume)
    if not path.is_file():
        raise UserError(f"`resume` {resume}: there is no {path}")
    if last.exists() and path.parent.resolve() != last.parent.resolve():
        raise UserError(f"{output_dir} holds another run than {path}: choose another `output_dir`")
    return path


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turns what goes wrong while the content of a file is taken apart into a UserError that names the file."""
    try:
        yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path} is damaged or of another version ({error})") from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"{path} is damaged or of another version ({type(error).__name__}: {_first_line(error)})"
        ) from error


def validated(kind: type, values, path: str | Path):
    """`values`, from a file, as `kind`: a pydantic model or a dataclass. Raises UserError that names what is wrong in the file."""
    form = kind
    if is_dataclass(kind):  # of which strict validation takes instances only
        form = create_model(kind.__name__, **{field.name: (field.type, field.default) for field in fields(kind)})
    try:
        checked = TypeAdapter(form).validate_python(values, strict=True)
        return checked if form is kind else kind(**checked.model_dump())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its settings"
        raise UserError(f"{path} is damaged or of another version: {place}: {first['msg']}") from error


def build_fitting(build: Callable[[], torch.nn.Module], state: dict, origin: str | Path) -> torch.nn.Module:
    """`build()` with the weights `state`; sizes are compared with the file's tensors before any memory is taken for them."""
    with _Outline(origin):
        check_fit(build(), state, origin)
    module = build()
    module.load_state_dict(state)
    return module


class _Outline(TorchFunctionMode):
    """Modules are built without memory for their weights, on the meta device, and without first values for them.

    What they compute besides, such as angles of positions, is computed on the CPU. With `torch.device("meta")` alone these, and drawing
    first values, import torch's compiler, which takes seconds.
    """

    def __init__(self, origin: str | Path):
        super().__init__()
        self.origin = origin

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.empty, torch.zeros, torch.ones):
            return function(*args, **{**kwargs, "device": "meta"})
        if function is torch.arange and max(args, default=0) > MOST_CONSTANTS:
            raise UserError(f"{self.origin} is damaged: no model has {max(args)} positions")
        first = args[0] if args else kwargs.get("tensor")
        initial = getattr(function, "__module__", None) == torch.nn.init.__name__
        drawn = function in (Tensor.normal_, Tensor.uniform_)
        if (initial or drawn) and isinstance(first, Tensor) and first.is_meta:
            return first
        return function(*args, **kwargs)


def load_weights(module: torch.nn.Module, state: dict, origin: str | Path) -> None:
    """`load_state_dict` whose every mismatch (names, shapes, numbers that are none) becomes one line that names `origin`."""
    check_fit(module, state, origin)
    module.load_state_dict(state)


def check_fit(module: torch.nn.Module, state: dict, origin: str | Path) -> None:
    """Raises UserError where `state` is not a finite tensor for each of the module's own, of its shape."""
    own = module.state_dict()
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{origin} is damaged: its weights are no tensors")
    wrong = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if wrong or missing or surplus:
        first = (wrong + [f"{k} is missing" for k in missing] + [f"{k} is not known" for k in surplus])[0]
        raise UserError(f"{origin} does not fit this model: {first} ({len(wrong + missing + surplus)} such tensors)")
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(
                f"{origin} holds numbers that are not finite, in {name}: the run that wrote it had diverged, or the file is damaged"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
