"""The classical decoder against enumeration, counting and arithmetic by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

import corpus.ngram
import diffusion
from corpus import ngram_tables
from corpus.chunks import open_built
from corpus.ngram import ALL, NGram, Windows, unigram_context
from diffusion import Diffusion
from model import build_jit_model
from palette import Layout, build_palette
from tests.corpus.ngrams import likelihoods, p_bigram, p_trigram, solve, stretch, tables

LEVELS = (0.1, 0.6, 2.0)


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
    monkeypatch.setattr(corpus.ngram, "DENSE_VOCAB", 1)
    monkeypatch.setattr(ngram_tables, "DENSE_TABLE", 1)
    monkeypatch.setattr(diffusion, "DENSE_VOCAB", 1)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("sigma", LEVELS)
def test_with_all_tokens_as_candidates_the_sparse_recursion_is_the_dense_one(sparse, monkeypatch, order, sigma):
    ngram, parts = tables(7)
    assert not ngram.dense
    monkeypatch.setattr(corpus.ngram, "DENSE_VOCAB", 4096)
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
