"""Pairs become chunks whose prompts are known, and equal prompts stay on one side."""

import json

import numpy as np
import pytest

from corpus.pairs import open_pairs
from kit.errors import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path):
    rows = [{"prompt": f"double {i % 700}", "answer": str(2 * (i % 700))} for i in range(1400)]
    rows[5]["answer"] = rows[705]["answer"] = "1\ud83d"  # half of a character, as truncated text has it
    return write(tmp_path / "pairs.jsonl", rows)


def test_chunks_are_prompt_answer_and_ends(file):
    pairs = open_pairs(file, 64, vocab_size=270)
    seen = []
    for part in (pairs.train, pairs.val, pairs.test):
        prompts = set()
        assert np.array_equal(part.lengths, part.given + pairs.answer_length)
        for i in range(len(part)):
            prompt, answer = part[i][: part.given[i]].tolist(), part[i][part.given[i] :]
            text = pairs.tokenizer.decode(prompt)
            assert text.startswith("double ") and text.endswith("\n")
            number = int(text.split()[1])
            assert pairs.tokenizer.decode(answer) == (str(2 * number) if number != 5 else "1?")
            assert answer[-1] == pairs.tokenizer.end_id
            prompts.add(text)
        seen.append(prompts)
        part.check(64, 270, "img_size")
    assert sum(map(len, seen)) == len(set.union(*seen)) == 700
    assert all(10 < len(part) < 70 for part in seen[1:])
    counts, neighbors = pairs.train.statistics(270)
    assert counts.sum() == pairs.train.lengths.sum() == len(neighbors) + len(pairs.train)


def test_what_is_no_pair_is_refused(file, tmp_path):
    with pytest.raises(UserError, match="only 8 fit"):
        open_pairs(file, 8, vocab_size=270)
    with pytest.raises(UserError, match=r"line 2: expected .*prompt"):
        open_pairs(write(tmp_path / "a.jsonl", [{"prompt": "a", "answer": "b"}, {"text": "c"}]), 64)
    with pytest.raises(UserError, match="too few rows"):
        open_pairs(write(tmp_path / "b.jsonl", [{"prompt": "a", "answer": "bcd" * 20}] * 3), 100, vocab_size=257)
    (tmp_path / "c.txt").write_text("a b")
    with pytest.raises(UserError, match=r"no .jsonl or .parquet file"):
        open_pairs(tmp_path / "c.txt", 64)
