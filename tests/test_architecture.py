"""The house rules: which way imports point, and what may not appear in the project's text."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("tokcom", "image_context", "vit_cifar10")
ROOT_MODULES = {p.stem for p in ROOT.glob("*.py")}
FILES = [
    ROOT / name for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
]
FILES = FILES or [p for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts]


def imported(path):
    """Full names of the modules, or of what comes from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(path):
    """Packages and top-level modules."""
    return {name.split(".")[0] for name in imported(path)}


def python_files(folder):
    return [p for p in FILES if p.suffix == ".py" and p.is_relative_to(ROOT / folder)]


@pytest.mark.parametrize("path", python_files("kit"), ids=lambda p: p.name)
def test_kit_knows_no_room(path):
    assert not imports(path) & (ROOT_MODULES | {*ROOMS, "baselines"})


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_kit_and_themselves_only(room):
    others = (ROOT_MODULES | {*ROOMS, "baselines"}) - {room}
    for path in python_files(room):
        assert not imports(path) & others, path


def test_the_root_imports_no_room_and_of_the_baselines_only_the_classical_decoder():
    """It stands beside the network, as part of the method and in every report."""
    for path in ROOT.glob("*.py"):
        assert not imports(path) & {*ROOMS}, path
        of_baselines = [name for name in imported(path) if name.split(".")[0] == "baselines"]
        assert all(f"{name}.".startswith("baselines.ngram.") for name in of_baselines), path


def test_baselines_import_no_room_and_of_the_root_only_its_data_and_palette():
    paths = list((ROOT / "baselines").glob("*.py"))
    assert len(paths) > 2
    for path in paths:
        assert not imports(path) & {*ROOT_MODULES - {"dataset", "palette"}, *ROOMS}, path


@pytest.mark.parametrize(
    "phrase", ["trust_remote_code" + "=True", "weights_only" + "=False", "allow_pickle" + "=True", "shell" + "=True"]
)
def test_no_loading_runs_code(phrase):
    for path in FILES:
        if path.suffix in (".py", ".sh"):
            assert phrase not in path.read_text(encoding="utf-8"), path


def test_no_file_is_called_utils():
    assert not [p for p in FILES if p.stem in ("utils", "util", "common", "helpers", "misc")]


def test_no_tracked_file_is_large():
    assert not [p for p in FILES if p.exists() and p.stat().st_size > 1_000_000]
