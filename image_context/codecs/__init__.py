"""Four ways to carry a text: `text`, `render`, `codebook`, `qr`, and three baselines, `truncate`, `pool` and `conv`.

Each `encode`s a text, `decode`s images and counts `visual_tokens`.
"""

from dataclasses import fields
from typing import get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from image_context.codecs.baselines import ConvCodec, PoolCodec, TruncateCodec
from image_context.codecs.codebook import CodebookCodec
from image_context.codecs.encoded import PAGE_PIXELS, DamagedCode, Encoded
from image_context.codecs.qr import QRCodec
from image_context.codecs.render import RenderCodec
from image_context.codecs.text import TextCodec
from kit.errors import UserError

CODECS = {
    codec.name: codec for codec in (TextCodec, RenderCodec, CodebookCodec, QRCodec, TruncateCodec, PoolCodec, ConvCodec)
}

__all__ = ["CODECS", "PAGE_PIXELS", "DamagedCode", "Encoded", "build_codec"]


def build_codec(name: str, **options):
    """The codec `name` with `options`, its dataclass's fields. Raises UserError for an unknown name, option or value."""
    if name not in CODECS:
        raise UserError(f"unknown codec {name!r}; choose from {', '.join(CODECS)}")
    known = [field.name for field in fields(CODECS[name])]
    for option in options:
        if option not in known:
            raise UserError(f"codec {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    hints = get_type_hints(CODECS[name])
    form = create_model(
        name, __config__=ConfigDict(arbitrary_types_allowed=True), **{option: hints[option] for option in options}
    )
    try:
        return CODECS[name](**dict(form(**options)))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"codec {name} {first['loc'][0]} {first['input']!r}: {first['msg']}") from error
