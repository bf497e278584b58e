"""n-grams above posteriors: exact where the posterior is, and better than the decoder alone on text."""

import itertools
import math

import pytest
import torch

from corpus.chunks import open_built
from tokcom.ngram_decoder import NGramDecoder, _sparse


@pytest.fixture(scope="module")
def decoder(data):
    return NGramDecoder(open_built(data / "train"), 300, torch.device("cpu"))


def test_bigrams_find_the_likeliest_tokens_of_all_texts(decoder):
    """Three positions, three tokens that are possible in each: the best of each place by enumeration of all 27 texts."""
    generator, ngram = torch.Generator().manual_seed(0), decoder.ngram
    frequent = ngram.log_unigram[0].topk(12).indices
    for trial in range(20):
        few = frequent[torch.randperm(12, generator=generator)[:9]].view(3, 3)
        q = torch.rand(3, 3, generator=generator).softmax(-1)
        log_q = torch.full((1, 3, 300), -60.0)
        log_q[0].scatter_(1, few, q.log())
        a, b = 1.25, 0.5
        totals = torch.zeros(3, 3)
        for places in itertools.product(range(3), repeat=3):
            tokens = [few[i, k] for i, k in enumerate(places)]
            p = ngram.log_unigram[0, tokens[0]].exp()
            for first, second in itertools.pairwise(tokens):
                p = p * ngram.p_bigram(torch.tensor(0), first, second)
            for i, k in enumerate(places):
                p = p * math.exp(a * math.log(q[i, k]) - b * float(ngram.log_unigram[0, few[i, k]]))
            for i, k in enumerate(places):
                totals[i, k] += p
        found = decoder.read(log_q, torch.ones(1, 3, dtype=torch.bool), (a, b))["bigrams"][0]
        assert torch.equal(found, few.gather(1, totals.argmax(1, keepdim=True))[:, 0]), trial


def test_on_noisy_posteriors_of_text_n_grams_recover_more(decoder):
    train, generator = decoder.train, torch.Generator().manual_seed(0)
    index = torch.arange(16)
    tokens = torch.stack([train[int(i)][:16] for i in index])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    log_q = torch.randn(16, 16, 300, generator=generator)
    log_q.scatter_add_(-1, tokens[..., None], torch.full((16, 16, 1), 2.5))
    log_q = log_q.log_softmax(-1)
    weights = decoder.tune(lambda: [(index, log_q, tokens, mask)])
    alone = (log_q.argmax(-1) == tokens).float().mean()
    for found in decoder.read(log_q, mask, weights).values():
        assert (found == tokens).float().mean() > alone + 0.2


def test_a_few_candidates_carry_the_rest_of_a_large_vocabulary():
    seen, unigram = torch.randn(2, 3, 50), torch.randn(50).log_softmax(-1)
    ids, values, rest = _sparse(seen, unigram)
    whole = (seen + unigram).logsumexp(-1)
    parts = torch.logaddexp((values + unigram[ids]).logsumexp(-1), rest)
    assert torch.allclose(whole, parts, atol=1e-5)
