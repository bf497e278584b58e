"""Noise, likelihood, posterior and losses do what their formulas say."""

import pytest
import torch

import diffusion as method
import kit.cross_entropy
from corpus.ngram import ALL, unigram_context
from diffusion import Diffusion
from kit.errors import UserError
from model import build_jit_model
from palette import SCANS, Layout, build_palette
from tests.small_diffusion import VOCAB, batch, counted, make, opened, real_batch, texts

# ----------------------------------------------------------------------------------------------------------------------
# Noising, likelihood, posterior


def test_noise_follows_the_formula_and_spares_what_is_given():
    diffusion = make()
    tokens, _, t, noise = batch()
    given = torch.zeros_like(tokens, dtype=torch.bool)
    given[:, :5] = True
    z = diffusion.add_noise(tokens, t, noise, given)
    x = diffusion.palette.colors[tokens]
    assert torch.equal(z[:, :5], x[:, :5])
    assert torch.allclose(z[:, 5:], (t[:, None, None] * x + (1 - t[:, None, None]) * noise)[:, 5:])


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 0.99])
def test_the_log_likelihood_is_gaussian_up_to_a_constant(t):
    diffusion = make()
    z = torch.randn(20, 3, dtype=torch.float64)
    expected = -(z[:, None] - t * diffusion.palette.colors.double()).square().sum(-1) / (2 * (1 - t) ** 2)
    found = diffusion.log_likelihood(z, torch.full((20,), t)).double()
    assert torch.allclose(found.log_softmax(-1), expected.log_softmax(-1), atol=2e-2, rtol=1e-4)


def test_the_log_likelihood_keeps_full_precision_under_autocast():
    diffusion = make()
    z, t = torch.rand(50, 3), torch.full((50,), 0.98)
    with torch.autocast("cpu", torch.bfloat16):
        inside = diffusion.log_likelihood(z, t)
    assert inside.dtype == torch.float32 and torch.equal(inside, diffusion.log_likelihood(z, t))


@pytest.mark.parametrize("scan", SCANS)
def test_an_untrained_network_without_ngrams_is_the_unigram_posterior(scan):
    diffusion = make(scan=scan)
    diffusion.network.head.bias.data.normal_()
    tokens, mask, t, noise = batch()
    z = diffusion.add_noise(tokens, t, noise)
    found = diffusion.denoise(z, t, mask, tokens=tokens)
    posterior = (diffusion.log_likelihood(z, t[:, None].expand_as(mask)) + diffusion.network.head.bias).log_softmax(-1)
    assert torch.equal(found.tokens, posterior.argmax(-1) * mask)
    assert torch.allclose(found.nll, -posterior.gather(-1, tokens[..., None])[..., 0] * mask, atol=1e-4)
    assert torch.allclose(found.x_pred, (posterior.exp() @ diffusion.palette.colors) * mask[..., None], atol=1e-5)
    loss, per_sample = diffusion(tokens, mask, t, noise)
    assert loss.item() == pytest.approx((found.nll.sum() / mask.sum()).item(), rel=1e-4)
    assert torch.allclose(per_sample, found.nll.sum(1) / mask.sum(1), rtol=1e-4)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("order", [2, 3])
def test_an_untrained_network_beside_ngrams_is_their_posterior(order, scan):
    """Zero head, gate 1 for the highest order, 0 below: the same tokens, the same likelihood of the truth."""
    ngram = counted(order)
    diffusion = make(ngram=ngram, scan=scan)
    tokens, mask, t, noise = real_batch()
    z = diffusion.add_noise(tokens, t, noise)
    found = diffusion.denoise(z, t, mask, tokens=tokens)
    seen = diffusion.log_likelihood(z, t[:, None].expand_as(mask))
    settings = dict(candidates=diffusion.ngram_candidates, segment=method.NGRAM_SEGMENT)
    context = ngram.contexts(seen, mask, **settings)[-1]
    assert torch.equal(found.tokens, context.best(seen) * mask)
    nll = -(context.dense + seen).gather(-1, tokens[..., None])[..., 0] * mask
    assert torch.allclose(found.nll, nll, atol=1e-4)
    assert diffusion(tokens, mask, t, noise)[0].item() == pytest.approx((nll.sum() / mask.sum()).item(), rel=1e-4)
    unigram = unigram_context(seen, ngram.log_unigram[ALL]).best(seen)
    right = [((guess == tokens) & mask)[:, :60].sum().item() for guess in (found.tokens, unigram)]
    assert right[0] > right[1] + 10


