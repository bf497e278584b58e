"""Checkpoints are whole or absent, and loading one never runs code."""

import os
import pickle
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from kit.checkpoint import BackgroundWriter, build_fitting, load_checkpoint, load_weights, resume_path, save_checkpoint
from kit.errors import UserError
from tests.runs import ROOT, same_tensors

GOOD = {"model_state_dict": {"w": torch.arange(4.0)}, "config": {"seed": 1}}


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_what_was_saved_comes_back(tmp_path):
    save_checkpoint(tmp_path / "a.pth", GOOD)
    state = load_checkpoint(tmp_path / "a.pth")
    assert torch.equal(state["model_state_dict"]["w"], torch.arange(4.0)) and state["config"] == {"seed": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_checkpoint_written_in_the_background_holds_what_was_there_when_it_was_asked_for(tmp_path):
    weights, writer = torch.zeros(1000, 1000), BackgroundWriter()
    for step in range(3):
        weights.fill_(step)
        writer.save(
            tmp_path / f"{step}.pth", {"model_state_dict": {"w": weights}, "config": {}, "list": [weights, step]}
        )
        weights.fill_(-1)
    writer.wait()
    for step in range(3):
        state = load_checkpoint(tmp_path / f"{step}.pth")
        assert (state["model_state_dict"]["w"] == step).all() and (state["list"][0] == step).all()


def test_a_folder_that_was_removed_is_not_called_a_full_disk(tmp_path, monkeypatch):
    replace = os.replace

    def removed(source, target):
        shutil.rmtree(tmp_path / "run")
        replace(source, target)

    monkeypatch.setattr(os, "replace", removed)
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="its folder was removed"):
        save_checkpoint(tmp_path / "run" / "a.pth", GOOD)


def test_a_folder_that_was_removed_is_not_made_anew(tmp_path):
    writer = BackgroundWriter()
    writer.save(tmp_path / "run" / "a.pth", GOOD)
    with pytest.raises(UserError, match="its folder was removed"):
        writer.wait()
    assert not (tmp_path / "run").exists()


def test_a_background_write_that_failed_is_told_at_the_next_call(tmp_path):
    (tmp_path / "file").touch()
    writer = BackgroundWriter()
    writer.save(tmp_path / "file" / "a.pth", GOOD)
    with pytest.raises(UserError, match="cannot write"):
        writer.wait()
    writer.wait()  # told once


@pytest.mark.parametrize("keep", [0, 10, 400, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "a.pth"
    save_checkpoint(path, GOOD)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    if protocol == "torch":
        torch.save({**GOOD, "config": Evil()}, "evil.pth")
    else:
        (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match=r"not loaded|no checkpoint"):
        load_checkpoint("evil.pth")
    assert not (tmp_path / "pwned").exists()


def test_other_files_are_refused(tmp_path):
    torch.save({"something": 1}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="lacks model_state_dict, config"):
        load_checkpoint(tmp_path / "other.pth")
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "absent.pth")


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    """A file-size limit stands in for the full disk: the write fails half-way in the same place."""
    path = tmp_path / "a.pth"
    save_checkpoint(path, GOOD)
    program = f"""
import torch
from kit.checkpoint import save_checkpoint
from kit.errors import run
run(lambda: save_checkpoint({str(path)!r}, {{"model_state_dict": {{"w": torch.zeros(200_000)}}, "config": {{}}}}))
"""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run([sys.executable, "-c", program], preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "keeps its previous content" in done.stderr
    assert torch.equal(load_checkpoint(path)["model_state_dict"]["w"], torch.arange(4.0))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_resume_that_finds_nothing_fails_and_a_fresh_start_spares_an_old_run(tmp_path):
    assert resume_path(None, tmp_path) is None
    for asked in ("auto", str(tmp_path / "x.pth")):
        with pytest.raises(UserError, match="there is no"):
            resume_path(asked, tmp_path)
    save_checkpoint(tmp_path / "last.pth", GOOD)
    assert resume_path("auto", tmp_path) == tmp_path / "last.pth"
    with pytest.raises(UserError, match="already holds a run"):
        resume_path(None, tmp_path)


def test_a_resume_does_not_overwrite_another_run(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_checkpoint(tmp_path / name / "last.pth", GOOD)
    with pytest.raises(UserError, match="holds another run"):
        resume_path(str(tmp_path / "one" / "last.pth"), tmp_path / "two")
    assert resume_path(str(tmp_path / "one" / "last.pth"), tmp_path / "three") == tmp_path / "one" / "last.pth"


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"weight is \(3, 2\), not \(2, 2\)"):
        load_weights(nn.Linear(2, 2), nn.Linear(2, 3).state_dict(), "x.pth")
    with pytest.raises(UserError, match="bias is missing"):
        load_weights(nn.Linear(2, 2), nn.Linear(2, 2, bias=False).state_dict(), "x.pth")


def test_what_is_built_for_a_file_has_its_weights_and_its_constants():
    def build():
        module = nn.Linear(3, 2)
        module.register_buffer("angles", torch.arange(4) / 3, persistent=False)
        return module

    module = build()
    built = build_fitting(build, module.state_dict(), "a file")
    assert built.angles.equal(module.angles) and same_tensors(built.state_dict(), module.state_dict())
    with pytest.raises(UserError, match="a file is damaged: no model has 100000000000 positions"):
        build_fitting(lambda: torch.arange(10**11), {}, "a file")


def test_a_checkpoint_is_read_without_the_compiler():
    """Whose import takes seconds, of which a first command has few."""
    code = "import sys, torch, pretrained; pretrained.load_pretrained('english', torch.device('cpu')); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
