"""Mistakes that a user can mend, told in one line."""

import errno
import sqlite3
import sys

import torch
from tqdm import tqdm

OUT_OF_MEMORY = (
    "out of memory: lower --batch_size (raise --grad_accum to keep the step) or --img_size, or take a smaller model"
)


class UserError(Exception):
    """What is wrong and what to do, in one line. An entry point prints it and exits with code 2."""


def run(main) -> None:
    """Call `main()`; print one line and exit with code 2 for what a user can mend.

    That is: a UserError, memory that runs out (names the flags to lower), a full disk. Anything else is a bug and
    keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        _leave(str(error))
    except (torch.OutOfMemoryError, MemoryError):
        _leave(OUT_OF_MEMORY)
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        _leave(OUT_OF_MEMORY)
    except sqlite3.OperationalError as error:
        _leave(f"cannot write the build's temporary files ({error}): free some disk space and run again")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _leave(f"disk full while writing {error.filename or 'a file'}: free some space and run again")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            _leave(f"no permission for {error.filename or 'a file'}: {error.strerror}")
        raise


def _leave(message: str) -> None:
    for bar in list(getattr(tqdm, "_instances", ())):  # a bar left open would share its line with the message
        bar.close()
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)
