"""Answers count where all of them is right; a small network learns a small task."""

import json

import pytest
import torch

import answers
import train
from baselines import autoregressive
from corpus.chunks import reported
from tests.baselines.test_autoregressive import SMALL
from tests.conftest import run_main

CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The letter between two others, and a run that was trained on it for some seconds."""
    folder = tmp_path_factory.mktemp("answers")
    rows = [(f"{a} {b} {c}", b) for a in "abcdefghijkl" for b in "mnopqrst" for c in "uvwxyz"]
    text = "".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows)
    (folder / "pairs.jsonl").write_text(text)
    run_main(
        train, "--data_path", folder / "pairs.jsonl", "--pairs", "--vocab_size", 257, "--model", "JiT-Ti/4", "--img_size", 4,
        "--token_dim", 32, "--ngram", 0, "--batch_size", 32, "--lr", "3e-3", "--max_steps", 80, "--output_dir", folder / "run", *CPU,
    )  # fmt: skip
    return folder


def test_a_network_answers_what_it_was_taught(task, call, tmp_path):
    given = ("--data_path", task / "pairs.jsonl", "--pairs", "--vocab_size", 257)
    assert (
        call(autoregressive, *given, "--output_dir", tmp_path / "ar", *SMALL, "--epochs", 4, "--num_samples", 20) == 0
    )
    options = ("--checkpoint", task / "run" / "best_model.pth", "--data_path", task / "pairs.jsonl")
    assert call(answers, *options, "--autoregressive", tmp_path / "ar", "--output_dir", tmp_path, *CPU) == 0
    report = json.loads((tmp_path / "answers.json").read_text())
    found = {row["name"]: row["exact"] for row in report["rows"]}
    assert len(found) == 6 and found["1 passes of posterior"] > 0.9, found
    assert report["shown"][0]["answer"] == report["shown"][0]["prompt"].split()[1]
    assert report["answer_length"] == 2 and report["num_prompts"] > 10


def test_an_answer_has_to_be_right_and_to_end():
    truth = torch.tensor([5, 6, 0, 0])
    for found, right in (([5, 6, 0, 9], True), ([5, 6, 6, 0], False), ([5, 0, 0, 0], False), ([5, 6, 7, 8], False)):
        assert answers.same(torch.tensor(found), truth, 0) == right
    assert not answers.same(torch.tensor([5, 6]), torch.tensor([5, 6, 0]), 0)


def test_the_answer_is_not_shown_to_the_sampler(task, call, tmp_path, monkeypatch):
    seen = []

    def sample(diffusion, mask, grid, sampler, cond_mask=None, cond_tokens=None, generator=None):
        seen.append((cond_tokens * ~cond_mask).abs().sum().item())
        return torch.zeros_like(cond_tokens)

    monkeypatch.setattr("diffusion.Diffusion.sample", sample)
    options = ("--checkpoint", task / "run" / "best_model.pth", "--data_path", task / "pairs.jsonl")
    assert call(answers, *options, "--output_dir", tmp_path, *CPU) == 0
    assert seen and not any(seen)


def test_the_prompts_are_those_of_every_report(task, call, tmp_path, monkeypatch):
    """Not the first ones, which are of one kind where the file is sorted."""
    asked = []

    def draw(loaded, pairs, chosen, *others):
        asked.append((chosen, reported(pairs.test, 5)))
        return [pairs.test[i] for i in chosen]

    monkeypatch.setattr(answers, "draw", draw)
    options = ("--checkpoint", task / "run" / "best_model.pth", "--data_path", task / "pairs.jsonl", "--num_samples", 5)
    assert call(answers, *options, "--output_dir", tmp_path, *CPU) == 0
    assert all(chosen.tolist() == wanted.tolist() != list(range(5)) for chosen, wanted in asked)
