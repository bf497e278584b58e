"""n-grams counted, smoothed and looked up, against counting and arithmetic by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from corpus import ngram_tables
from corpus.chunks import open_built
from corpus.ngram import ALL, NGram
from corpus.ngram_tables import Table, count_ngrams
from kit.errors import UserError
from tests.corpus.ngrams import likelihoods, markov_chunks, p_bigram, p_trigram, solve, stretch, tables


def test_ngrams_are_counted_inside_chunks_alone():
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 6, n) for n in (1, 7, 2, 1, 1, 3, 12, 1)]
    parts = [*stretch(*chunks[:4]), *stretch(*chunks[4:])]
    for order in (1, 2, 3):
        expected = {}
        for chunk in chunks:
            for i in range(len(chunk) - order + 1):
                key = int(sum(int(x) * 6 ** (order - 1 - j) for j, x in enumerate(chunk[i : i + order])))
                expected[key] = expected.get(key, 0) + 1
        found = count_ngrams(parts, 6, order)
        assert dict(zip(found.keys.tolist(), found.counts.tolist())) == expected
        assert found.keys.tolist() == sorted(expected)


def test_ngrams_never_cross_from_one_chunk_to_the_next():
    whole, apart = NGram([stretch([0, 1, 2, 3])], 4), NGram([stretch([0, 1], [2, 3])], 4)
    assert whole.p_bigram(*torch.tensor([ALL, 1, 2])) > 0.5 > apart.p_bigram(*torch.tensor([ALL, 1, 2]))
    assert {n: len(counted.keys) for n, counted in apart.counted.items()} == {1: 4, 2: 2, 3: 0}


@pytest.mark.parametrize("stretches", [1, 3])
def test_probabilities_sum_to_one_after_seen_and_unseen_histories(stretches):
    ngram, _ = tables(12, stretches=stretches, count=4)
    assert ngram.folds == (1 if stretches == 1 else 1 + stretches)
    for fold in range(ngram.folds):
        assert torch.allclose(ngram.log_unigram[fold].exp().sum(), torch.tensor(1.0), atol=1e-6)
        for p in (p_bigram(ngram, fold), p_trigram(ngram, fold)):
            assert torch.allclose(p.sum(-1), torch.ones(p.shape[:-1], dtype=torch.float64), atol=1e-5) and (p > 0).all()
    pairs = count_ngrams(stretch(*[c for c in markov_chunks(12, 4, 12, 0)]), 12, 2).keys
    assert 0 < len(pairs) < 144  # some histories were seen, some were not


def test_without_other_chunks_a_fold_knows_nothing():
    """All chunks of a tiny text in one part: whoever learns from them is told of none."""
    ngram = NGram([stretch([0, 1, 2, 0, 1]), []], 4)
    for p in (ngram.log_unigram[1].exp(), p_bigram(ngram, 1), p_trigram(ngram, 1)):
        assert torch.allclose(p, torch.full_like(p, 0.25))
    assert torch.allclose(p_trigram(ngram, 2), p_trigram(ngram, ALL)) and p_trigram(ngram, ALL)[0, 1, 2] > 0.3


@pytest.mark.parametrize("order", [2, 3])
def test_probabilities_follow_modified_kneser_ney(order):
    """Chen & Goodman's formulas in loops and dicts, on one fold."""
    V, chunks = 8, markov_chunks(8, 30, 14, 5)
    ngram = NGram([stretch(*chunks)], V, order)
    grams = [tuple(int(x) for x in c[i : i + n]) for n in (2, 3) for c in chunks for i in range(len(c) - n + 1)]

    def discounts(counts):
        n1, n2, n3, n4 = (max(1, sum(c == i for c in counts.values())) for i in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        raw = {1: 1 - 2 * y * n2 / n1, 2: 2 - 3 * y * n3 / n2, 3: 3 - 4 * y * n4 / n3}
        return {c: min(max(d, 0.1), c - (0.05, 0.1, 0.1)[c - 1]) for c, d in raw.items()}

    def smoothed(counts, lower):
        d = discounts(counts)

        def p(*words):
            history, total = words[:-1], sum(c for g, c in counts.items() if g[:-1] == words[:-1])
            if not total:
                return lower(*words[1:])
            taken = sum(d[min(c, 3)] for g, c in counts.items() if g[:-1] == history)
            c = counts.get(words, 0)
            return (c - d[min(c, 3)] if c else 0) / total + taken / total * lower(*words[1:])

        return p

    bigrams = {g: grams.count(g) for g in set(grams) if len(g) == 2}
    trigrams = {g: grams.count(g) for g in set(grams) if len(g) == 3}
    seen_after = {w: sum(g[1] == w for g in bigrams) for w in range(V)}
    total = sum(seen_after.values())

    def unigram(w):
        return (seen_after[w] + 0.5) / (total + 0.5 * V)

    words = range(V)
    expected = [[smoothed(bigrams, unigram)(v, w) for w in words] for v in words]
    assert torch.allclose(p_bigram(ngram, ALL), torch.tensor(expected, dtype=torch.float64), atol=1e-5)
    if order == 3:
        continuations = {}
        for g in trigrams:
            continuations[g[1:]] = continuations.get(g[1:], 0) + 1
        p = smoothed(trigrams, smoothed(continuations, unigram))
        expected = [[[p(u, v, w) for w in words] for v in words] for u in words]
        assert torch.allclose(p_trigram(ngram, ALL), torch.tensor(expected, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_a_folds_tables_are_counted_without_its_own_stretch(order):
    ngram, parts = tables(10, order, stretches=3)
    for fold in (1, 2, 3):
        others = [part for s, part in enumerate(parts, 1) if s != fold]
        expected = NGram([list(itertools.chain(*others))], 10, order)
        assert torch.allclose(ngram.log_unigram[fold], expected.log_unigram[ALL])
        assert torch.allclose(p_bigram(ngram, fold), p_bigram(expected, ALL), atol=1e-6)
        if order == 3:
            assert torch.allclose(p_trigram(ngram, fold), p_trigram(expected, ALL), atol=1e-6)
    whole = NGram([list(itertools.chain(*parts))], 10, order)
    assert torch.allclose(p_bigram(ngram, ALL), p_bigram(whole, ALL), atol=1e-6)
    assert not torch.allclose(p_bigram(ngram, 1), p_bigram(ngram, 2), atol=1e-2)


def test_the_folds_of_the_data_hold_its_chunks_once_and_each_chunk_where_it_is_said_to_be(data):
    chunks = open_built(data / "train")
    for count in (1, 2, 3):
        fold_of = chunks.fold_of(torch.arange(len(chunks)), count)
        for fold, part in enumerate(chunks.folds(count)):
            own = [chunks[i] for i in (fold_of == fold).nonzero().flatten()]
            found = [piece for tokens, first in part for piece in np.split(tokens, first[1:])]
            assert len(found) == len(own) and all(np.array_equal(a, b) for a, b in zip(found, own))
            assert len(own) == pytest.approx(len(chunks) / count, rel=0.1)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5, 3000])
def test_tables_find_what_they_hold_and_nothing_else(monkeypatch, dense, count):
    size = 50_000
    monkeypatch.setattr(ngram_tables, "DENSE_TABLE", size if dense else 1)
    rng = np.random.default_rng(count)
    keys = np.sort(rng.choice(size, count, replace=False))
    values = rng.random(count)
    expected = torch.full((size,), 0.25)
    expected[torch.from_numpy(keys)] = torch.from_numpy(values).float()
    table = Table(keys, values, size, 0.25)
    assert table.dense == dense
    asked = torch.randperm(size, generator=torch.Generator().manual_seed(0)).view(100, 5, -1)
    assert torch.equal(table(asked), expected[asked])


def test_hash_tables_hold_wide_keys_and_integers(monkeypatch):
    monkeypatch.setattr(ngram_tables, "DENSE_TABLE", 1)
    rng = np.random.default_rng(0)
    keys = np.unique(np.concatenate([rng.integers(0, 2**55, 20_000), np.arange(5000) * 2**40, np.arange(5000)]))
    table = Table(keys, np.arange(1, len(keys) + 1), 2**56)
    assert table.depth > 2  # there were collisions
    assert torch.equal(table(torch.from_numpy(keys)), torch.arange(1, len(keys) + 1, dtype=torch.int32))
    absent = torch.from_numpy(np.setdiff1d(np.concatenate([keys + 1, rng.integers(0, 2**55, 20_000)]), keys))
    assert len(absent) > 20_000 and not table(absent).any()


@pytest.mark.parametrize("order", [2, 3])
def test_hashed_and_plain_tables_give_the_same_probabilities(monkeypatch, order):
    plain, parts = tables(9, order, stretches=2)
    monkeypatch.setattr(ngram_tables, "DENSE_TABLE", 1)
    hashed = NGram(parts, 9, order)
    assert not hashed.bigram.dense
    for fold in range(3):
        assert torch.equal(p_bigram(hashed, fold), p_bigram(plain, fold))
        if order == 3:
            assert torch.equal(p_trigram(hashed, fold), p_trigram(plain, fold))


@pytest.mark.parametrize("order", [2, 3])
def test_bits_per_token_are_those_of_the_chain_rule(order):
    ngram, _ = tables(6, order)
    chunks = [np.array(c) for c in ([2], [1, 5], [3, 1, 2], [0, 0, 4, 5, 1, 3])]
    unigram, bigram = ngram.log_unigram[ALL].exp().tolist(), p_bigram(ngram, ALL).tolist()
    trigram = p_trigram(ngram, ALL).tolist() if order == 3 else None
    bits = 0.0
    for c in chunks:
        for i in range(len(c)):
            if i == 0:
                p = unigram[c[0]]
            elif i == 1 or order == 2:
                p = bigram[c[i - 1]][c[i]]
            else:
                p = trigram[c[i - 2]][c[i - 1]][c[i]]
            bits -= math.log2(p)
    assert ngram.bits_per_token(chunks, order) == pytest.approx(bits / sum(map(len, chunks)), rel=1e-5)


def test_longer_histories_cost_fewer_bits_on_real_text(english, data):
    ngram, _ = english
    test = open_built(data / "test")
    chunks = [test[i].numpy() for i in range(len(test))]
    counts = np.bincount(np.concatenate(chunks), minlength=300)
    unigram = -(counts @ ngram.log_unigram[ALL].numpy()) / counts.sum() / math.log(2)
    assert ngram.bits_per_token(chunks, 3) < ngram.bits_per_token(chunks, 2) < 0.8 * unigram


@pytest.mark.parametrize("order", [2, 3])
def test_tables_come_back_from_their_state(tmp_path, order):
    ngram, _ = tables(30, order, count=20)
    torch.save(ngram.state(), tmp_path / "state.pth")
    again = NGram.from_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert (again.vocab_size, again.order, again.folds) == (30, order, 1)
    log_likelihood, _ = likelihoods(30, (2, 9), 1.0)
    mask = torch.ones(2, 9, dtype=torch.bool)
    assert torch.equal(solve(again, log_likelihood, mask).dense, solve(ngram, log_likelihood, mask).dense)
    assert torch.equal(again.log_unigram[ALL], ngram.log_unigram[ALL])


def test_the_keys_of_a_large_vocabulary_come_back_from_their_state():
    """151,665^3 takes 52 bits; differences beyond 31 bits stay whole."""
    rng = np.random.default_rng(0)
    chunks = [rng.integers(0, 151_665, 40) for _ in range(20)]
    ngram = NGram([stretch(*chunks)], 151_665)
    again = NGram.from_state(ngram.state())
    for n in (1, 2, 3):
        assert np.array_equal(again.counted[n].keys, ngram.counted[n].keys)
        assert np.array_equal(again.counted[n].counts, ngram.counted[n].counts)
    x = torch.from_numpy(chunks[3])
    p = again.p_trigram(torch.tensor(ALL), x[:-2], x[1:-1], x[2:])
    assert (p > 0.01).all() and again.p_trigram(torch.tensor(ALL), x[:1], x[5:6], x[9:10]) < 1e-3


def test_other_orders_are_refused():
    with pytest.raises(UserError, match="order 4"):
        NGram([stretch([0, 1])], 2, 4)
