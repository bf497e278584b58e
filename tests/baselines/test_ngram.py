"""The classical decoder against enumeration, counting and arithmetic by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

import baselines.ngram
import diffusion
from baselines.ngram import ALL, NGram, Table, Windows, count_ngrams, unigram_context
from corpus.chunks import open_built
from diffusion import Diffusion
from kit.errors import UserError
from model import build_jit_model
from palette import Layout, build_palette

LEVELS = (0.1, 0.6, 2.0)


def stretch(*chunks):
    """Chunks of token ids as one part of one stretch."""
    lengths = np.array([len(chunk) for chunk in chunks])
    return [(np.concatenate(chunks).astype(np.int32), np.cumsum(lengths) - lengths)]


def markov_chunks(vocab_size, count, length, seed, likely=0.7):
    """Texts in which u is followed by 2u + 1 or 3u + 2 (modulo V) most of the time."""
    rng, chunks = np.random.default_rng(seed), []
    for _ in range(count):
        text = [int(rng.integers(vocab_size))]
        for _ in range(int(rng.integers(length // 2, length + 1)) - 1):
            usual = (2 * text[-1] + 1, 3 * text[-1] + 2)[int(rng.integers(2))] % vocab_size
            text.append(usual if rng.random() < likely else int(rng.integers(vocab_size)))
        chunks.append(np.array(text))
    return chunks


def tables(vocab_size, order=3, stretches=2, seed=0, count=8, length=12):
    """An n-gram model of a few Markov texts, and its stretches."""
    parts = [stretch(*markov_chunks(vocab_size, count, length, seed * 100 + s)) for s in range(stretches)]
    return NGram(parts, vocab_size, order), parts


def likelihoods(vocab_size, shape, sigma, seed=0):
    """Log-likelihoods (..., V) of noisy points on a line, one place per token."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(vocab_size, shape, generator=generator)
    seen = truth + sigma * 2 * torch.randn(shape, generator=generator)
    return -(seen[..., None] - torch.arange(vocab_size)).square() / (2 * (2 * sigma) ** 2), truth


def p_bigram(ngram, fold):
    """(V, V) in float64."""
    v = torch.arange(ngram.vocab_size)
    return ngram.p_bigram(torch.tensor(fold), v[:, None], v).double()


def p_trigram(ngram, fold):
    """(V, V, V) in float64."""
    v = torch.arange(ngram.vocab_size)
    return ngram.p_trigram(torch.tensor(fold), v[:, None, None], v[:, None], v).double()


def solve(ngram, *arguments, **settings):
    """The context of the highest order asked for."""
    return ngram.contexts(*arguments, **settings)[-1]


def enumerated(ngram, log_likelihood, count, fold, order):
    """Contexts (count, V) of one text: a sum over all V^count texts."""
    V = ngram.vocab_size
    texts = torch.tensor(list(itertools.product(range(V), repeat=count)))
    p = ngram.log_unigram[fold].double().exp()[texts[:, 0]]
    bigram = p_bigram(ngram, fold)
    trigram = p_trigram(ngram, fold) if order == 3 else None
    for i in range(1, count):
        if order == 3 and i > 1:
            p = p * trigram[texts[:, i - 2], texts[:, i - 1], texts[:, i]]
        else:
            p = p * bigram[texts[:, i - 1], texts[:, i]]
    likelihood = log_likelihood.double().exp()
    contexts = torch.zeros(count, V, dtype=torch.float64)
    for i in range(count):
        weight = p.clone()
        for j in range(count):
            if j != i:
                weight *= likelihood[j][texts[:, j]]
        contexts[i].index_add_(0, texts[:, i], weight)
    contexts = contexts.log()
    return contexts - torch.logsumexp(contexts + log_likelihood[:count].double(), -1, keepdim=True)


# ----------------------------------------------------------------------------------------------------------------------
# Forward-backward


