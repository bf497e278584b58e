"""The run folder's record: config.json, env.json, log.jsonl (one object a line, the source of every plot), samples.jsonl, wandb;
an empty file `finished` where the run has come to its end, by which recipes tell it from one that was stopped."""

import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from kit.device import Runtime
from kit.errors import UserError
from kit.lock import FolderLock
from kit.textfile import replace_text


class RunLog:
    """Writes a run's record; on ranks other than the first every call does nothing.

    `resume_step`: the step of the checkpoint a run continues from. Lines that a killed run wrote after that step are
    dropped, so that the log reads as if the run had never stopped. `wandb`: a project name, or None for no wandb. Raises UserError
    while another process writes to the folder.
    """

    def __init__(
        self, output_dir, config: dict, runtime: Runtime, resume_step: int | None = None, wandb: str | None = None
    ):
        self.active = runtime.is_main
        self._wandb = None
        if not self.active:
            return
        self.folder = make_folder(output_dir)
        self._lock = FolderLock(self.folder)
        (self.folder / "finished").unlink(missing_ok=True)
        write_json(self.folder / "config.json", config)
        write_json(self.folder / "env.json", environment(runtime))
        for name in ("log.jsonl", "samples.jsonl"):
            _cut_after(self.folder / name, -1 if resume_step is None else resume_step)
        self._file = open(self.folder / "log.jsonl", "a", buffering=1, encoding="utf-8")
        self._start = time.monotonic()
        if wandb:
            self._wandb = _start_wandb(wandb, self.folder, config)

    def log(self, step: int, **values) -> None:
        """Append one object: step, seconds since the start, and `values` (non-finite numbers become null)."""
        if not self.active:
            return
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.monotonic() - self._start, 3), **values}) + "\n")
        if self._wandb:
            self._wandb.log(values, step=step)

    def table(self, step: int, name: str, rows: list[dict]) -> None:
        """Append a table of samples: a line of samples.jsonl for each row, and a table of wandb's."""
        if not self.active or not rows:
            return
        with open(self.folder / "samples.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": step, "table": name, **row}, ensure_ascii=False) + "\n" for row in rows)
        if self._wandb:
            import wandb

            data = [list(row.values()) for row in rows]
            self._wandb.log({name: wandb.Table(columns=list(rows[0]), data=data)}, step=step)

    def close(self, finished: bool) -> None:
        if self.active:
            if finished:
                (self.folder / "finished").touch()
            self._file.close()
            self._lock.release()
            if self._wandb:
                self._wandb.finish()


def progress_bar(
    total: int | None, description: str, initial: int = 0, unit: str = "step", active: bool = True
) -> tqdm:
    """A tqdm bar that keeps quiet on other ranks and redraws rarely where the output is a file."""
    pace = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        disable=not active,
        mininterval=pace,
        dynamic_ncols=True,
        smoothing=0.05,
    )


def read_log(path: str | Path) -> list[dict]:
    """The objects of a log.jsonl, without a last line that a killed run left half-written."""
    return [json.loads(line) for line in _lines_up_to(Path(path), math.inf)]


def make_folder(path: str | Path) -> Path:
    """The folder `path`, made if it is not there. Raises UserError if that cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create `output_dir` {path}: {error.strerror}") from error
    return path


def clear_numbered(folder: Path, pattern: str, overwrite: bool) -> None:
    """Make way for a set of numbered files, whose names `pattern` matches: what an earlier call left would pass for part of it.

    Removes such files if `overwrite`, else raises UserError.
    """
    old = sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name) and path.is_file())
    if old and not overwrite:
        raise UserError(
            f"{folder} holds {old[0].name} of an earlier call: choose another `output_dir`, or replace what is there "
            "with `overwrite`"
        )
    for path in old:
        path.unlink()


def write_json(path: str | Path, value) -> None:
    """Write indented JSON through a temporary file, so that a reader never sees half of it."""
    replace_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def environment(runtime: Runtime) -> dict:
    """Versions, commit, device and command line: what it takes to run the same again."""
    device = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else _cpu_name()
    return {
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": device,
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "world_size": runtime.world_size,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() or None


def _cut_after(path: Path, step: int) -> None:
    """Rid a file of lines of what was written after `step`."""
    if path.exists():
        replace_text(path, "".join(line + "\n" for line in _lines_up_to(path, step)))


def _lines_up_to(path: Path, step: float) -> list[str]:
    if not path.exists():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, LookupError, TypeError, RecursionError):
            continue  # the half-written last line of a killed run
    return kept


def _start_wandb(project: str, folder: Path, config: dict):
    try:
        import wandb
    except ImportError:
        raise UserError("`wandb` needs the wandb package: pip install wandb==0.31.0") from None
    mode = os.environ.get("WANDB_MODE") or ("online" if _reachable("api.wandb.ai") else "offline")
    try:
        return wandb.init(project=project, dir=str(folder), config=config, mode=mode)
    except (wandb.Error, ValueError) as error:  # pydantic's are ValueErrors
        raise UserError(f"`wandb` cannot start: {' '.join(str(error).split())[:200]}") from error


def _reachable(host: str, port: int = 443) -> bool:
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError:
        return False
    return True
