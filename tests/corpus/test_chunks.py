"""Chunks become batches that cover an epoch once, with little padding, and the same way every time."""

import json
import shutil
from itertools import islice

import numpy as np
import pytest

from corpus.chunks import LengthBuckets, open_built, open_chunks, open_test, reported
from kit.errors import UserError
from tests.conftest import sentences


def epoch(order: LengthBuckets, number: int, start: int = 0) -> list[list[int]]:
    """This device's batches of one epoch, from a step of it on."""
    steps = order.steps_per_epoch
    return list(islice(order.batches(number * steps + start), (steps - start) * (order.parts // order.world_size)))


def test_an_epoch_shows_every_chunk_at_most_once_and_almost_all():
    lengths = np.random.default_rng(0).integers(10, 100, 1003)
    order = LengthBuckets(lengths, 10, seed=1)
    seen = [i for batch in epoch(order, 0) for i in batch]
    assert order.steps_per_epoch == 100 and len(seen) == len(set(seen)) == 1000


def test_no_chunk_is_left_out_of_every_epoch():
    """Fewer steps than a window: what fills no step is drawn anew each time, and is not always the longest."""
    order = LengthBuckets(np.random.default_rng(0).integers(64, 257, 220), 32, seed=0)
    assert len({i for number in range(40) for batch in epoch(order, number) for i in batch}) == 220


def test_epochs_differ_and_repeat_themselves():
    order = LengthBuckets(np.arange(200), 8, seed=1)
    assert list(epoch(order, 3)) == list(epoch(LengthBuckets(np.arange(200), 8, seed=1), 3)) != list(epoch(order, 4))
    assert list(epoch(order, 3, start=7)) == list(epoch(order, 3))[7:]


def test_ranks_share_an_epoch_without_overlap():
    lengths = np.random.default_rng(0).integers(10, 100, 333)
    parts = [[i for batch in epoch(LengthBuckets(lengths, 8, 5, rank, 3), 2) for i in batch] for rank in range(3)]
    assert len({len(p) for p in parts}) == 1 and len(set().union(*parts)) == sum(map(len, parts))


def test_batches_hold_chunks_of_similar_length():
    lengths = np.random.default_rng(0).integers(256, 4097, 20_000)
    order = LengthBuckets(lengths, 32, seed=0)
    padded = sum(32 * lengths[batch].max() for batch in epoch(order, 0))
    real = sum(lengths[batch].sum() for batch in epoch(order, 0))
    assert real / padded > 0.95


@pytest.mark.parametrize("devices, accumulated", [(2, 1), (4, 1), (8, 1), (2, 2)])
def test_no_device_waits_for_another_that_drew_longer_chunks(devices, accumulated):
    """Efficiency of a step: what its devices compute, padding included, over what they could while the slowest does."""
    lengths = np.random.default_rng(0).integers(256, 4097, 50_000)
    orders = [LengthBuckets(lengths, 32, 0, rank, devices, accumulated) for rank in range(devices)]
    work = np.array([[32 * lengths[batch].max() for batch in epoch(order, 0)] for order in orders])
    work = work.reshape(devices, -1, accumulated).sum(2)
    assert work.sum() / (work.max(0) * devices).sum() > 0.98


def test_a_step_has_the_same_chunks_however_it_is_split():
    lengths = np.random.default_rng(0).integers(256, 4097, 5000)
    alone = LengthBuckets(lengths, 32, 0)
    for batch_size, devices, accumulated in ((16, 2, 1), (16, 1, 2), (4, 4, 2)):
        orders = [LengthBuckets(lengths, batch_size, 0, rank, devices, accumulated) for rank in range(devices)]
        assert {order.steps_per_epoch for order in orders} == {alone.steps_per_epoch}
        batches = [list(epoch(order, 1, start=3)) for order in orders]
        for step, chunks in enumerate(alone.steps(1, start=3)):
            parts = [own[step * accumulated + micro] for own in batches for micro in range(accumulated)]
            assert sorted(index for part in parts for index in part) == sorted(chunks.tolist()) and {
                len(part) for part in parts
            } == {batch_size}


def test_statistics_count_tokens_and_neighbors(data):
    chunks = open_built(data / "train")
    counts, pairs = chunks.statistics(300)
    tokens = [chunks[i].numpy() for i in range(len(chunks))]
    assert np.array_equal(counts, np.bincount(np.concatenate(tokens), minlength=300))
    expected = np.concatenate([np.stack([t[:-1], t[1:]], 1) for t in tokens])
    assert np.array_equal(
        np.unique(pairs, axis=0, return_counts=True)[1], np.unique(expected, axis=0, return_counts=True)[1]
    )
    with pytest.raises(UserError, match="outside the vocabulary of 290"):
        chunks.check(64, 290, "img_size")


def open_raw(path, build_dir, **changes):
    options = {"vocab_size": 280, "max_tokens": 64, "min_tokens": 16, "val_fraction": 0.1, "seed": 0}
    return open_chunks(str(path), build_dir, **{**options, **changes})


def test_raw_text_of_any_kind_is_built_on_the_spot(text_folder, tmp_path):
    train, val, tokenizer = open_raw(text_folder, tmp_path / "a")
    assert len(train) > len(val) > 0 and tokenizer.vocab_size == 280
    again, _, _ = open_raw(text_folder, tmp_path / "a")
    assert np.array_equal(train.lengths, again.lengths)
    (tmp_path / "one.txt").write_text(sentences(0, 300))
    alone, val, _ = open_raw(tmp_path / "one.txt", tmp_path / "b", tokenizer=tokenizer, val_fraction=0.0)
    assert len(alone) > 5 and val is None


def test_chunks_of_other_text_or_another_tokenizer_are_refused(text_folder, data, tmp_path):
    _, _, tokenizer = open_raw(text_folder, tmp_path / "a")
    with pytest.raises(UserError, match="other text or settings"):
        open_raw(text_folder, tmp_path / "a", seed=1)
    with pytest.raises(UserError, match="tokenized by another tokenizer"):
        open_raw(data / "val", tmp_path / "b", tokenizer=tokenizer)


def test_a_folder_its_train_part_and_one_shard_open_alike(data):
    lengths = [
        len(open_raw(path, data / "none")[0]) for path in (data, data / "train", data / "train" / "train-00000.parquet")
    ]
    assert len(set(lengths)) == 1


def test_a_report_reads_the_test_set_of_a_build(data, tmp_path, capsys):
    _, _, tokenizer = open_raw(data, tmp_path)
    lengths = {split: open_built(data / split).lengths.tolist() for split in ("train", "val", "test")}
    assert len(set(map(tuple, lengths.values()))) == 3
    assert open_test(str(data), tmp_path / "none", tokenizer).lengths.tolist() == lengths["test"]
    for split, expected in lengths.items():
        for path in (data / split, data / split / f"{split}-00000.parquet"):
            assert open_test(str(path), tmp_path / "none", tokenizer).lengths.tolist() == expected
    assert not capsys.readouterr().err


def test_a_build_without_test_set_is_reported_on_val_with_a_note(data, tmp_path, capsys):
    shutil.copytree(data, tmp_path / "old", ignore=lambda *_: ["test"])
    _, _, tokenizer = open_raw(data, tmp_path)
    chunks = open_test(str(tmp_path / "old"), tmp_path / "none", tokenizer)
    assert chunks.lengths.tolist() == open_built(data / "val").lengths.tolist()
    note = capsys.readouterr().err.splitlines()
    assert len(note) == 1 and note[0].startswith(f"note: {tmp_path / 'old'} has no test split")
    shutil.rmtree(tmp_path / "old" / "val")
    with pytest.raises(UserError, match="neither a test nor a validation split"):
        open_test(str(tmp_path / "old"), tmp_path / "none", tokenizer)


def test_a_report_on_raw_text_reads_all_of_it(text_folder, data, tmp_path):
    _, _, tokenizer = open_raw(data, tmp_path)
    chunks = open_test(str(text_folder), tmp_path / "built", tokenizer, min_tokens=16, max_tokens=64)
    stats = json.loads((tmp_path / "built" / "stats.json").read_text())
    assert chunks.lengths.sum() == stats["tokens"] and stats["splits"]["train"]["documents"] == 20


def test_a_report_on_nothing_or_on_another_tokenizers_chunks_is_refused(text_folder, data, tmp_path):
    _, _, other = open_raw(text_folder, tmp_path / "a")
    with pytest.raises(UserError, match="no data at"):
        open_test(str(tmp_path / "absent"), tmp_path / "b", other)
    with pytest.raises(UserError, match="tokenized by another tokenizer"):
        open_test(str(data), tmp_path / "b", other)


def test_reported_chunks_are_the_same_each_time_and_from_all_over_the_set(data):
    chunks = open_built(data / "train")
    few, more = reported(chunks, 40), reported(chunks, 80)
    assert np.array_equal(few, reported(open_built(data / "train"), 40)) and set(few) < set(more)
    assert len(set(few)) == 40 and np.array_equal(few, np.sort(few))
    assert np.histogram(few, 4, (0, len(chunks)))[0].min() > 0
    assert np.array_equal(reported(chunks, 10**6), np.arange(len(chunks)))
    long = reported(chunks, 40, min_length=50)
    assert len(long) == 40 and (chunks.lengths[long] >= 50).all()
    assert {i for i in few if chunks.lengths[i] >= 50} < set(long)
    assert not len(reported(chunks, 40, min_length=65))


def test_a_build_from_before_there_was_a_test_split_is_used_again(text_folder, tmp_path):
    train, _, _ = open_raw(text_folder, tmp_path, test_fraction=0.0)
    stats = json.loads((tmp_path / "stats.json").read_text())
    del stats["settings"]["test_fraction"]
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    again, _, _ = open_raw(text_folder, tmp_path)
    assert np.array_equal(train.lengths, again.lengths)
    with pytest.raises(UserError, match="other text or settings"):
        open_raw(text_folder, tmp_path, val_fraction=0.2)


def test_a_build_of_texts_that_have_changed_since_is_not_used_again(text_folder, tmp_path):
    """Also of as many bytes under the same names."""
    texts = shutil.copytree(text_folder, tmp_path / "texts")
    train, _, _ = open_raw(texts, tmp_path / "build")
    changed = next(path for path in sorted(texts.rglob("*.txt")) if path.stat().st_size)
    text = changed.read_bytes()
    changed.write_bytes(text.swapcase())
    with pytest.raises(UserError, match="other text or settings"):
        open_raw(texts, tmp_path / "build")
    assert np.array_equal(open_raw(tmp_path / "build", tmp_path / "none")[0].lengths, train.lengths)
    changed.write_bytes(text)
    (texts / "run.jsonl").write_text('{"step": 1}\n')  # what is new beside them is no part of the build
    open_raw(texts, tmp_path / "build")
    changed.unlink()
    with pytest.raises(UserError, match="other text or settings"):
        open_raw(texts, tmp_path / "build")


def test_chunks_longer_than_the_picture_are_refused(data):
    with pytest.raises(UserError, match="raise `img_size`, or rebuild the data with `max_tokens` 16"):
        open_built(data / "train").check(16, 300, "img_size")


def test_too_few_chunks_for_a_batch_are_refused():
    with pytest.raises(UserError, match="lower `batch_size`"):
        LengthBuckets(np.arange(5), 8, 0)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_unfinished_build_is_refused(data, tmp_path, split):
    (tmp_path / split).mkdir()
    (tmp_path / split / "a.parquet").write_bytes((data / split / f"{split}-00000.parquet").read_bytes())
    with pytest.raises(UserError, match=r"unfinished build \(no stats.json\)"):
        open_raw(tmp_path / split, tmp_path)
