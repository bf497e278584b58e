"""The READMEs say what results/ say, and name files that exist."""

import re

import pytest

from recipes import readme_tables
from tests.runs import ROOT


@pytest.mark.parametrize("name", readme_tables.READMES)
def test_tables_have_not_drifted_from_the_results(name):
    assert readme_tables.BLOCK.search((ROOT / name).read_text(encoding="utf-8"))
    assert readme_tables.up_to_date(ROOT / name, write=False), "run python -m recipes.readme_tables"


def test_a_changed_number_is_noticed(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    changed = re.sub(r"(\| \*\*0\.\d+\*\* \| )\d", r"\g<1>1", text, count=1)
    assert changed != text
    (tmp_path / "README.md").write_text(changed, encoding="utf-8")
    assert not readme_tables.up_to_date(tmp_path / "README.md", write=False)
    readme_tables.up_to_date(tmp_path / "README.md", write=True)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", [*readme_tables.READMES, "CONTRIBUTING.md"])
def test_what_a_readme_names_exists(name):
    """Links, pictures, and files in backquotes that have a folder or a suffix of this repository."""
    path = ROOT / name
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    headings = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    links = [target for target in links if target[0] != "#" or target[1:] not in headings]
    named = re.findall(r"`((?:[\w.]+/)+[\w.]+\.(?:py|sh|json|md|yaml|png)|\w+\.(?:py|sh))`", text)
    missing = [target for target in links if not (path.parent / target).exists()]
    folders = [path.parent, *(folder for folder in path.parent.iterdir() if folder.is_dir()), ROOT]
    missing += [target for target in named if not any((folder / target).exists() for folder in folders)]
    assert not [
        target for target in missing if "NAME" not in target and not target.startswith(("checkpoints/", "outputs/"))
    ]


CHINESE = [name for name in readme_tables.READMES if name.endswith(".zh-CN.md")]
NAMES = r"TokCom|JAB Code|AdamW|Muon|WikiText-2|Euler|posterior|stochastic|JiT|GPT|CPU|QR|MSE|MFLOPs|BrierLM|nanoGPT|Transformer|pool|truncate|digits|raster|nats|exact|pt|px|M\b"


@pytest.mark.parametrize("name", CHINESE)
def test_no_word_of_a_table_is_left_in_english(name):
    for table in readme_tables.BLOCK.finditer((ROOT / name).read_text(encoding="utf-8")):
        rows = re.sub(r"^```.*?^```", "", table[0][len(table[1]) : -len(table[3])], flags=re.DOTALL | re.MULTILINE)
        for cell in re.split(r"[|\n]", rows):  # texts that a model wrote stay as they are
            assert not re.search("[a-z]{3}", re.sub(rf"`[^`]*`|{NAMES}", "", cell)), cell


@pytest.mark.parametrize("name", CHINESE)
def test_the_chinese_text_has_the_numbers_of_the_english(name):
    def numbers(path) -> set[str]:
        text = readme_tables.BLOCK.sub("", path.read_text(encoding="utf-8"))
        return set(re.findall(r"\d[\d,.]*\d|\d", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)))

    assert numbers(ROOT / name) <= numbers(ROOT / name.replace(".zh-CN", ""))
