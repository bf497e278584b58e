"""n-grams above posteriors: exact where the posterior is, and better than the decoder alone on text."""

import itertools
import math

import pytest
import torch

from corpus.chunks import open_built
from tokcom.config import ModelArgs
from tokcom.flow import Flow
from tokcom.model import DenoisedModel, TokComVAE
from tokcom.ngram_decoder import NGramDecoder, _sparse


@pytest.fixture(scope="module")
def decoder(data):
    return NGramDecoder.of(open_built(data / "train"), 300)


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
    train, generator = decoder.train_chunks, torch.Generator().manual_seed(0)
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


# ----------------------------------------------------------------------------------------------------------------------
# Inside the network


@pytest.fixture
def flow(decoder):
    torch.manual_seed(0)
    args = ModelArgs(
        hidden_size=32, num_hidden_layers=1, vae_num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=64, latent_dim=6, chunk_size=4, max_length=32, vocab_size=300, mask_token_id=300, ngram=3,
    )  # fmt: skip
    denoiser = DenoisedModel(args).eval()
    denoiser.gate.bias.data[:] = torch.tensor([0.0, 1.0])
    denoiser.ngrams = decoder
    return Flow(TokComVAE(args).eval(), denoiser)


def test_an_untrained_network_is_the_decoder_and_trigrams(flow, decoder):
    y, sigma = 3 * torch.randn(2, 8, 6), torch.tensor([0.5, 2.0])
    mask = torch.ones(2, 8, dtype=torch.bool)
    guess = flow.predict(y, sigma, mask)
    log_q = flow.vae.decode(y).float().log_softmax(-1)
    expected = decoder.read(log_q, torch.ones(2, 32, dtype=torch.bool), tuple(decoder.weights[0].tolist()))["trigrams"]
    same = (guess.tokens() == expected).float().mean()  # the network chooses among fewer candidates
    assert same > 0.95 and (guess.tokens() == log_q.argmax(-1)).float().mean() < same


def test_a_training_text_meets_n_grams_that_have_not_counted_it(flow, decoder):
    y, sigma, mask = torch.randn(2, 8, 6), torch.full((2,), 2.0), torch.ones(2, 8, dtype=torch.bool)
    counted, folds = flow.observe(y, sigma, mask), decoder.fold_of(torch.tensor([0, len(decoder.train_chunks) - 1]))
    held_out = flow.observe(y, sigma, mask, fold=folds)
    assert folds.min() >= 1 and not torch.allclose(counted.contexts[0], held_out.contexts[0], atol=1e-3)


def test_guidance_moves_logits_of_networks_with_n_grams_too(flow):
    torch.nn.init.normal_(flow.denoiser.gate.weight)
    mask = torch.ones(2, 8, dtype=torch.bool)
    one, other = (flow.predict(torch.randn(2, 8, 6), torch.full((2,), 1.0), mask) for _ in range(2))
    expected = other.logits + 1.5 * (one.logits - other.logits)
    assert torch.allclose(one.extrapolated(other, 1.5).logits, expected, atol=1e-4)


def test_weights_lie_between_the_noise_levels_that_were_tuned(decoder):
    tuned = NGramDecoder(decoder.ngram).load_weights(
        {
            "log_sigmas": torch.tensor([0.5, 1.0, 2.0]).log(),
            "weights": torch.tensor([[2.0, 1.0], [1.0, 0.5], [0.5, 0.0]]),
        }
    )
    found = tuned.weights_at(torch.tensor([0.0, 0.5, 2**-0.5, 1.0, 9.0]))
    assert torch.allclose(found[:, 0], torch.tensor([2.0, 2.0, 1.5, 1.0, 0.5]))
    with pytest.raises(ValueError, match="no noise levels"):
        tuned.load_weights({"log_sigmas": torch.zeros(3), "weights": torch.zeros(3, 2)})
