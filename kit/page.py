"""HTML without a network: reports in one file each, and pieces of pages. All text from outside is escaped."""

import base64
import html
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from kit.textfile import replace_text

ABSOLUTE = re.compile(
    r"(?:(?<=^)|(?<=[\s='\"(,\[`<]))(?:file:/*|~|[A-Za-z]:)?[/\\]+(?:[\w.\-+]+[/\\]+)*(?=[\w.\-])"
)  # its folders
STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5d6873; --line: #d9dee3; --back: #ffffff; --card: #f5f7f9; --good: #009e73; --bad: #d55e00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #98a3ae; --line: #38414a; --back: #15191d; --card: #1e242a } }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 62rem; background: var(--back); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p { margin: .3rem 0 .8rem; color: var(--soft) }
.facts { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0 }
.facts div { background: var(--card); border-radius: .5rem; padding: .6rem 1rem } .facts b { display: block; font-size: 1.35rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .28rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 600 }
img { max-width: 100%; height: auto; border-radius: .4rem; background: #fff } figure { margin: .8rem 0 }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
details pre { max-height: 30rem; overflow: auto } summary { cursor: pointer; color: var(--soft) }
"""


@dataclass
class Section:
    """A part of a report: a table (`rows`, dicts with the same keys), pictures, texts by their names, or several of these."""

    title: str
    note: str = ""
    rows: list[dict] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)


def write_report(
    path: str | Path, title: str, facts: dict[str, str], sections: Iterable[Section], settings: dict
) -> None:
    """Write a page that opens from disk and carries all it shows: the main `facts`, sections, and `settings` to fold out.

    Names of folders are left out of the settings, so that a report can be passed on.
    """
    shown = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in facts.items())
    kept = escape(json.dumps(without_folders(settings), indent=2, ensure_ascii=False))
    replace_text(
        path,
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n<div class='facts'>{shown}</div>\n"
        + "\n".join(map(_section, sections))
        + f"\n<h2>Settings and environment</h2><details><summary>show</summary><pre>{kept}</pre></details></body></html>\n",
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.note:
        parts.append(f"<p>{escape(section.note)}</p>")
    if section.rows:
        parts.append(table(section.rows))
    parts += [
        f"<figure><img src='{data_uri(Path(p).read_bytes())}' alt='{escape(Path(p).stem)}'></figure>"
        for p in section.pictures
    ]
    parts += [f"<p>{escape(name)}</p><pre>{escape(text)}</pre>" for name, text in section.texts.items()]
    return "\n".join(parts)


def table(rows: list[dict]) -> str:
    """Rows with the same keys, which are the header; numbers are rounded to four digits."""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(_number(v))}</td>" for v in row.values()) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _number(value) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def escape(text) -> str:
    return html.escape(str(text), quote=True)


def data_uri(content: bytes | Image.Image, kind: str = "png") -> str:
    """An image inside a page: the bytes of a file, or an image to be written as PNG."""
    if isinstance(content, Image.Image):
        buffer = io.BytesIO()
        content.save(buffer, "PNG")
        content = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def without_folders(value):
    """The same value with every absolute path in its strings cut to its last part."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(each) for each in value]
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).is_absolute()):
        return Path(value).name
    return text_without_folders(value) if isinstance(value, str) else value


def text_without_folders(text: str) -> str:
    """A message with the absolute paths in it cut to their last parts."""
    return ABSOLUTE.sub("", text)
