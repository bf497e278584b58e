"""Plain text: what the other codecs are measured against."""

from dataclasses import dataclass

from PIL import Image

from image_context.codecs.encoded import Encoded


@dataclass(frozen=True)
class TextCodec:
    """No image; the text goes to the model as it is."""

    name = "text"

    def encode(self, text: str) -> Encoded:
        return Encoded([], text)

    def decode(self, images: list[Image.Image], text: str = "") -> str:
        return text

    def visual_tokens(self, encoded: Encoded) -> int:
        return 0
