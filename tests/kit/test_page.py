"""Pages carry what they show, say nothing of folders, and keep text as text."""

import pytest
from PIL import Image

from kit.page import Section, table, text_without_folders, without_folders, write_report


def test_a_report_holds_everything_and_escapes_it(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "figure.png")
    section = Section(
        "<b>", "note & more", [{"a": 0.123456, "b": None}], [tmp_path / "figure.png"], {"said": "<script>x</script>"}
    )
    write_report(
        tmp_path / "report.html",
        "title",
        {"fact": "98%"},
        [section],
        {"output_dir": str(tmp_path / "run"), "model": "JiT-Ti/4"},
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "0.1235" in page and "data:image/png;base64," in page
    assert str(tmp_path) not in page and "JiT-Ti/4" in page
    assert "src='http" not in page and "href=" not in page


@pytest.mark.parametrize(
    "value, kept",
    [
        ("/home/me/run//report", "report"), ("/home/me/my run/x.pth", "x.pth"), ("~/x/y.png", "y.png"), ("file:///home/me/x", "x"),
        ("cannot read [/srv/a/b]", "cannot read [b]"), ("JiT-Ti/4", "JiT-Ti/4"),
        ("1/2 of it", "1/2 of it"), ("http://a/b", "http://a/b"), ("runs/first", "runs/first"),
    ],
)  # fmt: skip
def test_folders_of_absolute_paths_are_left_out(value, kept):
    assert without_folders({"x": [value]}) == {"x": [kept]}


def test_so_are_those_in_a_message():
    told = text_without_folders("/tmp/a/b.png is no image (at '/tmp/a/b.png')")
    assert told == "b.png is no image (at 'b.png')"


def test_a_table_has_a_column_for_each_key():
    assert table([{"a": 1, "b": 2.0}]).count("<td>") == 2
