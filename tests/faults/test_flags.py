"""Every flag of every program with values it should not have: done, or refused in one line, soon, with little memory.

./test.sh -m faults        # FLAG_CASES=2000 in all
"""

import argparse
import contextlib
import importlib
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import pytest

from kit import errors
from tests.faults.programs import NAMES, programs  # noqa: F401

CASES = int(os.environ.get("FLAG_CASES", "2000"))
LIMIT, MEMORY = 20, 4 << 30  # seconds and bytes of a case, most of both the libraries'
VALUES = (
    "", " ", "nan", "inf", "-inf", "-1", "0", "1", "2", "1e999", "1e-320", "99999999999999999999", "9223372036854775807", "2147483648", "-0.5", "1.5",
    "abc", "True", "a" * 300, "/" + "a/" * 3000, "..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "/none/none", "\udcff", "ÄÖ漢字", "--seed",
    "0x10", "1_000", "1,2", "[]", "{}", "None", "3" * 5000,
)  # fmt: skip
pytestmark = pytest.mark.faults


def module_of(command: list[str]):
    name = command[2] if command[1] == "-m" else command[1].removesuffix(".py")
    return importlib.import_module(name), command[3 if command[1] == "-m" else 2 :]


def flags_of(module) -> list[argparse.Action]:
    """The options of a program, from the parser it builds, without --compile, which takes its minute."""
    caught = []

    def catch(parser, *args, **kwargs):
        caught.append(parser)
        raise SystemExit

    parse = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = catch
    sys.argv = [module.__file__]
    try:
        with contextlib.suppress(SystemExit):
            module.main()
    finally:
        argparse.ArgumentParser.parse_args = parse
    return [
        action for action in caught[-1]._actions if action.option_strings and action.dest not in ("help", "compile")
    ]


def case_of(flags: list[argparse.Action], rng: random.Random) -> list[str]:
    """One or two flags with values drawn at random."""
    found = []
    for action in rng.sample(flags, rng.choice((1, 1, 1, 2))):
        count = 0 if action.nargs == 0 else rng.choice((1, 1, 1, 3)) if action.nargs in ("+", "*") else 1
        found += [rng.choice(action.option_strings), *(rng.choice(VALUES) for _ in range(count))]
    return found


def outcome(module, arguments: list[str], said: Path) -> tuple[str, int]:
    """How a run in a child process ended: "fine", "traceback", "hang" or "wrong", and the most memory it held."""
    child = os.fork()
    if not child:
        with open(said, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace", closefd=False) for number in (1, 2))
        signal.alarm(LIMIT)
        code = 1
        try:
            sys.argv = [module.__file__, *arguments]
            errors.run(module.main, getattr(module, "LESS_MEMORY", errors.LESS_MEMORY), getattr(module, "KEYS", None))
            code = 0
        except SystemExit as leaving:
            code = leaving.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(code if isinstance(code, int) else 1)
    _, status, usage = os.wait4(child, 0)
    text = said.read_text(errors="replace")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return "hang", usage.ru_maxrss * 1024
    if "Traceback (most recent call last)" in text:
        return "traceback", usage.ru_maxrss * 1024
    code = os.waitstatus_to_exitcode(status)
    lines = [line for line in text.replace("\r", "\n").splitlines() if "error: " in line]
    return "fine" if code == 0 or (code == 2 and len(lines) == 1) else "wrong", usage.ru_maxrss * 1024


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_taken_or_refused(programs, record, tmp_path, monkeypatch, name):  # noqa: F811
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rng = random.Random(name)
    module, _ = module_of(programs[name](tmp_path / "none"))
    flags, counts, failures = flags_of(module), {"tracebacks": 0, "hangs": 0, "wrong": 0}, []
    plural = {"traceback": "tracebacks", "hang": "hangs", "wrong": "wrong"}
    tried = max(1, CASES // len(NAMES))
    for number in range(tried):
        output = tmp_path / str(number)
        output.mkdir()
        case = case_of(flags, rng)
        _, arguments = module_of(programs[name](output))
        monkeypatch.chdir(output)
        found, memory = outcome(module, [*arguments, *case], tmp_path / "said.txt")
        if found == "fine" and memory > MEMORY:
            found = "wrong"
        if found != "fine":
            counts[plural[found]] += 1
            failures.append((case, found, (tmp_path / "said.txt").read_text(errors="replace")[-600:]))
    record("flags", name, tried=tried, **counts)
    assert not failures, failures
