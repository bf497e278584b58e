"""A build in several tasks is the build in one."""

import json
import subprocess
import sys

import pytest

from corpus.builder import BuildSettings, build
from corpus.pipeline import build_in_tasks
from kit.errors import UserError
from tests.conftest import sentences
from tests.runs import ROOT

pytest.importorskip("datatrove")
SETTINGS = {"vocab_size": 300, "min_tokens": 16, "max_tokens": 64, "val_fraction": 0.1}


@pytest.fixture
def texts(tmp_path):
    """Files of several kinds; some documents come twice, in files of different tasks, and one file is empty."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(7):
        (folder / f"{index}.txt").write_text(sentences(index % 5, 60), encoding="utf-8")
    (folder / "empty.txt").touch()
    rows = [{"text": sentences(seed, 30)} for seed in (50, 51, 50)] + [{"text": sentences(1, 60)}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("tasks", [2, 11])
def test_tasks_build_what_one_process_builds(texts, tmp_path, tasks):
    """In a process of its own, as a program that starts others must be; 11 tasks are more than there are files."""
    build(BuildSettings(input=[str(texts)], **SETTINGS), tmp_path / "one")
    options = [str(part) for name, value in SETTINGS.items() for part in (f"--{name}", value)]
    command = [sys.executable, "build_pretrain_data.py", "--input", str(texts), *options, "--tasks", str(tasks)]
    done = subprocess.run(
        [*command, "--output_dir", tmp_path / "many"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert files(tmp_path / "one") == files(tmp_path / "many")
    assert json.loads((tmp_path / "many" / "stats.json").read_text())["duplicates_removed"] == 4


def test_what_cannot_be_built_in_tasks_is_refused_and_leaves_nothing(texts, tmp_path):
    for settings, tasks, message in (
        (BuildSettings(dataset_name="wikitext"), 2, "one process"),
        (BuildSettings(input=[str(texts)]), 0, "1 or more"),
        (BuildSettings(input=[str(texts)], vocab_size=300, min_tokens=100_000, max_tokens=100_000), 1, "too short"),
    ):
        with pytest.raises(UserError, match=message):
            build_in_tasks(settings, tmp_path / "out", tasks)
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
