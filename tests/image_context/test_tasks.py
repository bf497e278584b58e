"""Documents have the length asked for, answers are in them, and no split sees another's."""

import json
from itertools import islice, product

import pytest

from corpus.tokenizer import load_tokenizer, train_bpe
from image_context.metrics import json_exact, leaf_f1, needle_hit, score
from image_context.tasks import PLACES, SPLITS, TASKS, make_sample, plain_ids, split_of
from image_context.vlm import text_of
from kit.errors import UserError


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [128, 300, 512])
def test_a_document_has_exactly_the_tokens_asked_for(task, length, bpe):
    for seed in range(3):
        for language in ("en", "zh") if task in ("needle", "codes") and length > 200 else ("en",):
            sample = make_sample(task, length, "eval", seed, bpe, language)
            assert len(bpe.encode(sample.document)) == length == sample.length


def test_a_tokenizer_for_chinese_leaves_room_for_needles_in_few_tokens():
    chinese = train_bpe(text_of(["zh"]), 504)
    sample = make_sample("needle", 128, "eval", 0, chinese, "zh")
    assert len(chinese.encode(sample.document)) == 128 and len(sample.document) > 128
    assert list(islice(text_of(["zh"]), 50)) == list(islice(text_of(["zh"]), 50))


def test_lengths_are_exact_for_the_real_tokenizer(shared):
    qwen = load_tokenizer(shared / "tokenizers" / "qwen2.5")
    for task in TASKS:
        assert len(qwen.encode(make_sample(task, 1024, "eval", 0, qwen).document)) == 1024


def test_a_name_makes_one_sample_and_another_name_another(bpe):
    first = make_sample("json", 200, "train", 7, bpe)
    assert first == make_sample("json", 200, "train", 7, bpe)
    assert first.document != make_sample("json", 200, "train", 8, bpe).document


def test_no_document_can_be_in_both_splits(bpe):
    for split in SPLITS:
        for seed in range(40):
            assert split_of(make_sample("random", 32, split, seed, bpe).document) == split


def test_json_is_nested_and_not_guessable(bpe):
    documents = [json.loads(make_sample("json", 400, "eval", seed, bpe).document) for seed in range(20)]
    assert any(isinstance(value, dict) for document in documents for value in document.values())
    values = [value for document in documents for value in document.values() if isinstance(value, str)]
    assert len(set(values)) == len(values)


def test_needles_lie_anywhere_among_others_of_their_kind(bpe):
    positions = []
    for seed in range(30):
        sample = make_sample("needle", 300, "eval", seed, bpe)
        assert sample.document.count(sample.answer) == 1 and len(sample.distractors) == 3
        assert all(other in sample.document for other in sample.distractors)
        positions.append(sample.document.index(sample.answer) / len(sample.document))
    assert min(positions) < 0.2 and max(positions) > 0.8


def test_the_reply_to_a_needles_question_is_its_sentence_in_the_document():
    tokenizer = train_bpe(text_of(["en", "zh"]), 1008)
    for seed, language in product(range(5), ("en", "zh")):
        sample = make_sample("needle", 128, "eval", seed, tokenizer, language)
        assert sample.reply in sample.document and needle_hit(sample.reply, sample.answer, sample.distractors)
        name = next(place for place in PLACES if place in sample.question)
        assert sample.reply.count(name) == sample.document.count(name) == 1


def test_codes_go_on_where_they_are_asked_for_and_lie_anywhere(bpe):
    places, counts = [], set()
    for seed in range(30):
        sample = make_sample("codes", 200, "eval", seed, bpe)
        assert f"{sample.question.split()[-1]} {sample.answer}" in sample.document
        places.append(sample.document.index(sample.answer) / len(sample.document))
        counts.add(len(sample.answer.split()))
    assert min(places) < 0.3 and max(places) > 0.6 and counts == {1, 2, 3, 4, 5}


def test_random_tokens_are_even(bpe):
    ids = [i for seed in range(60) for i in bpe.encode(make_sample("random", 64, "train", seed, bpe).document).tolist()]
    allowed = plain_ids(bpe)
    assert set(ids) <= set(allowed)
    assert len(set(ids)) > 0.95 * len(allowed)
    assert max(ids.count(i) for i in set(ids)) < 8 * len(ids) / len(allowed)


def test_lengths_that_cannot_be_are_refused(bpe):
    with pytest.raises(UserError, match="cannot make a document of exactly 5 tokens"):
        make_sample("needle", 5, "eval", 0, bpe)
    with pytest.raises(UserError, match="no task 'sing'"):
        make_sample("sing", 50, "eval", 0, bpe)


# ----------------------------------------------------------------------------------------------------------------------
# Metrics


def test_f1_counts_typed_leaves_at_their_paths():
    truth = json.dumps({f"key{i}": i for i in range(20)})
    assert leaf_f1(truth, truth) == 1
    assert leaf_f1('{"key0": 0}', truth) == pytest.approx(2 / 21)
    assert leaf_f1('{"a": "1"}', '{"a": 1}') == 0
    assert leaf_f1('{"a": true}', '{"a": 1}') == 0
    assert leaf_f1('{"a": [1, 2]}', '{"a": [2, 1]}') == 0
    assert leaf_f1("{", truth) == 0
    assert leaf_f1('{"a": {}}', '{"a": []}') == 0


def test_exact_json_forgives_order_and_white_space_alone():
    assert json_exact('```json\n{"b": [], "a": 1}\n```', '{"a":1,"b":[]}')
    assert not json_exact('{"a": 1.0, "b": []}', '{"a": 1, "b": []}')


def test_a_dump_of_the_context_is_no_hit():
    assert needle_hit("The access code of Arles is x7k2m9q.", "x7k2m9q", ["aaaaaaa"])
    assert not needle_hit("x7k2m9q " + "words " * 40, "x7k2m9q", [])
    assert not needle_hit("x7k2m9q or aaaaaaa", "x7k2m9q", ["aaaaaaa"])
    assert not needle_hit("ax7k2m9qb", "x7k2m9q", [])


def test_error_rates_count_edits():
    values = score("random", "abxd", "abcd", [], list)
    assert values["token_error_rate"] == 0.25 and values["token_accuracy"] == 0.75 and values["exact"] == 0
    assert score("random", "bcd", "abcd", [], list)["token_accuracy"] == 0
    assert score("random", "bcd", "abcd", [], list)["char_error_rate"] == 0.25


def test_a_vlm_that_loops_is_wrong_and_nothing_worse():
    for loop in ("[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 5000):
        assert score("json", loop, '{"a": 1}', [], list)["json_f1"] == 0


def test_a_needle_is_found_in_text_without_spaces():
    for said in ("Arles的通行码是x7k2m9q。", "Code:x7k2m9q", "code=x7k2m9q", "It is **x7k2m9q**."):
        assert needle_hit(said, "x7k2m9q", ["zzz"])
    assert not needle_hit("x7k2m9qq", "x7k2m9q", []) and not needle_hit("ax7k2m9q", "x7k2m9q", [])
