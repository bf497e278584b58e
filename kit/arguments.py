"""Command lines: one form of --help for every program, and the arguments that many of them share."""

import argparse
import math
import os
import sys
from typing import NoReturn

from kit.device import PRECISIONS

INT64 = 2**63

COMMON = {
    "device": (("--device",), {"default": "auto", "help": "auto, cpu, cuda, cuda:N, mps"}),
    "precision": (
        ("--precision",),
        {"default": "auto", "choices": PRECISIONS, "help": "of matrix products; auto is bf16 where the hardware multiplies in it"},
    ),
    "seed": (("--seed",), {"type": int, "default": 0, "help": "of every random number"}),
    "resume": (("--resume",), {"metavar": "PATH|auto", "help": "continue from a checkpoint, or from last.pth of --output_dir"}),
    "wandb": (
        ("--wandb", "--wandb_project"),
        {"metavar": "PROJECT", "help": "also log to this Weights & Biases project, offline without a network"},
    ),
    "num_workers": (
        ("--num_workers",), {"type": "workers", "default": 0, "help": "loader processes, at most as many as processors"}
    ),
    "save_steps": (("--save_steps",), {"type": int, "default": 500, "help": "write last.pth every this many steps"}),
    "log_interval": (("--log_interval",), {"type": int, "default": 20, "help": "write the log every this many steps"}),
    "compile": (
        ("--compile",),
        {"action": argparse.BooleanOptionalAction, "default": False, "help": "torch.compile the network"},
    ),
    "overwrite": (
        ("--overwrite",),
        {"action": argparse.BooleanOptionalAction, "default": False, "help": "replace what an earlier call left in --output_dir"},
    ),
}  # fmt: skip


def program(description: str) -> argparse.ArgumentParser:
    """A parser whose --help prints the description as it is and every argument's default.

    What it cannot accept is told in one line. Of all programs, a float is finite and an integer fits 64 bits.
    """
    parser = _Parser(description=description, formatter_class=_Help)
    parser.register("type", int, _int64)
    parser.register("type", float, _finite)
    parser.register("type", "workers", _workers)
    return parser


def add_common(parser, *names: str, **defaults) -> None:
    """Add those of COMMON to a parser or a group of it; `defaults` replace theirs."""
    for name in names:
        flags, options = COMMON[name]
        parser.add_argument(*flags, **options | ({"default": defaults[name]} if name in defaults else {}))


def _int64(text: str) -> int:
    value = int(text)
    if not -INT64 <= value < INT64:
        raise argparse.ArgumentTypeError(f"{text[:40]} does not fit 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: need a finite number")
    return value


def _workers(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: need 0 or more")
    return min(value, os.cpu_count() or 1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (--help lists all arguments)", file=sys.stderr, flush=True)
        sys.exit(2)


class _Help(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        told = (
            "default:" in text
            or action.default in (None, argparse.SUPPRESS)
            or (action.nargs == 0 and not action.default)
        )
        return text if told else f"{text} (default: %(default)s)"
