"""What critics of reading by sight ask to see beside it: the same budget of tokens spent without any picture.

`truncate` keeps a text's first tokens. `pool` gives the language model means of token embeddings, `ratio` tokens to a vector
(arXiv 2512.03643), and `conv` what a convolution trained with the model makes of them: kernel and stride are `ratio` tokens long. All
know the model's tokenizer.
"""

from dataclasses import dataclass

from PIL import Image

from corpus.tokenizer import Tokenizer
from image_context.codecs.encoded import Encoded
from kit.errors import UserError


@dataclass(frozen=True)
class TruncateCodec:
    """The first of every `ratio` parts of a text."""

    ratio: float = 4.0
    tokenizer: Tokenizer | None = None

    name = "truncate"

    def __post_init__(self):
        check(self)

    def encode(self, text: str) -> Encoded:
        ids = self.tokenizer.encode(text)
        return Encoded([], self.tokenizer.decode(ids[: max(1, round(len(ids) / self.ratio))]))

    def decode(self, images: list[Image.Image], text: str = "") -> str:
        return text

    def visual_tokens(self, encoded: Encoded) -> int:
        return 0


@dataclass(frozen=True)
class PoolCodec:
    """The whole text, to be handed over as means of `ratio` embeddings."""

    ratio: int = 4
    tokenizer: Tokenizer | None = None

    name = "pool"
    learned = False

    def __post_init__(self):
        check(self)
        if self.ratio != int(self.ratio):
            raise UserError(f"{self.name} ratio {self.ratio}: need a whole number of tokens to a vector")

    def encode(self, text: str) -> Encoded:
        return Encoded([], text, pool=int(self.ratio), learned=self.learned)

    def decode(self, images: list[Image.Image], text: str = "") -> str:
        raise UserError(f"codec {self.name} has no decoder: its vectors are read by a model, not by an algorithm")

    def visual_tokens(self, encoded: Encoded) -> int:
        return -(-len(self.tokenizer.encode(encoded.text)) // encoded.pool)


class ConvCodec(PoolCodec):
    """The whole text, to be handed over as a learned convolution of `ratio` embeddings."""

    name = "conv"
    learned = True


def check(codec) -> None:
    """Raises UserError for a ratio below 1 or a missing tokenizer."""
    if not codec.ratio >= 1:
        raise UserError(f"{codec.name} ratio {codec.ratio}: need 1 or more")
    if codec.tokenizer is None:
        raise UserError(f"codec {codec.name} needs the model's tokenizer (tokenizer: model)")