@pytest.mark.parametrize("gates", [(1.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.5, -0.5, 2.0)])
def test_gates_weigh_the_networks_own_logits_and_the_context_of_each_order(gates):
    ngram = counted()
    diffusion = make(ngram=ngram)
    diffusion.network.head.bias.data.normal_()
    diffusion.network.gate.bias.data = torch.tensor(gates)
    tokens, mask, t, noise = real_batch()
    z = diffusion.add_noise(tokens, t, noise)
    observation = diffusion.observe(z, t, mask)
    bigrams, trigrams = (context.dense for context in observation.contexts)
    assert (bigrams - trigrams).abs().max() > 0.1
    context = gates[0] * diffusion.network.head.bias + gates[1] * bigrams + gates[2] * trigrams
    for temperature in (1.0, 0.5):
        logits = context / temperature + diffusion.log_likelihood(z, observation.t)
        expected = -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        found = diffusion.predict(observation, t, mask, tokens=tokens, temperature=temperature)
        assert torch.allclose(found.nll[mask], expected[mask], atol=1e-3, rtol=1e-4)
        assert torch.equal(found.tokens, logits.argmax(-1) * mask)


def test_gates_follow_the_features_of_each_token():
    diffusion = make(ngram=counted())
    torch.nn.init.normal_(diffusion.network.gate.weight)
    tokens, mask, t, noise = real_batch()
    z = diffusion.add_noise(tokens, t, noise)
    assert not torch.allclose(
        diffusion.denoise(z, t, mask, tokens=tokens).nll,
        make(ngram=counted()).denoise(z, t, mask, tokens=tokens).nll,
        atol=0.01,
    )


def test_the_network_reads_the_mean_embedding_of_the_posterior_of_every_order():
    ngram = counted()
    diffusion = make(ngram=ngram)
    tokens, mask, t, noise = real_batch()
    z = diffusion.add_noise(tokens, t, noise)
    observation = diffusion.observe(z, t, mask)
    seen = diffusion.log_likelihood(z, observation.t)
    contexts = (unigram_context(seen, diffusion.log_unigram), *observation.contexts)
    embedding = diffusion.network.embedding
    for found, context in zip(observation.soft.split(16, dim=-1), contexts, strict=True):
        expected = (context.dense + seen).exp() @ embedding
        assert torch.allclose(found[mask], expected[mask], atol=1e-4)
    observation.soft.sum().backward()
    assert embedding.grad.abs().sum() > 0


@pytest.mark.parametrize("scan", SCANS)
def test_the_network_works_in_patch_order_and_answers_in_reading_order(scan):
    diffusion = opened(make(scan=scan, ngram=counted()))
    tokens, mask, _, noise = batch()
    t, given = torch.full((4,), 0.5), mask & (torch.arange(64) % 5 == 0)
    observation = diffusion.observe(diffusion.add_noise(tokens, t, noise, given), t, mask, given)
    prev = torch.randn(4, 64, 16)
    out = diffusion.run_network(observation, t, mask, given, prev)
    order = diffusion.layout.to_patches(torch.arange(64)[None])[0]
    assert (order[:16].diff() == 1).all() == (scan == "block")
    parts = (each[:, order] for each in (given, observation.soft, prev))
    assert torch.allclose(
        out[:, order], diffusion.network(observation.z[:, order], t, mask[:, order], *parts), atol=1e-5
    )


# ----------------------------------------------------------------------------------------------------------------------
# Given positions


def test_given_positions_count_as_seen_at_almost_no_noise():
    diffusion = make(ngram=counted())
    tokens, mask, _, noise = real_batch()
    t = torch.full((4,), 0.05)
    given = mask & (torch.arange(64) % 4 == 1)
    z = diffusion.add_noise(tokens, t, noise, given)
    observation = diffusion.observe(z, t, mask, given)
    sigma = 1 / observation.t - 1
    assert torch.allclose(sigma[given], torch.tensor(diffusion.palette.spacing / 8))
    assert torch.equal(observation.t[~given], t[:, None].expand_as(mask)[~given])
    embedding = diffusion.network.embedding
    for soft in observation.soft.split(16, dim=-1):
        assert torch.allclose(soft[given], embedding[tokens[given]], atol=1e-2)
        assert (soft[~given & mask] - embedding[tokens[~given & mask]]).abs().mean() > 0.1


def test_given_tokens_inform_their_neighbors_through_the_ngrams():
    """From pure noise, tokens between given ones are recovered as far as the texts decide them."""
    diffusion = make(ngram=counted())
    tokens, mask, _, noise = real_batch()
    t, mask[:] = torch.full((4,), 0.01), torch.arange(64) < 60
    given = mask & (torch.arange(64) % 2 == 0)
    right = []
    for cond_mask in (given, None):
        z = diffusion.add_noise(tokens, t, noise, cond_mask)
        found = diffusion.denoise(z, t, mask, cond_mask, tokens)
        right.append((found.tokens == tokens)[mask & ~given].float().mean().item())
        if cond_mask is not None:
            assert torch.equal(found.tokens[given], tokens[given]) and not found.nll[given].any()
            assert torch.equal(found.x_pred[given], diffusion.palette.colors[tokens[given]])
            others = torch.where(given, (tokens + 1) % VOCAB, tokens)  # what is given is not scored, whatever it is
            assert torch.equal(diffusion.denoise(z, t, mask, cond_mask, others).nll, found.nll)
    assert right[0] > 0.3 > 0.1 > right[1]


