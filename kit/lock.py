"""One run in a folder at a time."""

import fcntl
import os
import weakref
from pathlib import Path

from kit.errors import UserError

NAME = ".lock"


class FolderLock:
    """Holds a folder until `release`, until nobody holds the lock, or until the process ends, however it ends. Raises UserError if another process holds it."""

    def __init__(self, folder: Path):
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.release = weakref.finalize(self, os.close, descriptor)  # a run that failed in a notebook may start again
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise UserError(
                f"another run is writing to {folder}: choose another `output_dir`, or wait for it"
            ) from error
        except OSError:
            pass  # a file system without locks
