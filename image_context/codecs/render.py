"""Text drawn on pages, as a person would read it. Only a model can read it back."""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

from image_context.codecs.encoded import BLOCK, Encoded, count_blocks
from kit.errors import UserError

TAB = 4  # columns
INVISIBLE = {"\u200b", "\ufeff", "\u2060"}  # zero width, nothing to draw


@dataclass(frozen=True)
class Line:
    """A drawn line: its text, and whether it goes on below because the page was too narrow."""

    text: str
    wraps: bool


@dataclass(frozen=True)
class RenderCodec:
    """Pages of `page_width` x `page_height` points (A4) at `dpi`, black on white, sides rounded to multiples of 28 pixels.

    `fonts`: font files or names of fonts that matplotlib ships; each character takes the first that has it, and a character
    that none has is an error. `font_size` and `margin` in points, `line_height` in font sizes. Lines too long are wrapped, at
    a space where there is one, and end in a gray bar in the margin, so that line breaks of the text can be told from ours.
    Pages are cut to what is drawn. Defaults after Glyph (arXiv 2510.17800).
    """

    fonts: tuple[str | Path, ...] = ("DejaVuSansMono.ttf",)
    font_size: float = 9.0
    line_height: float = 1.15
    margin: float = 10.0
    dpi: int = 72
    page_width: float = 595.0
    page_height: float = 842.0

    name = "render"

    def __post_init__(self):
        object.__setattr__(self, "fonts", tuple(map(str, self.fonts)))
        for field in ("font_size", "line_height", "dpi", "page_width", "page_height"):
            if not 0 < getattr(self, field) < 1e5:
                raise UserError(f"render {field} {getattr(self, field)}: need a positive number")
        if self.margin < 0 or not self.fonts:
            raise UserError("render needs at least one font and a margin of 0 or more")
        room = min(self._width, self._height) - 2 * self._margin
        if room < 2 * self._pixels(self.font_size):
            raise UserError(
                f"render: a margin of {self.margin} and a font of {self.font_size} leave no room on the page"
            )

    def _pixels(self, points: float) -> int:
        return max(1, round(points * self.dpi / 72))

    @property
    def _margin(self) -> int:
        return round(self.margin * self.dpi / 72)

    @property
    def _width(self) -> int:
        return max(2, round(self._pixels(self.page_width) / BLOCK)) * BLOCK

    @property
    def _height(self) -> int:
        return max(2, round(self._pixels(self.page_height) / BLOCK)) * BLOCK

    @property
    def _step(self) -> int:
        return max(1, round(self._pixels(self.font_size) * self.line_height))

    @cached_property
    def _faces(self) -> list[tuple[ImageFont.FreeTypeFont, frozenset]]:
        return [load_font(name, self._pixels(self.font_size)) for name in self.fonts]

    @cached_property
    def _advances(self) -> dict[str, tuple[int, float]]:
        return {}

    def _glyph(self, char: str) -> tuple[int, float]:
        """(number of the font, width in pixels) of a character; raises UserError if no font has it."""
        if char not in self._advances:
            number = next((i for i, (_, covered) in enumerate(self._faces) if ord(char) in covered), None)
            if number is None:
                raise UserError(
                    f"no glyph for {char!r} (U+{ord(char):04X}) in {', '.join(self.fonts)}: name a font that has it"
                )
            self._advances[char] = number, self._faces[number][0].getlength(char)
        return self._advances[char]

    def lines(self, text: str) -> list[Line]:
        """The lines that will be drawn. Joined, with a line break after each that does not wrap, they are the text."""
        room = self._width - 2 * self._margin
        found = []
        for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            line = "".join(c for c in line.expandtabs(TAB) if c not in INVISIBLE)
            start, width, space = 0, 0.0, -1
            for at, char in enumerate(line):
                advance = self._glyph(char)[1]
                if width + advance > room and at > start:
                    cut = space + 1 if space >= start and char != " " else at
                    found.append(Line(line[start:cut], wraps=True))
                    width = sum(self._glyph(c)[1] for c in line[cut:at])
                    start = cut
                width += advance
                if char == " ":
                    space = at
            found.append(Line(line[start:], wraps=False))
        return found

    def encode(self, text: str) -> Encoded:
        """Raises UserError for a character without a glyph."""
        lines = self.lines(text)
        per_page = max(1, (self._height - 2 * self._margin) // self._step)
        return Encoded([self._draw(lines[at : at + per_page]) for at in range(0, len(lines), per_page)])

    def _draw(self, lines: list[Line]) -> Image.Image:
        page = Image.new("L", (self._width, self._height), 255)
        pen = ImageDraw.Draw(page)
        ascent = max(face.getmetrics()[0] for face, _ in self._faces)
        right = 0.0
        for row, line in enumerate(lines):
            x, y = float(self._margin), self._margin + row * self._step + ascent
            for number, run in groupby(line.text, key=lambda c: self._glyph(c)[0]):
                for char in run:
                    if char != " ":
                        pen.text((x, y), char, font=self._faces[number][0], fill=0, anchor="ls")
                    x += self._glyph(char)[1]
            if line.wraps:
                pen.line([(self._width - self._margin + 2, y), (self._width - 2, y)], fill=150)
                x = self._width
            right = max(right, x)
        width = min(self._width, max(2, math.ceil((right + self._margin) / BLOCK)) * BLOCK)
        used = 2 * self._margin + len(lines) * self._step
        height = min(self._height, max(2, math.ceil(used / BLOCK)) * BLOCK)
        return page.crop((0, 0, width, height)).convert("RGB")

    def decode(self, images: list[Image.Image], text: str = "") -> str:
        raise UserError("codec render has no decoder: drawn text is read by a model, not by an algorithm")

    def visual_tokens(self, encoded: Encoded) -> int:
        return count_blocks(encoded.images)


@cache
def load_font(name: str, size: int) -> tuple[ImageFont.FreeTypeFont, frozenset]:
    """A font at `size` pixels, and the code points it has. Raises UserError if there is no such font."""
    path = Path(name)
    if not path.is_file() and path.name == name:
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    if not path.is_file():
        raise UserError(
            f"no font at {name}: name a .ttf or .otf file, or one that matplotlib ships (DejaVuSansMono.ttf)"
        )
    try:
        with TTFont(path, fontNumber=0, lazy=True) as table:
            covered = frozenset(table.getBestCmap())
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC), covered
    except (OSError, TTLibError, TypeError) as error:
        raise UserError(f"{name} is no font that can be read: {error}") from error
