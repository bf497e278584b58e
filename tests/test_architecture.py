"""The house rules: which way imports point, and what may not appear in the project's text."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit import errors

ROOT = Path(__file__).parent.parent
DEPENDS_ON = {
    "kit": (),
    "corpus": ("kit",),
    "baselines": ("kit", "corpus"),
    "root": ("kit", "corpus", "baselines"),
    "tokcom": ("kit", "corpus"),
    "image_context": ("kit", "corpus"),
    "vit_cifar10": ("kit",),
    "demo": ("kit", "corpus", "baselines", "root", "tokcom", "image_context", "vit_cifar10"),
}
PAGE = {"demo", "tabs"}  # demo.py and its tabs
ROOT_MODULES = {p.stem for p in ROOT.glob("*.py")} - PAGE
FILES = [
    ROOT / name for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
]
FILES = FILES or [p for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts]


def imports(path):
    """Packages and top-level modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", DEPENDS_ON)
def test_packages_depend_one_way(package):
    """Each imports itself and what DEPENDS_ON says, of all that lies in this repository."""
    members = {"root": ROOT_MODULES, "demo": PAGE}
    everything = {*DEPENDS_ON, *ROOT_MODULES, *PAGE, "recipes", "tests"}
    own = members.get(package, {package})
    allowed = own.union(*(members.get(name, {name}) for name in DEPENDS_ON[package]))
    files = [p for p in FILES if p.suffix == ".py" and p.relative_to(ROOT).parts[0].removesuffix(".py") in own]
    assert files
    for path in files:
        beyond = set(imports(path)) & everything - allowed
        assert not beyond, path


def test_the_dependencies_have_no_circle():
    done = set()
    while rest := {name for name in DEPENDS_ON if name not in done}:
        free = {name for name in rest if set(DEPENDS_ON[name]) <= done}
        assert free, rest
        done |= free


PROGRAMS = [
    p
    for p in FILES
    if p.suffix == ".py"
    and p.parent.name not in ("kit", "tests")
    and "errors.run(main" in p.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_to_lower_when_memory_runs_out_is_a_flag_of_the_program(path, call, capsys):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert call(module, "--help") == 0
    told = errors.as_flags(getattr(module, "LESS_MEMORY", errors.LESS_MEMORY), getattr(module, "KEYS", None))
    known = capsys.readouterr().out
    assert all(flag in known for flag in re.findall(r"--\w+", told))


@pytest.mark.parametrize("name", [p.stem for p in FILES if p.parent.name == "recipes" and p.suffix == ".py"])
def test_what_a_recipe_imports_is_still_there(name):
    assert importlib.import_module(f"recipes.{name}").__doc__


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
    """But for the released checkpoints, of which there are two."""
    large = [p for p in FILES if p.exists() and p.stat().st_size > 1_000_000]
    assert {p.relative_to(ROOT).as_posix() for p in large} <= {
        f"checkpoints/{n}.safetensors" for n in ("english", "chinese")
    }
    assert all(p.stat().st_size <= 12_000_000 for p in large)


@pytest.mark.parametrize(
    "phrase",
    [
        r"mapfile|readarray",
        r"declare -A",
        r"\$\{\w+(,,|\^\^)",
        r"\|&|&>>",
        r"\brealpath\b",
        r'(?<!\+)"\$\{(resume|RESUME)\[@\]\}"',
    ],
)
def test_scripts_run_in_the_bash_of_macos(phrase):
    """Version 3.2: no newer builtins, and no empty array expanded under `set -u`."""
    for path in FILES:
        if path.suffix == ".sh":
            assert not re.search(phrase, path.read_text(encoding="utf-8")), path


def test_what_training_and_inference_import_is_in_the_smallest_requirements():
    """Every package that the root, tokcom and vit_cifar10 import, apart from what is asked for by name when it is missing."""
    optional = {"timm", "onnxruntime", "wandb", "datatrove", "mauve"}
    modules = {"backports": "backports.zstd", "PIL": "pillow"}
    required = {line.split("==")[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    for path in FILES:
        if path.suffix == ".py" and (
            (path.parent == ROOT and path.stem not in PAGE)
            or path.relative_to(ROOT).parts[0] in ("kit", "corpus", "baselines", "tokcom", "vit_cifar10")
        ):
            outside = set(imports(path)) - sys.stdlib_module_names - {*DEPENDS_ON, *ROOT_MODULES} - optional
            assert {modules.get(name, name) for name in outside} <= required, path
