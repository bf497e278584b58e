"""What all tabs share: text with marks, bars, rows of pictures, and mistakes told on the page instead of a traceback."""

import functools
import re
import traceback
from collections.abc import Callable, Iterable, Sequence

import gradio
import numpy as np
import torch
from PIL import Image

from corpus.tokenizer import Tokenizer
from kit.errors import UserError, as_flags
from kit.page import data_uri, escape, text_without_folders

MAX_CHARACTERS = 4000  # of a text that a tab takes
CSS = """
.tc-row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.tc-row figure { margin: 0; flex: 1 1 15rem; max-width: 21rem } .tc-row figcaption { font-size: .85rem; opacity: .75; margin: .3rem 0 0 }
.tc-grid { display: grid; gap: 0; border: 1px solid rgba(128,128,128,.35) } .tc-grid i { display: block; aspect-ratio: 1; min-width: 0 }
.tc-grid i:hover { outline: 2px solid currentColor; outline-offset: -1px; z-index: 1 }
.tc-row img { width: 100%; image-rendering: pixelated; border: 1px solid rgba(128,128,128,.35) }
.tc-text { font-family: ui-monospace, monospace; font-size: .92rem; line-height: 1.75; white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem .2rem }
.tc-text span { border-radius: 2px } .tc-text .wrong { border-bottom: 2px solid #d55e00; background: rgba(213,94,0,.22) }
.tc-text .new { background: rgba(0,114,178,.16) }
.tc-bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .3rem .7rem; align-items: center; font-size: .92rem; max-width: 40rem }
.tc-bars div { height: .85rem; background: rgba(128,128,128,.16); border-radius: .3rem } .tc-bars div b { display: block; height: 100%; border-radius: .3rem; background: #8a8a8a }
.tc-bars .main b { background: #009e73 } .tc-note { opacity: .75; font-size: .88rem; margin: .4rem 0 }
.tc-table { border-collapse: collapse; font-size: .92rem } .tc-table td { padding: .2rem .8rem .2rem 0 !important; border: 0 !important; text-align: left }
"""


def guarded(handler: Callable) -> Callable:
    """A handler of an event: what a user can correct becomes a message on the page, anything else a traceback in the terminal."""

    @functools.wraps(handler)
    def run(*arguments):
        try:
            return handler(*arguments)
        except UserError as error:
            message = text_without_folders(as_flags(str(error)).replace("--", ""))
            raise gradio.Error(message, title="Not like this", print_exception=False) from None
        except (MemoryError, RuntimeError, ValueError, OSError) as error:
            traceback.print_exc()
            raise gradio.Error(
                f"This failed ({type(error).__name__}); the terminal says more.", print_exception=False
            ) from None

    return run


def checked(text: str | None) -> str:
    """The text of a box. Raises UserError if it is empty or long."""
    if not (text or "").strip():
        raise UserError("write some text first")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{len(text):,} characters: this page takes {MAX_CHARACTERS:,}, the command line any number")
    return text


def note(text: str) -> str:
    return f"<p class='tc-note'>{escape(text)}</p>"


def parts(tokenizer: Tokenizer, ids: torch.Tensor) -> list[str]:
    """The text of each token (N,); of a character that several tokens share, the last of them carries it."""
    ids, found, done = ids.tolist(), [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end]).rstrip("�")
        found.append(text[len(done) :])
        done = text
    return found


def marked_text(texts: Iterable[str], confidence: Iterable[float], truth: Iterable[str], wrong: Iterable[bool]) -> str:
    """Tokens' texts, the greener the surer; those that are wrong are marked, and say what was there where the pointer rests."""
    spans = []
    for text, sure, was, mark in zip(texts, confidence, truth, wrong):
        hint, style = f"{sure:.0%} sure", f"background:rgba(0,158,115,{0.32 * max(0.0, sure - 0.2) / 0.8:.2f})"
        if mark:
            spans.append(f"<span class='wrong' title='{hint}; was “{escape(was)}”'>{escape(text or '·')}</span>")
        else:
            spans.append(f"<span style='{style}' title='{hint}'>{escape(text)}</span>")
    return f"<div class='tc-text'>{''.join(spans)}</div>"


def plain_text(parts: Iterable[tuple[str, bool]]) -> str:
    """Pieces of text, those that are new shaded."""
    spans = (f"<span class='new'>{escape(t)}</span>" if new else escape(t) for t, new in parts)
    return f"<div class='tc-text'>{''.join(spans)}</div>"


def bars(values: dict[str, float], main: str) -> str:
    """Fractions as bars, `main` in color."""
    rows = (
        f"<span>{escape(name)}</span><div{' class=main' if name == main else ''}><b style='width:{value:.1%}'></b></div><span>{value:.1%}</span>"
        for name, value in values.items()
    )
    return f"<div class='tc-bars'>{''.join(rows)}</div>"


def row(figures: Iterable[str]) -> str:
    return f"<div class='tc-row'>{''.join(figures)}</div>"


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(image: np.ndarray | Image.Image, caption: str) -> str:
    """An image, uint8 (H, W, 3) or PIL's, under its caption."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return figure(f"<img src='{data_uri(image)}' alt='{escape(caption)}'>", caption)


def pixel_grid(pixels: np.ndarray, shown: np.ndarray, hints: Sequence[str], caption: str) -> str:
    """An image of few pixels, uint8 (H, W, 3), each of which says its hint (H * W) where the pointer rests; pixels that are not
    `shown` (H, W) are empty.
    """
    cells = "".join(
        f"<i style='background:rgb({r},{g},{b})' title='{escape(hint)}'></i>" if real else "<i></i>"
        for (r, g, b), real, hint in zip(pixels.reshape(-1, 3).tolist(), shown.flatten().tolist(), hints)
    )
    columns = pixels.shape[1]
    return figure(f"<div class='tc-grid' style='grid-template-columns:repeat({columns},1fr)'>{cells}</div>", caption)


def visible(text: str) -> str:
    """A token's text with what is invisible made visible."""
    return re.sub(r"[\x00-\x1f\x7f]", "�", text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣"))
