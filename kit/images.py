"""Image files, refused by their headers before their pixels take memory."""

from pathlib import Path

from PIL import Image

from kit.errors import UserError

MAX_PIXELS = 2**26


def open_image(path: str | Path, mode: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A decoded image in a mode of Pillow's (None: the file's own), of at most `max_pixels` pixels.

    Raises UserError for a file that is missing, no image, damaged or larger.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > max_pixels:
                raise UserError(f"{path} has {file.width}x{file.height} pixels: at most {max_pixels:,} are read here")
            file.load()
            return file.convert(mode) if mode else file.copy()
    except FileNotFoundError:
        raise UserError(f"no image at {path}") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # what a damaged file makes a decoder raise has no common class
        raise UserError(f"{path} is no readable image ({error})") from error
