"""The same seed gives the same bytes: from trainers, and from builds by any number of threads and under any hash seed.

./test.sh -m faults
"""

import os
import subprocess
import sys

import pytest

from tests.faults.test_kills import contents
from tests.faults.trainers import TRAINERS, logged
from tests.runs import ROOT, load, same_tensors

pytestmark = pytest.mark.faults


def run(command, **environment: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, **environment})


@pytest.mark.parametrize("trainer", TRAINERS, indirect=True)
def test_a_seed_gives_the_same_weights(trainer, record, tmp_path):
    found = []
    for hash_seed in ("0", "1"):
        output = tmp_path / hash_seed
        trainer.prepare(output)
        run([sys.executable, *trainer.command, "--output_dir", output], PYTHONHASHSEED=hash_seed)
        found.append((trainer.tensors(load(output / "last.pth")), logged(output)))
    (first, steps), (second, others) = found
    same = same_tensors(first, second) and steps == others
    record("same seed", trainer.name, tried=1, wrong=int(not same))
    assert same


def test_a_build_depends_on_no_thread_and_no_hash_seed(text_folder, record, tmp_path):
    truth, wrong = None, 0
    settings = [("1", "0"), ("2", "1"), ("4", "2"), ("4", "random")]
    for number, (workers, hash_seed) in enumerate(settings):
        output = tmp_path / str(number)
        command = [
            sys.executable,
            "build_pretrain_data.py",
            "--input",
            text_folder,
            "--vocab_size",
            "300",
            "--min_tokens",
            "16",
        ]
        run(
            [*command, "--max_tokens", "64", "--num_workers", workers, "--output_dir", output], PYTHONHASHSEED=hash_seed
        )
        truth = truth or contents(output)
        wrong += contents(output) != truth
    record("same seed", "build_pretrain_data.py", tried=len(settings), wrong=wrong)
    assert not wrong