# ----------------------------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize(
    ("objective", "predict_clean", "ngram"),
    [("token", True, False), ("token", True, True), ("pixel", True, False), ("pixel", False, False)],
)
def test_loss_ignores_padding_and_given_positions(objective, predict_clean, ngram):
    diffusion = opened(make(objective, predict_clean, counted() if ngram else None))
    tokens, mask, t, noise = batch()
    given = mask & (torch.arange(64) % 3 == 0)
    loss, per_sample = diffusion(tokens, mask, t, noise, given)
    changed = torch.where(mask, tokens, (tokens + 7) % VOCAB)
    noisier = torch.where((mask & ~given)[..., None], noise, noise * 5 + 1)
    again, per_sample_again = diffusion(changed, mask, t, noisier, given)
    assert torch.allclose(loss, again, rtol=1e-5) and torch.allclose(per_sample, per_sample_again, rtol=1e-4)
    weights = (mask & ~given).sum(1)
    assert torch.allclose((per_sample * weights).sum() / weights.sum(), loss, rtol=1e-5)
    all_given = mask.clone()
    all_given[0] = False
    _, per_sample = diffusion(tokens, mask, t, noise, all_given)
    assert per_sample.isfinite().tolist() == [True, False, False, False]


@pytest.mark.parametrize("ngram", [False, True])
def test_cutting_the_logits_into_parts_changes_neither_loss_nor_gradient_nor_prediction(monkeypatch, ngram):
    results = []
    for limit in (1 << 27, VOCAB * 7):
        monkeypatch.setitem(kit.cross_entropy.LOGITS_AT_ONCE, "cpu", limit)
        diffusion = opened(make(ngram=counted() if ngram else None))
        tokens, mask, t, noise = batch()
        loss, _ = diffusion(tokens, mask, t, noise)
        loss.backward()
        found = diffusion.denoise(diffusion.add_noise(tokens, t, noise), t, mask, tokens=tokens)
        gradients = {name: p.grad for name, p in diffusion.network.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients, found))
    (loss, gradients, found), (cut_loss, cut_gradients, cut_found) = results
    assert torch.allclose(loss, cut_loss) and gradients.keys() == cut_gradients.keys()
    assert all(torch.allclose(gradients[name], cut_gradients[name], atol=1e-6) for name in gradients)
    assert torch.equal(found.tokens, cut_found.tokens)
    for name in ("nll", "x_pred", "prev"):
        assert torch.allclose(getattr(found, name), getattr(cut_found, name), atol=1e-4), name


def test_each_text_is_learned_beside_the_tables_of_its_fold():
    ngram = counted(folds=2)
    diffusion = make(ngram=ngram)
    tokens, mask, t, noise = real_batch()
    tokens[:, :60] = torch.from_numpy(texts(seed=1, count=40)[:4])  # counted in the second part
    loss = {}
    for fold in (0, 1, 2):
        _, loss[fold] = diffusion(tokens, mask, t, noise, fold=torch.full((4,), fold))
    assert loss[2].mean() > loss[1].mean() + 0.01  # fold 2 is without the second part, fold 1 has counted it
    mixed = diffusion(tokens, mask, t, noise, fold=torch.tensor([0, 1, 2, 1]))[1]
    assert torch.allclose(mixed, torch.stack([loss[f][i] for i, f in enumerate((0, 1, 2, 1))]), rtol=1e-4)
    assert torch.allclose(diffusion(tokens, mask, t, noise)[1], loss[0], rtol=1e-4)


def test_clean_prediction_and_velocity_name_the_same_picture():
    """A network that always returns v = x - noise for its own z must be read as x, exactly."""
    diffusion = make("pixel", predict_clean=False)
    tokens, mask, t, noise = batch()
    x = diffusion.palette.colors[tokens]
    diffusion.network.forward = lambda *args, **kwargs: x - noise
    z = diffusion.add_noise(tokens, t, noise)
    assert torch.equal(diffusion.denoise(z, t, mask).tokens, tokens * mask)
    assert diffusion(tokens, mask, t, noise)[0] < 1e-10


