"""Whatever is wrong with a checkpoint, it is refused in one line: nothing is computed with it, and no code in it runs."""

import copy
import gc
import pickle
import subprocess
import sys
from functools import reduce

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import inference
from kit.errors import UserError
from kit.lock import FolderLock
from pretrained import RELEASED, load_pretrained
from tests.runs import ROOT, load
from tokcom.inference import load_checkpoint as load_tokcom

CPU = torch.device("cpu")
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained / "best_model.pth"


def refuse(load_it, path, state=None):
    """The one line with which a changed file is refused."""
    if state is not None:
        torch.save(state, path)
    with pytest.raises(UserError) as told:
        load_it(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)
    return str(told.value)


def changed(state, place, value):
    """A copy of nested dicts with `value` at `place`."""
    state = copy.deepcopy(state)
    reduce(lambda part, key: part[key], place[:-1], state)[place[-1]] = value
    return state


NOT_A_NUMBER = float("nan")
ROOT_CASES = [
    (("config",), None), (("config",), []), (("config", "img_size"), 16.0), (("config", "img_size"), 10**9), (("config", "img_size"), "16"),
    (("config", "vocab_size"), -1), (("config", "vocab_size"), 10**8), (("config", "model"), "JiT-H/2"), (("config", "model"), None),
    (("config", "model"), "JiT-Ti/" + "9" * 40), (("config", "ngram"), 7), (("config", "scan"), "spiral"), (("config", "objective"), 3),
    (("config", "token_depth"), 10**9), (("config", "token_dim"), 2**40), (("palette",), None), (("palette", "slots"), [1, 2, 3]),
    (("palette", "slots"), torch.zeros(7, dtype=torch.int)), (("palette", "slots"), torch.arange(8)), (("palette", "name"), None),
    (("time_sampler",), {}), (("time_sampler", "name"), "no such"), (("time_sampler", "mean"), NOT_A_NUMBER),
    (("time_sampler", "std"), -1.0), (("time_sampler", "weight"), torch.full((64,), NOT_A_NUMBER)), (("time_sampler", "weight"), torch.full((64,), 1e30)), (("time_sampler", "density"), torch.ones(3)),
    (("ngram",), 5), (("ngram", "vocab_size"), 9), (("ngram", "gaps"), [torch.tensor([-5])] * 3), (("ngram", "counts"), []),
    (("ngram", "order"), 99), (("tokenizer",), "{"), (("tokenizer",), "null"), (("tokenizer",), "[" * 100_000), (("tokenizer",), None),
    (("ema_state_dict",), None), (("ema_state_dict",), {}), (("ema_state_dict",), {"x": 1}),
]  # fmt: skip


@pytest.mark.parametrize("place, value", ROOT_CASES, ids=[f"{'.'.join(p)}-{i}" for i, (p, _) in enumerate(ROOT_CASES)])
def test_a_field_of_the_pixels_system_is_not_trusted(checkpoint, tmp_path, place, value):
    path = tmp_path / "changed.pth"
    assert str(path) in refuse(lambda path: load_pretrained(path, CPU), path, changed(load(checkpoint), place, value))


TOKCOM_CASES = [
    (("model_args",), None), (("model_args", "hidden_size"), 2**40), (("model_args", "num_hidden_layers"), 10**9),
    (("model_args", "hidden_size"), "48"), (("model_args", "chunk_size"), -4), (("model_args", "vocab_size"), 10**8),
    (("model_args", "num_attention_heads"), 0), (("config",), 1), (("config", "noise_std"), NOT_A_NUMBER), (("config", "noise_std"), "1"),
    (("times",), None), (("times", "std"), 0.0), (("tokenizer",), "{}"), (("vae_model_state_dict",), []),
]  # fmt: skip


@pytest.mark.parametrize(
    "place, value", TOKCOM_CASES, ids=[f"{'.'.join(p)}-{i}" for i, (p, _) in enumerate(TOKCOM_CASES)]
)
def test_a_field_of_tokcom_is_not_trusted(tokcom_checkpoint, tmp_path, place, value):
    state = load(tokcom_checkpoint)
    path = tmp_path / "changed.pt"
    assert str(path) in refuse(load_tokcom, path, changed(state, place, value))


def test_weights_that_are_no_numbers_are_refused(checkpoint, tmp_path):
    state = load(checkpoint)
    for name in ("head.bias", next(iter(state["ema_state_dict"]))):
        broken = copy.deepcopy(state)
        broken["ema_state_dict"][name].view(-1)[-1] = torch.inf
        assert "not finite" in refuse(lambda path: load_pretrained(path, CPU), tmp_path / "changed.pth", broken)


@QUICK
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(checkpoint, tmp_path, place, bit):
    """Or it lies where nothing is read, and every tensor is the same."""
    raw = bytearray(checkpoint.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 1 << bit
    path = tmp_path / "flipped.pth"
    path.write_bytes(raw)
    try:
        found = load_pretrained(path, CPU)
    except UserError:
        return
    whole = load_pretrained(checkpoint, CPU)
    for a, b in zip(found.diffusion.network.state_dict().values(), whole.diffusion.network.state_dict().values()):
        assert torch.equal(a, b)


@QUICK
@given(place=st.floats(0, 0.999))
def test_a_file_cut_short_is_refused(checkpoint, tmp_path, place):
    raw = checkpoint.read_bytes()
    path = tmp_path / "short.pth"
    path.write_bytes(raw[: int(place * len(raw))])
    assert "damaged" in refuse(lambda path: load_pretrained(path, CPU), path)


class Canary:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_runs_from_a_file(checkpoint, tmp_path):
    canary, path = tmp_path / "ran", tmp_path / "evil.pth"
    refuse(lambda path: load_pretrained(path, CPU), path, load(checkpoint) | {"step": Canary(canary)})
    refuse(load_tokcom, path, {"stage": Canary(canary)})
    path.write_bytes(pickle.dumps(Canary(canary)))
    refuse(lambda path: load_pretrained(path, CPU), path)
    assert not canary.exists()


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.95])
def test_a_released_file_with_a_flipped_bit_in_what_is_packed_is_refused(tmp_path, place):
    raw = bytearray((RELEASED / "english.safetensors").read_bytes())
    raw[int(place * len(raw))] ^= 16
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(raw)
    assert "damaged" in refuse(lambda path: load_pretrained(path, CPU), path)


def test_a_program_says_so_in_one_line(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(b"PK\x03\x04 no archive")
    done = subprocess.run(
        [sys.executable, "inference.py", "--checkpoint", path, "--mode", "generate"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_numbers_that_are_none_are_refused_by_every_flag(refused):
    assert "need a finite number" in refused(inference, "--temperature", "nan")
    assert "does not fit 64 bits" in refused(inference, "--seed", str(10**30))
    assert "invalid int value" in refused(inference, "--seed", "4.5")


def test_two_runs_do_not_share_a_folder(tmp_path):
    hold = "import sys; from pathlib import Path; from kit.lock import FolderLock; lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is writing"):
            FolderLock(tmp_path)
        other.kill()
    FolderLock(tmp_path).release()


def test_a_run_that_failed_lets_its_folder_go(tmp_path):
    def fail():
        lock = FolderLock(tmp_path)
        raise UserError(f"{lock}")

    with pytest.raises(UserError):
        fail()
    gc.collect()
    FolderLock(tmp_path).release()
