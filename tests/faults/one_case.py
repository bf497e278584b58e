"""Runs of one program, each in a process forked from a server that holds its imports and no thread.

`python -m tests.faults.one_case MODULE` is the server: a line of JSON for each run, `arguments`, `folder` and `said` (the file that takes
its output), answered by `code` and `memory`.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from kit import errors
from tests.runs import ROOT

LIMIT = 20  # seconds
HANG = -signal.SIGALRM


class Cases:
    """The server, as its client sees it. `module`: the program's name, as for python -m."""

    def __init__(self, module: str):
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.one_case", module],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def run(self, arguments: list[str], folder: Path, said: Path) -> tuple[int, int]:
        """Exit code (HANG after LIMIT seconds, minus a signal's number) of a run in `folder`, and the most bytes it held."""
        print(
            json.dumps({"arguments": arguments, "folder": str(folder), "said": str(said)}),
            file=self.server.stdin,
            flush=True,
        )
        answer = json.loads(self.server.stdout.readline())
        return answer["code"], answer["memory"]

    def close(self) -> None:
        self.server.communicate()


def serve(name: str) -> None:
    module = importlib.import_module(name)
    for line in sys.stdin:
        case = json.loads(line)
        child = os.fork()
        if not child:
            run(module, **case)
        _, status, usage = os.wait4(child, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "memory": usage.ru_maxrss * 1024}
        print(json.dumps(answer), flush=True)


def run(module, arguments: list[str], folder: str, said: str) -> None:
    """In the child: the program as its `python FILE` would run, and the end of the process."""
    os.chdir(folder)
    null, file = os.open(os.devnull, os.O_RDONLY), os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for given, number in ((null, 0), (file, 1), (file, 2)):
        os.dup2(given, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", errors="backslashreplace", closefd=False) for number in (1, 2))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
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


if __name__ == "__main__":
    serve(sys.argv[1])
