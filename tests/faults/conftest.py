"""What the whole of these tests counts is written to results/faults.json when it was run with ./test.sh -m faults."""

import fcntl
import json

import pytest

from kit.runlog import write_json
from tests.faults.trainers import trainer  # noqa: F401
from tests.runs import ROOT
from tests.vit_cifar10.conftest import images  # noqa: F401

RESULT = ROOT / "results" / "faults.json"


@pytest.fixture
def record(request, tmp_path_factory):
    """record("kills", "train.py", tried=50, differing=0): a row of the result."""

    def write(kind: str, name: str, **counts: int) -> None:
        with open(tmp_path_factory.getbasetemp().parent / "faults.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
            found.setdefault(kind, {})[name] = counts
            write_json(RESULT, {key: dict(sorted(found[key].items())) for key in sorted(found)})

    return write
