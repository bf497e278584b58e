"""Mistakes that a user can correct, told in one line.

Libraries name a setting in backquotes, `batch_size`; an entry point spells it as its users do: --batch_size on a command
line, or as `keys` says where settings come from a file.
"""

import errno
import re
import sqlite3
import sys
from collections.abc import Callable

import torch
from safetensors import SafetensorError
from tqdm import tqdm

LESS_MEMORY = "close other programs, or take a smaller input"


class UserError(Exception):
    """What is wrong and what to do, in one line. An entry point prints it and exits with code 2."""


def run(main: Callable[[], None], less_memory: str = LESS_MEMORY, keys: dict[str, str] | None = None) -> None:
    """Call `main()`; print one line and exit with code 2 for what a user can correct.

    That is: a UserError, memory that runs out (`less_memory` says what to change), a file that cannot be read or written. Anything
    else is a bug and keeps its traceback. `keys`: settings that are not flags of this program, and how its users spell them.
    """

    def leave(message: str) -> None:
        for bar in list(getattr(tqdm, "_instances", ())):  # a bar left open would share its line with the message
            bar.close()
        print(f"error: {as_flags(' '.join(message.split()), keys)}", file=sys.stderr, flush=True)
        sys.exit(2)

    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Outliving, streams)
    try:
        main()
    except UserError as error:
        leave(str(error))
    except (torch.OutOfMemoryError, MemoryError):
        leave(f"out of memory: {less_memory}")
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        leave(f"out of memory: {less_memory}")
    except SafetensorError as error:
        if "I/O error" not in str(error):
            raise
        leave(f"disk full while writing weights ({error}): free some space and run again")
    except sqlite3.OperationalError as error:
        leave(f"cannot write the build's temporary files ({error}): free some disk space and run again")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            leave(
                f"disk full while writing {error.filename or 'a file'} ({error.strerror}): free some space and run again"
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            leave(f"no permission for {error.filename or 'a file'}: {error.strerror}")
        if error.filename is None:
            raise
        leave(f"cannot use {str(error.filename)[:200]}: {error.strerror}")
    finally:
        sys.stdout, sys.stderr = streams


class _Outliving:
    """A stream whose reader may go away: a run whose terminal was closed still has to save."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    @staticmethod
    def _try(action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def note(message: str) -> None:
    """Tell the user something on stderr that stops nothing."""
    print(f"note: {as_flags(message)}", file=sys.stderr, flush=True)


def as_flags(message: str, keys: dict[str, str] | None = None) -> str:
    """The message with `setting` spelled --setting, or as `keys` says."""
    return re.sub(r"`(\w+)`", lambda match: (keys or {}).get(match[1], f"--{match[1]}"), message)