@pytest.mark.parametrize("sigma", LEVELS)
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("vocab_size", "length"), [(4, 5), (5, 4)])
def test_forward_backward_is_a_sum_over_all_texts(order, vocab_size, length, sigma):
    """Chunks of different lengths and folds in one batch, padding at their ends, every token a candidate."""
    ngram, _ = tables(vocab_size)
    counts = [length, 1, length - 1, 2, 3]
    mask = torch.arange(length) < torch.tensor(counts)[:, None]
    fold = torch.tensor([0, 1, 2, 2, 1])
    log_likelihood, _ = likelihoods(vocab_size, mask.shape, sigma)
    context = solve(ngram, log_likelihood, mask, fold, order, (vocab_size,)).dense
    for row, count in enumerate(counts):
        expected = enumerated(ngram, log_likelihood[row], count, int(fold[row]), order)
        assert torch.allclose(context[row, :count].double(), expected, atol=2e-4), (row, count)


@pytest.mark.parametrize("order", [2, 3])
def test_context_and_log_likelihood_are_the_log_posterior_and_padding_has_no_say(order):
    ngram, _ = tables(20)
    log_likelihood, _ = likelihoods(20, (3, 9), 0.7)
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    context = solve(ngram, log_likelihood, mask, order=order)
    assert torch.allclose((context.dense + log_likelihood).exp().sum(-1), torch.ones(3, 9), atol=1e-5)
    assert torch.allclose(context.posterior(log_likelihood), (context.dense + log_likelihood).exp())
    changed = torch.where(mask[..., None], log_likelihood, log_likelihood.flip(-1) * 3)
    again = solve(ngram, changed, mask, order=order)
    assert torch.allclose(again.dense[mask], context.dense[mask], atol=1e-5)
    alone = solve(ngram, log_likelihood[1:2, :4], mask[1:2, :4], order=order)
    assert torch.allclose(alone.dense[0], context.dense[1, :4], atol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_a_context_does_not_contain_the_positions_own_likelihood(order):
    ngram, _ = tables(6)
    log_likelihood, _ = likelihoods(6, (1, 5), 0.7)
    mask = torch.ones(1, 5, dtype=torch.bool)
    before = solve(ngram, log_likelihood, mask, order=order, candidates=(6,)).dense[0, 2]
    log_likelihood[0, 2] = torch.randn(6)
    after = solve(ngram, log_likelihood, mask, order=order, candidates=(6,)).dense[0, 2]
    assert torch.allclose(before.log_softmax(-1), after.log_softmax(-1), atol=1e-4)
    assert before.log_softmax(-1).std() > 0.1


@pytest.mark.parametrize("order", [2, 3])
def test_both_neighbors_speak(order):
    """u is always followed by u + 1: a lone certain token decides the whole text, backwards and forwards."""
    ring = np.arange(300) % 10
    ngram = NGram([stretch(ring)], 10, order)
    log_likelihood = torch.zeros(1, 9, 10)
    log_likelihood[0, 4] = -60
    log_likelihood[0, 4, 7] = 0
    found = solve(ngram, log_likelihood, torch.ones(1, 9, dtype=torch.bool), candidates=(10,)).best(log_likelihood)
    assert found[0].tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_trigrams_decide_what_bigrams_cannot():
    """After 'a x' comes b, after 'c x' comes d: a model of pairs sees b and d alike after x."""
    a, x, b, c, d = range(5)
    ngram = NGram([stretch(*[np.array([a, x, b])] * 20, *[np.array([c, x, d])] * 20)], 5)
    truth = torch.tensor([[a, x, b], [c, x, d]])
    log_likelihood = torch.full((2, 3, 5), -40.0).scatter(-1, truth[..., None], 0.0)
    log_likelihood[:, 2] = 0
    mask = torch.ones(2, 3, dtype=torch.bool)
    probability = {}
    for order in (2, 3):
        posterior = solve(ngram, log_likelihood, mask, order=order, candidates=(5,)).posterior(log_likelihood)
        probability[order] = posterior.gather(-1, truth[..., None])[:, 2, 0]
    assert (probability[2] < 0.51).all() and (probability[3] > 0.8).all()


def test_trigrams_share_out_what_bigrams_gave_their_candidates():
    ngram, _ = tables(20)
    log_likelihood, _ = likelihoods(20, (2, 8), 1.5)
    mask = torch.ones(2, 8, dtype=torch.bool)
    bigram = solve(ngram, log_likelihood, mask, order=2).posterior(log_likelihood)
    trigram = solve(ngram, log_likelihood, mask, order=3, candidates=(5,)).posterior(log_likelihood)
    held, chosen = bigram.topk(5, dim=-1)
    assert torch.allclose(trigram.gather(-1, chosen).sum(-1), held.sum(-1), atol=1e-5)
    outside = torch.ones_like(bigram).scatter(-1, chosen, 0).bool()
    assert torch.allclose(trigram[outside], bigram[outside], atol=1e-6)
    assert (trigram.gather(-1, chosen) - held).abs().max() > 1e-3


def test_each_text_takes_the_fewest_candidates_that_hold_its_posterior():
    ngram, _ = tables(60)
    mask = torch.arange(8) < torch.tensor([[8], [8], [6]])
    log_likelihood = torch.stack([likelihoods(60, (8,), sigma, seed=2)[0] for sigma in (0.1, 1.0, 40.0)])
    bigram = solve(ngram, log_likelihood, mask, order=2).dense
    held = (bigram + log_likelihood).exp().topk(12, dim=-1).values.cumsum(-1)
    assert held[0, :, 3].mean() > 0.999 and held[1, :, 11].mean() > 0.5
    assert held[1, :, 3].mean() < 0.999 and held[2, :6, 11].mean() < 0.5
    context = solve(ngram, log_likelihood, mask, order=3, candidates=(4, 12)).dense
    few = solve(ngram, log_likelihood[:1], mask[:1], order=3, candidates=(4,)).dense
    many = solve(ngram, log_likelihood[1:2], mask[1:2], order=3, candidates=(12,)).dense
    for row, expected in enumerate((few[0], many[0], bigram[2])):
        count = int(mask[row].sum())
        assert torch.allclose(context[row, :count], expected[:count], atol=1e-5), row


@pytest.mark.parametrize("order", [2, 3])
def test_each_text_is_decoded_by_the_tables_of_its_own_fold(order):
    ngram, _ = tables(12, stretches=3)
    log_likelihood, _ = likelihoods(12, (1, 6), 1.0)
    mask = torch.ones(4, 6, dtype=torch.bool)
    together = solve(ngram, log_likelihood.expand(4, -1, -1), mask, torch.tensor([3, 0, 1, 3]), order).dense
    for row, fold in enumerate((3, 0, 1, 3)):
        alone = solve(ngram, log_likelihood, mask[:1], torch.tensor([fold]), order).dense[0]
        assert torch.allclose(together[row], alone, atol=1e-5)
    assert (together[1] - together[2]).abs().max() > 0.05
    assert torch.equal(
        solve(ngram, log_likelihood, mask[:1], None, order).dense[0], together[1:2][0]
    ) or torch.allclose(solve(ngram, log_likelihood, mask[:1], None, order).dense[0], together[1], atol=1e-5)


@pytest.mark.parametrize("order", [2, 3])
def test_certain_positions_stay_certain_and_inform_their_neighbors(order):
    ngram, _ = tables(10)
    log_likelihood, _ = likelihoods(10, (2, 12), 3.0)
    given = torch.randint(10, (2, 12), generator=torch.Generator().manual_seed(3))
    certain = torch.arange(12) % 3 == 0
    log_likelihood[:, certain] = torch.full((2, 12, 10), -1e4).scatter(-1, given[..., None], 0.0)[:, certain]
    mask = torch.ones(2, 12, dtype=torch.bool)
    posterior = solve(ngram, log_likelihood, mask, order=order).posterior(log_likelihood)
    assert torch.isfinite(posterior).all()
    assert torch.equal(posterior.argmax(-1)[:, certain], given[:, certain])
    assert (posterior.gather(-1, given[..., None])[:, certain] > 0.9999).all()
    assert (posterior[0, 1] - posterior[1, 1]).abs().max() > 0.05


def test_the_recursion_survives_extreme_likelihoods():
    ngram, _ = tables(10)
    log_likelihood, truth = likelihoods(10, (2, 400), 1e-3)
    context = solve(ngram, log_likelihood, torch.ones(2, 400, dtype=torch.bool))
    assert torch.isfinite(context.dense).all() and torch.equal(context.best(log_likelihood), truth)


def test_without_context_the_unigram_posterior_is_left():
    ngram, _ = tables(10)
    log_likelihood, _ = likelihoods(10, (2, 7), 0.8)
    expected = (ngram.log_unigram[ALL] + log_likelihood).softmax(-1)
    assert torch.allclose(
        unigram_context(log_likelihood, ngram.log_unigram[ALL]).posterior(log_likelihood), expected, atol=1e-6
    )


# ----------------------------------------------------------------------------------------------------------------------
# A realistic table: windows, bf16, candidates only


@pytest.fixture(scope="module")
def english(data):
    """Tables of the small training texts (V = 300), and held-out texts of 200 tokens."""
    ngram = NGram(open_built(data / "train").folds(2), 300)
    held_out = open_built(data / "val")
    tokens = torch.cat([held_out[i] for i in range(len(held_out))])[: 8 * 200].view(8, 200)
    return ngram, tokens


@pytest.fixture(scope="module")
def seen(english):
    """Log-likelihoods of the texts at three noise levels, in colors."""
    ngram, tokens = english
    reader = decoder(ngram)
    noise = torch.randn(*tokens.shape, 3, generator=torch.Generator().manual_seed(0))
    result = {}
    for sigma in (0.1, 0.2, 0.4, 0.8):
        t = torch.full((len(tokens),), 1 / (1 + sigma))
        z = reader.add_noise(tokens, t, noise)
        result[sigma] = reader.log_likelihood(z, t[:, None].expand(tokens.shape))
    return result


def decoder(ngram):
    """A Diffusion that reads noisy colors for an n-gram model; its network is not used."""
    network = build_jit_model("JiT-Ti/4", 8, vocab_size=ngram.vocab_size, token_dim=16, ngram=ngram.order)
    palette = build_palette("shuffled", ngram.vocab_size)
    return Diffusion(network, palette, Layout(8, 4), "token", ngram.log_unigram[ALL], ngram).eval()


def posteriors_differ(first, second, log_likelihood):
    """Largest and mean total variation between two contexts' posteriors."""
    apart = (first.posterior(log_likelihood) - second.posterior(log_likelihood)).abs().sum(-1) / 2
    return apart.max().item(), apart.mean().item()


def test_realistic_contexts_help_and_trigrams_more_than_bigrams(english, seen):
    ngram, tokens = english
    mask, right = torch.ones_like(tokens, dtype=torch.bool), {}
    for order in (2, 3):
        found = solve(ngram, seen[0.4], mask, order=order).best(seen[0.4])
        right[order] = (found == tokens).float().mean().item()
    unigram = unigram_context(seen[0.4], ngram.log_unigram[ALL]).best(seen[0.4])
    right[1] = (unigram == tokens).float().mean().item()
    assert right[3] > right[2] > right[1] + 0.1, right


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("sigma", [0.2, 0.4, 0.8])
def test_windows_agree_with_the_whole_recursion(english, seen, sigma, order):
    ngram, _ = english
    mask = torch.arange(200) < torch.tensor([200, 199, 150, 65, 64, 63, 7, 1])[:, None]
    whole = solve(ngram, seen[sigma], mask, order=order, candidates=(12,))
    cut = solve(ngram, seen[sigma], mask, order=order, candidates=(12,), segment=64)
    worst, mean = posteriors_differ(whole[mask], cut[mask], seen[sigma][mask])
    assert worst < 0.02 and mean < 1e-4
    assert torch.allclose((cut.dense + seen[sigma]).exp().sum(-1)[mask], torch.ones(int(mask.sum())), atol=1e-4)


@pytest.mark.parametrize("num_positions", [16, 64, 97, 200, 4096])
@pytest.mark.parametrize("segment", [None, 16, 64])
def test_cut_windows_join_to_the_same_text_and_cover_their_neighborhood(num_positions, segment):
    windows = Windows(2, num_positions, segment, "cpu")
    values = torch.arange(2 * num_positions).view(2, num_positions)
    cut = windows.cut(values)
    assert torch.equal(windows.join(cut), values)
    if windows.count > 1:
        assert cut.shape == windows.inside.shape and cut.shape[1] <= segment * 1.5 + 2 * Windows.OVERLAP + 1
        first, last = (torch.where(windows.inside, cut, each) for each in (2 * num_positions, -1))
        first, last = first.amin(1).view(2, -1)[0], last.amax(1).view(2, -1)[0]
        own = windows.join(torch.arange(windows.count).repeat(2)[:, None].expand(cut.shape))[0]
        position = torch.arange(num_positions)
        assert (first[own] <= (position - Windows.OVERLAP).clamp_min(0)).all()
        assert (last[own] >= (position + Windows.OVERLAP).clamp_max(num_positions - 1)).all()


def test_bf16_is_close_to_fp32(english, seen):
    ngram, tokens = english
    mask = torch.ones_like(tokens, dtype=torch.bool)
    for sigma, log_likelihood in seen.items():
        exact = solve(ngram, log_likelihood, mask, order=2)
        rough = solve(ngram, log_likelihood, mask, order=2, dtype=torch.bfloat16)
        worst, mean = posteriors_differ(exact, rough, log_likelihood)
        assert worst < 0.1 and mean < 0.01, sigma
        right = [(each.best(log_likelihood) == tokens).float().mean().item() for each in (exact, rough)]
        assert abs(right[0] - right[1]) < 0.01, sigma


@pytest.fixture
def sparse(monkeypatch):
    """Treat every vocabulary as too large for V^2 tables, and every table as too large for an array."""
    monkeypatch.setattr(baselines.ngram, "DENSE_VOCAB", 1)
    monkeypatch.setattr(baselines.ngram, "DENSE_TABLE", 1)
    monkeypatch.setattr(diffusion, "DENSE_VOCAB", 1)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("sigma", LEVELS)
def test_with_all_tokens_as_candidates_the_sparse_recursion_is_the_dense_one(sparse, monkeypatch, order, sigma):
    ngram, parts = tables(7)
    assert not ngram.dense
    monkeypatch.setattr(baselines.ngram, "DENSE_VOCAB", 4096)
    dense = NGram(parts, 7)
    mask = torch.arange(8) < torch.tensor([[8], [5], [2], [1]])
    fold = torch.tensor([0, 1, 2, 1])
    log_likelihood, _ = likelihoods(7, mask.shape, sigma)
    expected = solve(dense, log_likelihood, mask, fold, order, (7,))
    shuffled = torch.rand(4, 8, 7, generator=torch.Generator().manual_seed(0)).argsort(-1)
    given = shuffled, log_likelihood.gather(-1, shuffled), torch.full(mask.shape, -1e4)
    found = solve(ngram, given, mask, fold, order, (7,))
    assert torch.allclose(found.full(ngram.log_unigram[ALL])[mask], expected.dense[mask], atol=2e-4)
    assert torch.equal(found.best(given)[mask], expected.best(log_likelihood)[mask])
    q = found.posterior(given)[1]
    assert torch.allclose(
        q.new_zeros(*q.shape).scatter(-1, shuffled, q)[mask], expected.posterior(log_likelihood)[mask], atol=1e-4
    )


@pytest.mark.parametrize("order", [2, 3])
def test_the_lattice_candidates_decode_as_well_as_the_whole_vocabulary(english, data, sparse, seen, order):
    """And what they hold, with the rest of the vocabulary, is a probability distribution."""
    dense, tokens = english
    ngram = NGram(open_built(data / "train").folds(1), 300)
    reader, mask = decoder(ngram), torch.ones_like(tokens, dtype=torch.bool)
    noise = torch.randn(*tokens.shape, 3, generator=torch.Generator().manual_seed(0))
    for sigma in (0.1, 0.2):
        t = torch.full((len(tokens),), 1 / (1 + sigma))
        z = reader.add_noise(tokens, t, noise)
        given = reader.likelihoods(z, t[:, None].expand(mask.shape))
        context = solve(ngram, given, mask, order=order)
        right = (context.best(given) == tokens).float().mean().item()
        reference = (solve(dense, seen[sigma], mask, order=order).best(seen[sigma]) == tokens).float().mean().item()
        assert right > reference - 0.005, sigma
        _, inside, outside = context.posterior(given)
        assert torch.allclose(inside.sum(-1) + outside, torch.ones(tokens.shape), atol=1e-4)
        best = (context.full(ngram.log_unigram[ALL]) + seen[sigma]).argmax(-1)
        differs = best != context.best(given)
        assert differs.float().mean() < 0.002 and not (given[0] == best[..., None]).any(-1)[differs].any()


@pytest.mark.parametrize(
    "vocab_size",
    [17**3, 5000],
)
def test_the_likelihood_of_the_rest_is_that_of_the_tokens_left_out(sparse, vocab_size):
    """Exact where all tokens are equally frequent."""
    network = build_jit_model("JiT-Ti/4", 8, vocab_size=vocab_size, token_dim=16)
    reader = Diffusion(network, build_palette("shuffled", vocab_size), Layout(8, 4))
    tokens = torch.randint(vocab_size, (5, 30), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5, 30, 3, generator=torch.Generator().manual_seed(1))
    t = 1 / (1 + torch.tensor([0.03, 0.06, 0.2, 0.5, 1.5]))
    z = reader.add_noise(tokens, t, noise)
    ids, found, rest = reader.likelihoods(z, t[:, None].expand(5, 30))
    y = z / t[:, None, None]
    exact = -(y[..., None, :] - reader.palette.colors).square().sum(-1) / (2 * (1 / t - 1).square()[:, None, None])
    exists = found > -9999
    assert torch.allclose(found[exists], exact.gather(-1, ids)[exists], atol=1e-3)
    left = exact.scatter(-1, ids, -torch.inf)
    expected = torch.logsumexp(left - math.log(vocab_size), -1)
    total = torch.logsumexp(exact - math.log(vocab_size), -1)
    assert torch.allclose((rest - total).exp(), (expected - total).exp(), atol=1e-3)
    likeliest = exact.topk(ids.shape[-1]).values.exp().sum(-1) - found.exp().sum(-1)
    assert (likeliest[:2] < 0.02 * found[:2].exp().sum(-1)).all()  # the candidates are the likeliest


# ----------------------------------------------------------------------------------------------------------------------
# Counts, probabilities, tables


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
    monkeypatch.setattr(baselines.ngram, "DENSE_TABLE", size if dense else 1)
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
    monkeypatch.setattr(baselines.ngram, "DENSE_TABLE", 1)
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
    monkeypatch.setattr(baselines.ngram, "DENSE_TABLE", 1)
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
