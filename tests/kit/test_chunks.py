"""Chunks become batches that cover an epoch once, with little padding, and the same way every time."""

import numpy as np
import pytest

from kit.chunks import LengthBuckets, open_built, open_chunks
from kit.errors import UserError
from tests.conftest import sentences


def test_an_epoch_shows_every_chunk_at_most_once_and_almost_all():
    lengths = np.random.default_rng(0).integers(10, 100, 1003)
    order = LengthBuckets(lengths, 10, seed=1)
    seen = [i for batch in order.epoch(0) for i in batch]
    assert order.batches_per_epoch == 100 and len(seen) == len(set(seen)) == 1000


def test_epochs_differ_and_repeat_themselves():
    order = LengthBuckets(np.arange(200), 8, seed=1)
    assert list(order.epoch(3)) == list(LengthBuckets(np.arange(200), 8, seed=1).epoch(3)) != list(order.epoch(4))
    assert list(order.epoch(3, start=7)) == list(order.epoch(3))[7:]


def test_ranks_share_an_epoch_without_overlap():
    lengths = np.random.default_rng(0).integers(10, 100, 333)
    parts = [[i for batch in LengthBuckets(lengths, 8, 5, rank, 3).epoch(2) for i in batch] for rank in range(3)]
    assert len({len(p) for p in parts}) == 1 and len(set().union(*parts)) == sum(map(len, parts))


def test_batches_hold_chunks_of_similar_length():
    lengths = np.random.default_rng(0).integers(256, 4097, 20_000)
    order = LengthBuckets(lengths, 32, seed=0)
    padded = sum(32 * lengths[batch].max() for batch in order.epoch(0))
    real = sum(lengths[batch].sum() for batch in order.epoch(0))
    assert real / padded > 0.95


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
        chunks.check(64, 290, "--img_size")


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


def test_chunks_longer_than_the_picture_are_refused(data):
    with pytest.raises(UserError, match="raise --img_size, or rebuild the data with --max_tokens 16"):
        open_built(data / "train").check(16, 300, "--img_size")


def test_too_few_chunks_for_a_batch_are_refused():
    with pytest.raises(UserError, match="lower --batch_size"):
        LengthBuckets(np.arange(5), 8, 0)


def test_an_unfinished_build_is_refused(data, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.parquet").write_bytes((data / "train" / "train-00000.parquet").read_bytes())
    with pytest.raises(UserError, match=r"unfinished build \(no stats.json\)"):
        open_raw(tmp_path / "train", tmp_path)
