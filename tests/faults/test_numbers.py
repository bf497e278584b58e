"""Numbers that are none, and numbers at the edge of what they may be.

./test.sh -m faults
"""

import itertools
import json
import math

import pytest
import torch

import inference
from pretrained import load_pretrained
from tests.conftest import SENTENCE
from tests.faults.trainers import TRAINERS, logged
from tests.runs import load, same_tensors
from tokcom import inference as tokcom_inference

pytestmark = pytest.mark.faults
POISONED = 7  # the step whose gradients are harmed
SHORTER = {
    "train.py": ("--max_steps", 20, "--ngram", 0), "tokcom.train": ("--vae_epochs", 2, "--diffusion_epochs", 1), "vit_cifar10.train": ("--epochs", 3),
}  # fmt: skip


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("trainer", TRAINERS, indirect=True)
def test_a_step_that_breaks_is_named_and_the_run_goes_on_from_before(
    trainer, call, refused, record, tmp_path, monkeypatch, factor
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    for folder in (whole, run):
        trainer.prepare(folder)
    arguments = (trainer.module, *trainer.arguments, *SHORTER.get(trainer.name, ()), "--output_dir")
    assert call(*arguments, whole) == 0
    backward, count = torch.Tensor.backward, itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.Tensor,
            "backward",
            lambda loss, *args, **kwargs: backward(loss * factor if next(count) == POISONED else loss, *args, **kwargs),
        )
        told = refused(*arguments, run)
    finite = all(torch.isfinite(value).all() for value in trainer.tensors(load(run / "last.pth")).values())
    assert call(*arguments, run, "--resume", "auto") == 0
    same = same_tensors(*(trainer.tensors(load(folder / "last.pth")) for folder in (whole, run)))
    fine = f"at step {POISONED}" in told and "last.pth" in told and finite and same and logged(run) == logged(whole)
    record("numbers", f"{trainer.name}, gradients times {factor:g}", tried=1, wrong=int(not fine))
    assert fine, (told, finite, same)


EDGES = {
    "generate": (
        ("--temperature", "1e-9"), ("--temperature", "0"), ("--temperature", "1e30"), ("--churn", "1e30", "--sampler", "euler"), ("--noise_scale", "1e30"),
        ("--noise_scale", "0", "--churn", "3", "--sampler", "heun"), ("--guidance", "1e30"), ("--guidance", "-1e30"), ("--guidance", "1e-300"),
        ("--num_tokens", "1"), ("--num_inference_steps", "1"), ("--num_inference_steps", "1", "--sampler", "posterior"), ("--seed", str(2**63 - 1)),
    ),
    "reconstruct": (("--t", "0"), ("--t", "1e-300"), ("--t", "1e-9"), ("--t", str(1 - 2**-53)), ("--t", "1"), ("--t", "0", "--sampler", "euler")),
}  # fmt: skip


def numbers_of(file) -> dict:
    """What a program wrote; fails on numbers that JSON has not."""

    def no_number(name):
        raise AssertionError(f"{file} holds {name}")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=no_number)


@pytest.mark.parametrize(
    "edge", [(mode, flags) for mode in EDGES for flags in EDGES[mode]], ids=lambda e: " ".join((e[0], *e[1]))
)
@pytest.mark.parametrize("run", ["trained", "trained_alone"])
def test_numbers_at_the_edge_give_text_or_one_line(call, refused, request, record, tmp_path, capsys, run, edge):
    mode, flags = edge
    arguments = [
        "--checkpoint",
        request.getfixturevalue(run) / "best_model.pth",
        "--mode",
        mode,
        "--device",
        "cpu",
        *flags,
    ]
    arguments += ["--num_inference_steps", 3] if "--num_inference_steps" not in flags else []
    arguments += ["--input_text", SENTENCE] if mode == "reconstruct" else []
    code = call(inference, *arguments, "--output_dir", tmp_path / "out")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    fine = (code == 0 and not errors) or (code == 2 and len(errors) == 1)
    record("numbers", f"inference.py, {run}, {mode} {' '.join(flags)}", tried=1, wrong=int(not fine))
    assert fine, (code, errors)
    if code == 0:
        numbers_of(tmp_path / "out" / f"{mode}.json")


@pytest.mark.parametrize("amount", ["one", "full", "one too many"])
def test_texts_from_one_token_to_a_full_picture_come_back(call, trained, record, tmp_path, amount):
    loaded = load_pretrained(trained / "best_model.pth", torch.device("cpu"))
    tokens = loaded.tokenizer.encode(SENTENCE * 20)[
        : {"one": 1, "full": loaded.capacity}.get(amount, loaded.capacity + 1)
    ]
    text = loaded.tokenizer.decode(tokens)
    common = ("--checkpoint", trained / "best_model.pth", "--device", "cpu", "--output_dir")
    assert call(inference, *common, tmp_path / "in", "--mode", "encode", "--input_text", text) == 0
    read = ""
    for picture in sorted((tmp_path / "in").glob("encode_*.png")):
        assert call(inference, *common, tmp_path / picture.stem, "--mode", "decode", "--image", picture) == 0
        read += (tmp_path / picture.stem / "decode_000.txt").read_text(encoding="utf-8")
    record("numbers", f"inference.py, pictures of {amount}", tried=1, wrong=int(read != text))
    assert read == text


TOKCOM_EDGES = (
    ("generate", "--guidance", "1e30"), ("generate", "--num_steps", "1"), ("generate", "--num_chunks", "1"), ("generate", "--num_chunks", "99999"),
    ("denoise_reconstruct", "--noise_level", "0"), ("denoise_reconstruct", "--noise_level", "1"), ("denoise_reconstruct", "--noise_level", "1e-300"),
    ("conditional", "--guidance", "-1e30"), ("conditional", "--guidance", "0"), ("conditional", "--num_generate_chunks", "1"),
)  # fmt: skip


@pytest.mark.parametrize("edge", TOKCOM_EDGES, ids=" ".join)
def test_vectors_at_the_edge_give_text_or_one_line(call, tokcom_checkpoint, record, tmp_path, capsys, edge):
    mode, *flags = edge
    arguments = ["--checkpoint", tokcom_checkpoint, "--mode", mode, "--device", "cpu", *flags]
    arguments += ["--num_steps", 3] if "--num_steps" not in flags else []
    arguments += {"denoise_reconstruct": ["--input_text", SENTENCE], "conditional": ["--prompt", SENTENCE[:40]]}.get(
        mode, []
    )
    code = call(tokcom_inference, *arguments)
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error:")]
    fine = (code == 0 and not errors and "nan" not in said.out) or (code == 2 and len(errors) == 1)
    record("numbers", f"tokcom.inference, {' '.join(edge)}", tried=1, wrong=int(not fine))
    assert fine, (code, errors)
