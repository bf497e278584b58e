"""A disk that takes no more, in the middle of any write: one line, exit code 2, and what was there before is there as it was.

./test.sh -m faults        # every program at every size of the largest file, a full and a read-only disk (those as root)
"""

import io
import json
import os
import resource
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open

from tests.faults.programs import NAMES, programs  # noqa: F401
from tests.runs import ROOT, run_whole

LARGEST = (100, 1_000, 20_000, 200_000)  # bytes of a file
DISKS = (32, 512, 2048)  # kilobytes
pytestmark = pytest.mark.faults


def run(command, largest: int | None = None) -> subprocess.CompletedProcess:
    """A program that may write files up to so many bytes."""
    limit = None if largest is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, timeout=300, env=environment
    )


def in_one_line(done: subprocess.CompletedProcess) -> bool:
    """Whether a program either did its work or said in one line why not."""
    errors = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
    return done.returncode == 0 or (done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr)


def broken(folder: Path) -> list[str]:
    """Files that are not whole."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        raw = path.read_bytes()
        try:
            if path.suffix in (".json", ".ipynb"):
                json.loads(raw)
            elif path.suffix == ".jsonl":
                [
                    json.loads(line) for line in raw.splitlines()[:-1]
                ]  # the last line of a log may be half of one: readers leave it out
            elif path.suffix in (".pth", ".pt"):
                assert not zipfile.ZipFile(io.BytesIO(raw)).testzip()
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".parquet":
                parquet.read_table(path)
            elif path.suffix == ".safetensors":
                safe_open(path, "pt")
            elif path.suffix == ".html":
                assert raw.rstrip().endswith(b"</html>")
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {error!r}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_write_that_fails_is_told_in_one_line(programs, record, tmp_path, name):  # noqa: F811
    wrong = []
    for largest in LARGEST:
        output = tmp_path / str(largest)
        output.mkdir()
        done = run(programs[name](output), largest)
        if not in_one_line(done):
            wrong.append((largest, done.returncode, done.stderr[-1500:]))
        wrong += [(largest, each) for each in broken(output)]
    record("disk, file too large", name, tried=len(LARGEST), wrong=len(wrong))
    assert not wrong, wrong


@pytest.fixture
def disk(tmp_path):
    """disk(kilobytes, options): a folder on a small disk of its own."""
    folders = []

    def mount(kilobytes: int, options: str = "") -> Path:
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k{options}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a small disk")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_told_in_one_line(programs, disk, record, name):  # noqa: F811
    wrong = []
    sizes = DISKS[1:] if "train_lora" in name else DISKS  # the least of them would not hold its data
    for kilobytes in sizes:
        output = disk(kilobytes)
        done = run(programs[name](output))
        if not in_one_line(done):
            wrong.append((kilobytes, done.returncode, done.stderr[-1500:]))
        wrong += [(kilobytes, each) for each in broken(output)]
    record("disk, full", name, tried=len(sizes), wrong=len(wrong))
    assert not wrong, wrong


@pytest.mark.parametrize("name", [name for name in NAMES if "train_lora" not in name])
def test_a_read_only_folder_is_told_in_one_line(programs, disk, record, name):  # noqa: F811
    output = disk(1024, ",ro")
    done = run(programs[name](output))
    wrong = not in_one_line(done) or done.returncode == 0
    record("disk, read-only", name, tried=1, wrong=int(wrong))
    assert not wrong, done.stderr[-1500:]


@pytest.mark.parametrize("name", ["train.py", "tokcom.train", "vit_cifar10.train"])
def test_a_checkpoint_that_does_not_fit_leaves_the_former_one(programs, record, tmp_path, name):  # noqa: F811
    """A quota inside the write of a checkpoint; with room again, the run goes on."""
    longer = {
        "train.py": ["--max_steps", "8"], "tokcom.train": ["--diffusion_epochs", "2", "--save_steps", "2"],
        "vit_cifar10.train": ["--epochs", "2"],
    }[name]  # fmt: skip
    more = [*programs[name](tmp_path / "run"), *longer, "--resume", "auto"]
    run_whole(programs[name](tmp_path / "run"))
    last = tmp_path / "run" / "last.pth"
    before = last.read_bytes()
    done = run(more, len(before) // 2)
    kept = last.read_bytes() == before
    run_whole(more)
    record("disk, former checkpoint", name, tried=1, wrong=int(not kept))
    assert done.returncode == 2 and in_one_line(done) and kept
    assert last.read_bytes() != before


@pytest.mark.parametrize("name", ["train.py", "tokcom.train", "vit_cifar10.train", "image_context.train_lora"])
def test_a_folder_that_is_removed_while_running_is_told_in_one_line(programs, record, tmp_path, name):  # noqa: F811
    output = tmp_path / "run"
    command = [*programs[name](output)]
    command += {"train.py": ["--max_steps", "5000"], "tokcom.train": ["--diffusion_epochs", "200"]}.get(name, [])
    command += ["--epochs", "30"] if "vit" in name else []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (output / "log.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    shutil.rmtree(output, ignore_errors=True)
    errors = process.communicate(timeout=120)[1]
    wrong = not in_one_line(subprocess.CompletedProcess(command, process.returncode, "", errors))
    record("disk, folder removed", name, tried=1, wrong=int(wrong))
    assert not wrong, errors[-1500:]
