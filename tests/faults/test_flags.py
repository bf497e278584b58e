"""Every flag of every program with values it should not have: done, or refused in one line, soon, with little memory.

./test.sh -m faults        # FLAG_CASES=2000 in all
"""

import argparse
import contextlib
import importlib
import os
import random
import re
import sys
from pathlib import Path

import pytest

from tests.faults.one_case import HANG, Cases
from tests.faults.programs import NAMES, programs  # noqa: F401

CASES = int(os.environ.get("FLAG_CASES", "2000"))
MEMORY = 4 << 30  # bytes of a case, most of it the libraries'
VALUES = (
    "", " ", "nan", "inf", "-inf", "-1", "0", "1", "2", "1e999", "1e-320", "99999999999999999999", "9223372036854775807", "2147483648", "-0.5", "1.5",
    "abc", "True", "a" * 300, "/" + "a/" * 3000, "..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "/none/none", "\udcff", "ÄÖ漢字", "--seed",
    "0x10", "1_000", "1,2", "[]", "{}", "None", "3" * 5000,
)  # fmt: skip
WORKS = re.compile(r"[1-9]\d*/\d+ \[\d")  # a progress bar that has moved
pytestmark = pytest.mark.faults


def module_of(command: list[str]):
    """The module that a command line runs, and its arguments."""
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


def outcome(cases: Cases, arguments: list[str], folder: Path, said: Path) -> tuple[str, int]:
    """How a run ended: "fine", "traceback", "hang" or "wrong", and the most memory it held."""
    code, memory = cases.run(arguments, folder, said)
    text = said.read_text(errors="replace")
    if code == HANG:  # or told to work for years, and at it
        return "fine" if WORKS.search(text) else "hang", memory
    if "Traceback (most recent call last)" in text:
        return "traceback", memory
    lines = [line for line in text.replace("\r", "\n").splitlines() if "error: " in line]
    return "fine" if code == 0 or (code == 2 and len(lines) == 1) else "wrong", memory


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_taken_or_refused(programs, record, tmp_path, name):  # noqa: F811
    rng = random.Random(name)
    module, _ = module_of(programs[name](tmp_path / "none"))
    flags, counts, failures = flags_of(module), {"tracebacks": 0, "hangs": 0, "wrong": 0}, []
    plural = {"traceback": "tracebacks", "hang": "hangs", "wrong": "wrong"}
    tried, cases = max(1, CASES // len(NAMES)), Cases(module.__name__)
    for number in range(tried):
        output = tmp_path / str(number)
        output.mkdir()
        case = case_of(flags, rng)
        _, arguments = module_of(programs[name](output))
        found, memory = outcome(cases, [*arguments, *case], output, tmp_path / "said.txt")
        if found == "fine" and memory > MEMORY:
            found = "wrong"
        if found != "fine":
            counts[plural[found]] += 1
            failures.append((case, found, (tmp_path / "said.txt").read_text(errors="replace")[-600:]))
    cases.close()
    record("flags", name, tried=tried, **counts)
    assert not failures, failures
