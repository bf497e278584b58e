"""What a run that goes on may change: everything else than what is fixed is told, nothing passes in silence."""

import os
import subprocess
import textwrap

import pytest

from kit import device
from kit.errors import UserError
from kit.resume import check_resume
from tests.runs import ROOT, TWO_PROCESSES

SAVED = {"batch_size": 8, "grad_accum": 2, "world_size": 1, "lr": 1e-3, "t_mean": 1.0, "resume": None}


def check(**changes):
    check_resume({**SAVED, **changes}, SAVED, "last.pth", ("t_mean",), device.start("cpu"))


def test_what_is_fixed_is_refused_and_what_is_not_is_told(capsys):
    with pytest.raises(UserError, match=r"`t_mean` 1\.0, not 3\.0"):
        check(t_mean=3.0)
    check(lr=2e-3, resume="auto")
    assert capsys.readouterr().out == "changed since last.pth: lr 0.001 -> 0.002\n"


@pytest.mark.parametrize("changes", [{"world_size": 2}, {"batch_size": 4}, {"grad_accum": 1}])
def test_another_number_of_samples_a_step_is_refused(changes):
    with pytest.raises(UserError, match="16 samples a step"):
        check(**changes)


def test_the_same_samples_in_other_portions_are_allowed(capsys):
    check(batch_size=4, grad_accum=2, world_size=2)
    check(batch_size=16, grad_accum=1)
    assert "grad_accum 2 -> 1" in capsys.readouterr().out


PROGRAM = """
    import sys
    from contextlib import nullcontext
    import torch
    from kit import device

    exchanged = sys.argv[1] == "True"
    runtime = device.start("cpu")
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    trained = runtime.parallel(module) if exchanged else module
    x = torch.ones(4, 3) * (1 + runtime.rank)
    for accumulated in (True, False):
        with runtime.no_sync(trained) if exchanged and accumulated else nullcontext():
            trained(x).sum().backward()
    factor = 1.5 if exchanged else 1.0 + runtime.rank
    assert torch.allclose(module.weight.grad, torch.full((2, 3), 4 * 2 * factor)), module.weight.grad
    torch.optim.SGD(module.parameters(), 0.1).step()
    runtime.check_agreement(module)
    runtime.finish()
"""


@pytest.mark.parametrize("exchanged", [True, False])
def test_two_processes_average_their_gradients_or_are_found_out(exchanged, tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = [*TWO_PROCESSES, tmp_path / "program.py", str(exchanged)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if exchanged:
        assert done.returncode == 0, done.stderr[-1500:]
    else:
        assert done.returncode != 0 and "ranks hold different weights" in done.stderr