def test_the_pixel_loss_is_that_of_the_velocity():
    diffusion = make("pixel")
    tokens, mask, _, noise = batch()
    t, x = torch.tensor([0.1, 0.7, 0.94, 0.99]), diffusion.palette.colors[tokens]
    diffusion.network.forward = lambda *args, **kwargs: x + 0.1
    _, per_sample = diffusion(tokens, mask, t, noise)
    assert torch.allclose(per_sample, (0.1 / (1 - t).clamp_min(0.05)).square(), rtol=1e-4)


def test_texts_are_learned_beyond_their_ngrams():
    """A few steps on one batch lower the loss below that of the n-grams, where it starts, through every parameter."""
    diffusion = make(ngram=counted())
    tokens, mask, t, noise = real_batch(0.6)
    optimizer = torch.optim.AdamW(diffusion.network.parameters(), 3e-3)
    losses = []
    for step in range(12):
        loss, _ = diffusion(tokens, mask, t, noise, self_condition=step % 2 == 0)
        loss.backward()
        if step == 11:
            idle = {n for n, p in diffusion.network.named_parameters() if p.grad is None or not p.grad.abs().sum()}
            assert idle <= {"rest_embedding", "prev_proj.weight"}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert diffusion.network.prev_proj.weight.abs().sum() > 0


@pytest.mark.parametrize("order", [2, 3])
def test_a_network_that_ngrams_have_not_joined_predicts_alone(order):
    """And with the weights of a network alone it predicts the same, as it does once joined while its gates are closed."""
    alone, joined = opened(make()), make(ngram=counted(order))
    joined.network.start_from(alone.network.state_dict(), "alone.pth")
    alone.log_unigram.copy_(joined.log_unigram)
    tokens, mask, t, noise = real_batch()
    z = alone.add_noise(tokens, t, noise)
    given = dict(tokens=tokens, prev=torch.ones(4, 64, 16))
    expected = alone.denoise(z, t, mask, **given)
    joined.joined = False
    assert torch.allclose(joined.denoise(z, t, mask, **given).nll, expected.nll, atol=1e-4)
    joined.joined = True
    joined.network.gate.bias.data = torch.tensor([1.0] + [0.0] * (order - 1))
    found = joined.denoise(z, t, mask, **given)
    assert torch.allclose(found.nll, expected.nll, atol=1e-4) and torch.equal(found.tokens, expected.tokens)
    joined(tokens, mask, t, noise)[0].backward()
    assert joined.network.gate.bias.grad.all() and joined.network.soft_proj.weight.grad[:, 16:].any()
    joined.network.gate.bias.data[-1] = 1
    assert (joined.denoise(z, t, mask, **given).nll - expected.nll).abs().max() > 0.1


def test_weights_of_another_run_are_taken_as_they_are_and_those_that_do_not_fit_refused():
    trained = opened(make(ngram=counted()))
    again = make(ngram=counted())
    again.network.start_from(trained.network.state_dict(), "trained.pth")
    assert all(torch.equal(a, b) for a, b in zip(again.network.parameters(), trained.network.parameters()))
    with pytest.raises(UserError, match="trained"):
        make().network.start_from(trained.network.state_dict(), "trained.pth")


# ----------------------------------------------------------------------------------------------------------------------
# What is refused


def test_mismatched_parts_are_refused():
    network = build_jit_model("JiT-Ti/4", 8, vocab_size=VOCAB, token_dim=16)
    palette, layout = build_palette("digits", VOCAB), Layout(8, 4)
    with pytest.raises(UserError, match="64 tokens, the palette 65"):
        Diffusion(network, build_palette("digits", VOCAB + 1), layout)
    with pytest.raises(UserError, match="pixel objective one without"):
        Diffusion(network, palette, layout, "pixel")
    with pytest.raises(UserError, match="unknown objective"):
        Diffusion(network, palette, layout, "words")
    with pytest.raises(UserError, match="unknown sampler"):
        make().sample(torch.ones(1, 16, dtype=torch.bool), torch.tensor([0.5]), "annealed")


def test_a_network_for_ngrams_and_a_diffusion_without_them_are_refused_and_the_other_way_round():
    layout, palette, ngram = Layout(8, 4), build_palette("digits", VOCAB), counted()
    beside = build_jit_model("JiT-Ti/4", 8, vocab_size=VOCAB, token_dim=16, ngram=3)
    alone = build_jit_model("JiT-Ti/4", 8, vocab_size=VOCAB, token_dim=16)
    for network, given, orders in ((beside, None, (3, 0)), (alone, ngram, (0, 3)), (beside, counted(2), (3, 2))):
        message = "n-grams of order {} .* n-gram model of order {}$".format(*orders)
        with pytest.raises(UserError, match=message):
            Diffusion(network, palette, layout, ngram=given)
