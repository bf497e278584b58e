"""The bound is what it bounds where the denoiser is exact, and above it elsewhere."""

import json

import numpy as np
import pytest
import torch

import evaluate
import likelihood
from corpus.bits import per_byte
from corpus.loader import collate
from corpus.ngram import ALL, NGram, unigram_context
from diffusion import Diffusion
from model import build_jit_model
from palette import Layout, build_palette
from tests.conftest import run_main

V, LENGTH, TEXTS = 12, 48, 300


@pytest.fixture(scope="module")
def source():
    """Texts of a Markov chain, the n-gram model counted from as many others, and a decoder with its exact posteriors."""
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.full(V, 0.15), size=V)

    def draw(count):
        rows = np.empty((count, LENGTH), np.int64)
        rows[:, 0] = rng.integers(V, size=count)
        for place in range(1, LENGTH):
            cumulative = transition[rows[:, place - 1]].cumsum(1)
            rows[:, place] = (rng.random((count, 1)) > cumulative[:, :-1]).sum(1)
        return rows

    seen, held_out = draw(2000), draw(TEXTS)
    ngram = NGram([[(seen.reshape(-1), np.arange(0, seen.size, LENGTH))]], V, 2)
    network = build_jit_model("JiT-Ti/4", 8, vocab_size=V, token_dim=16, ngram=2)
    diffusion = Diffusion(network, build_palette("shuffled", V), Layout(8, 4), "token", ngram.log_unigram[ALL], ngram)
    return ngram, diffusion.eval(), torch.from_numpy(held_out)


def bound(source, decode, levels=32):
    ngram, diffusion, tokens = source
    colors = diffusion.palette.colors

    @torch.no_grad()
    def predict(z, t, mask, tokens):
        seen = diffusion.log_likelihood(z, t[:, None].expand(mask.shape))
        log_posterior = decode(ngram, diffusion, seen, mask)
        return log_posterior.exp() @ colors, -log_posterior.gather(-1, tokens[..., None])[..., 0]

    mean = ngram.log_unigram[ALL].exp() @ colors
    batches = (collate(list(part)) for part in tokens.split(50))
    return likelihood.nll_bound(predict, colors, mean, diffusion.palette.spacing, batches, levels, seed=0)


def by_unigrams(ngram, diffusion, seen, mask):
    return unigram_context(seen, ngram.log_unigram[ALL]).dense + seen


def by_bigrams(ngram, diffusion, seen, mask):
    return ngram.contexts(seen, mask)[0].dense + seen


def test_exact_denoisers_give_the_exact_likelihood(source):
    """Unigrams of independent tokens, forward-backward of a Markov chain: entropies that counting knows, too."""
    ngram, _, tokens = source
    unigrams = -ngram.log_unigram[ALL][tokens].sum(1).double().mean()
    bigrams = ngram.bits_per_token(tokens.numpy(), 2) * np.log(2) * LENGTH
    assert bigrams < 0.75 * unigrams
    for decode, exact in ((by_unigrams, float(unigrams)), (by_bigrams, bigrams)):
        nats = bound(source, decode)
        error = nats.std() / len(nats) ** 0.5
        assert abs(nats.mean() - exact) < 0.015 * exact + error / 4, (nats.mean(), exact)


def test_a_worse_denoiser_gives_a_higher_bound(source):
    def halfway(*given):
        return torch.logaddexp(by_unigrams(*given), by_bigrams(*given)) - np.log(2)

    worse, better = bound(source, halfway, 8), bound(source, by_bigrams, 8)
    assert worse.mean() > 1.02 * better.mean()


def test_fewer_levels_have_no_bias(source):
    many, few = bound(source, by_bigrams, 24), bound(source, by_bigrams, 3)
    assert few.mean() == pytest.approx(many.mean(), rel=0.1)


def test_bits_per_byte_count_the_bytes_of_the_text(data):
    from corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(data / "tokenizer.json")
    chunks = [torch.from_numpy(tokenizer.encode(text).astype(np.int64)) for text in ("the color", "é" * 20)]
    found = per_byte(np.log(2) * np.array([18.0, 31.0]), chunks, tokenizer)
    assert (found["num_bytes"], found["num_chunks"]) == (49, 2) and found["bits_per_byte"] == pytest.approx(1.0)
    assert found["nll"] == pytest.approx(49 * np.log(2) / sum(map(len, chunks)))


def test_a_report_has_the_bound_of_its_checkpoint(trained, data, tmp_path):
    """Near what trigrams cost exactly, since the network of these runs has them beside it."""
    options = ("--likelihood_levels", 8, "--num_samples", 40, "--num_inference_steps", 2, "--t", 0.8)
    run_main(
        evaluate, "--checkpoint", trained / "best_model.pth", "--data_path", data, "--output_dir", tmp_path, *options,
        "--device", "cpu", "--precision", "fp32",
    )  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["likelihood"]
    assert found["levels"] == 8 and found["nll_ci"][0] <= found["nll"] <= found["nll_ci"][1]
    assert found["nll"] < 1.3 * report["ngram_bits"]["3"] * np.log(2)
