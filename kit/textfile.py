"""UTF-8 files read and written to the letter: no line end, mark or byte is changed on the way."""

from pathlib import Path

from kit.errors import UserError
from kit.whole import whole


def read_text(path: str | Path) -> str:
    """The text of a file. Raises UserError where there is none or it is not UTF-8."""
    if Path(path).exists() and not Path(path).is_file():  # a device may have no end, a pipe no beginning
        raise UserError(f"{path} is no file")
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason})") from error


def write_text(path: str | Path, text: str) -> None:
    """Raises UserError where the file cannot be written; it is then what it was."""
    try:
        replace_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def replace_text(path: str | Path, text: str) -> None:
    """Write a file of the program's own through a temporary one, so that a reader never sees half of it."""
    with whole(path) as partial:
        partial.write_bytes(text.encode(errors="backslashreplace"))  # names of files may hold what UTF-8 does not
