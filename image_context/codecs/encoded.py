"""What every codec gives and refuses."""

from dataclasses import dataclass, field

from PIL import Image

from kit.errors import UserError

BLOCK = 28  # pixels on a side that one visual token of Qwen2-VL covers: patches of 14, merged two by two
PAGE_PIXELS = 178_000_000  # of an image that is read, Pillow's own limit
MAX_SIDE = 64  # blocks on a side of a page that a codec lays out by itself


@dataclass
class Encoded:
    """A text ready for a model: `images` in reading order, and `text`, what travels beside them as text.

    `pool`: tokens of `text` whose embeddings make one vector, 0 = the text goes as it is; `learned`: by weights of the model's own
    instead of a mean.
    """

    images: list[Image.Image] = field(default_factory=list)
    text: str = ""
    pool: int = 0
    learned: bool = False


class DamagedCode(UserError):
    """An image whose code cannot be read whole. `text` is what is whole, `lost` how many symbols are not."""

    def __init__(self, message: str, text: str = "", lost: int = 0):
        super().__init__(message)
        self.text, self.lost = text, lost


def count_blocks(images: list[Image.Image]) -> int:
    """Visual tokens of images whose sides are multiples of 28 and that lie within the processor's limits."""
    return sum((image.width // BLOCK) * (image.height // BLOCK) for image in images)


def to_bytes(text: str) -> bytes:
    """UTF-8. Raises UserError for half of a surrogate pair, which is no character."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds half a surrogate pair at character {error.start}: no codec carries it"
        ) from None
