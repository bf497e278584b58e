"""Schedule, EMA, device, run log and the torchvision cure."""

import itertools
import json
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from kit import device
from kit.budget import TimeBudget, parse_duration
from kit.ema import EMA
from kit.errors import UserError
from kit.randomness import step_seed
from kit.runlog import RunLog, read_log
from kit.schedule import lr_at


def test_the_learning_rate_warms_up_then_falls_to_a_hundredth():
    rates = [lr_at(step, 1.0, 10, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.505) and rates[110] == pytest.approx(0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert lr_at(500, 0.3, 10, 110, "constant") == 0.3
    assert [lr_at(step, 1.0, 10, 110, "onecycle") for step in (10, 60, 110)] == [1.0, 0.5, 0.0]


def test_ema_follows_the_weights_and_gives_them_back():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.zero_()
    ema = EMA(layer, decay=0.5)
    layer.weight.data.fill_(1.0)
    ema.update(layer)  # ramp: (1 + 0) / (10 + 0) = 0.1
    assert torch.allclose(ema.state_dict()["weight"], torch.tensor(0.9))
    with ema.applied(layer):
        assert torch.allclose(layer.weight, torch.tensor(0.9))
    assert torch.equal(layer.weight, torch.ones(1, 2))


def test_ema_goes_on_after_a_reload():
    layer = nn.Linear(3, 3)
    first = EMA(layer, 0.9)
    for _ in range(20):
        layer.weight.data.normal_()
        first.update(layer)
    second = EMA(nn.Linear(3, 3), 0.9)
    second.load_state_dict(first.state_dict(), first.updates)
    for ema in (first, second):
        ema.update(layer)
    assert all(torch.equal(first.shadow[k], second.shadow[k]) for k in first.shadow)


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "mps", "gpu"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UserError):
        device.start(name)


def test_the_log_of_a_resumed_run_reads_as_if_it_had_never_stopped(tmp_path):
    runtime = device.start("cpu")
    log = RunLog(tmp_path, {"a": 1}, runtime)
    for step in range(1, 8):
        log.log(step, loss=1.0 / step)
        log.table(step, "samples", [{"text": "a\u2028b"}])
    log.close(finished=True)
    assert (tmp_path / "finished").exists()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == list(range(1, 8))
    log = RunLog(tmp_path, {"a": 1}, runtime, resume_step=5)
    assert not (tmp_path / "finished").exists()
    log.log(6, loss=float("nan"))
    log.close(finished=False)
    assert not (tmp_path / "finished").exists()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["loss"] is None
    samples = (tmp_path / "samples.jsonl").read_text().rstrip("\n").split("\n")
    assert [json.loads(line)["step"] for line in samples] == [1, 2, 3, 4, 5]
    assert json.loads((tmp_path / "env.json").read_text())["torch"] == torch.__version__


def test_a_clock_that_is_set_back_changes_neither_the_log_nor_a_time_budget(tmp_path, monkeypatch):
    log, budget = RunLog(tmp_path, {}, device.start("cpu")), TimeBudget("1h")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86_400)
    log.log(1, loss=2.0)
    log.close(finished=True)
    assert 0 <= read_log(tmp_path / "log.jsonl")[0]["time"] < 60 and 0 <= budget.spent < 60


def test_wandb_works_offline_by_itself(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("kit.runlog._reachable", lambda host: False)
    log = RunLog(tmp_path, {}, device.start("cpu"), wandb="tokencolor-test")
    log.log(1, loss=0.5)
    log.table(1, "samples", [{"text": "a\u2028b", "found": "c"}])
    log.close(finished=True)
    assert list(tmp_path.rglob("*.wandb"))
    table = json.loads(next(tmp_path.rglob("*.table.json")).read_text())
    assert table["columns"] == ["text", "found"] and table["data"] == [["a\u2028b", "c"]]


def test_torchvision_imports_beside_a_cpu_torch():
    program = "import kit.torchvision_cpu, torch; from torchvision.transforms import v2; print(v2.Resize(4)(torch.zeros(3, 8, 8)).shape)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "torch.Size([3, 4, 4])" in done.stdout, done.stderr


def test_step_seeds_do_not_collide():
    seeds = {step_seed(0, step, micro, rank) for step in range(50) for micro in range(3) for rank in range(3)}
    assert len(seeds) == 450


def test_a_time_budget_tells_the_steps_that_fit():
    runtime = device.start("cpu")
    assert [parse_duration(text) for text in ("90", "90s", "10m", "1.5h")] == [90, 90, 600, 5400]
    budget = TimeBudget("100s", spent=50.0)
    assert budget.total_steps(2, 1000, runtime) == 1000  # too early to tell
    assert budget.total_steps(20, 1000, runtime) == 40 and budget.total_steps(20, 30, runtime) == 30
    assert TimeBudget("10s", spent=11.0).total_steps(20, 1000, runtime) == 20
    assert TimeBudget(None, spent=11.0).total_steps(20, 1000, runtime) == 1000


@pytest.mark.parametrize("text", ["", "ten", "0m", "-5s", "1d", "5 minutes", "nan"])
def test_other_durations_are_refused(text):
    with pytest.raises(UserError, match="for example 10m"):
        parse_duration(text)
