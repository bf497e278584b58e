"""The flow samples what it was given in the right proportions, leaves prompts alone and padding out."""

import math

import pytest
import torch

from kit.sampling import SAMPLERS
from kit.times import TimeSampler
from tokcom.config import ModelArgs
from tokcom.flow import Flow, Prediction
from tokcom.model import DenoisedModel, TokComVAE

ARGS = ModelArgs(
    hidden_size=32, num_hidden_layers=2, vae_num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=64, latent_dim=6, chunk_size=4, max_length=32, vocab_size=20, mask_token_id=20,
)  # fmt: skip


@pytest.fixture
def flow():
    torch.manual_seed(0)
    denoiser = DenoisedModel(ARGS).eval()
    for head in (denoiser.mean, denoiser.embed_mean, denoiser.output):
        torch.nn.init.normal_(head.weight, std=0.2)
    for block in denoiser.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.05)
    return Flow(TokComVAE(ARGS).eval(), denoiser)


class TwoPoints(Flow):
    """The exact conditional mean of a mixture: every number is +1 with probability 0.8, else -1."""

    def predict(self, y, sigma, mask, cond_mask=None, x_prev=None):
        logit = 2 * y / sigma.view(-1, 1, 1) ** 2 + math.log(0.8 / 0.2)
        mean = torch.tanh(logit / 2)
        return Prediction(mean, torch.zeros(*mask.shape, 1), None)


@pytest.mark.parametrize("noise_std", [1.0, 0.05])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_come_in_their_true_proportions(sampler, noise_std):
    toy = TwoPoints(TokComVAE(ARGS), DenoisedModel(ARGS), noise_std)
    grid = TimeSampler("logit_normal", 0.0, 1.5, noise_std=noise_std).grid(40)
    found = toy.sample(
        torch.ones(500, 8, dtype=torch.bool), grid, sampler, generator=torch.Generator().manual_seed(0)
    ).x_pred
    share = (found > 0).float().mean().item()
    assert (found.abs() > 0.9).float().mean() > 0.99
    assert abs(share - 0.8) < 4 * math.sqrt(0.16 / found.numel()) + 0.012


def test_the_prediction_of_an_untrained_network_is_the_best_without_context():
    """With both heads at zero x_pred is y / (1 + sigma^2), the mean of a latent of unit spread given y, and tokens are the decoder's of y."""
    untrained = Flow(TokComVAE(ARGS), DenoisedModel(ARGS))
    y = torch.randn(3, 8, 6)
    sigma = torch.tensor([0.1, 1.0, 5.0])
    guess = untrained.predict(y, sigma, torch.ones(3, 8, dtype=torch.bool))
    assert torch.allclose(guess.x_pred, y / (1 + sigma.view(3, 1, 1) ** 2))
    assert torch.allclose(guess.logits, untrained.vae.decode(y), atol=1e-5)


def test_noise_follows_the_path(flow):
    x, noise = torch.randn(2, 8, 6), torch.randn(2, 8, 6)
    ends = [flow.add_noise(x, torch.full((2,), t), noise) for t in (0.0, 1.0)]
    assert torch.equal(ends[0], noise) and torch.equal(ends[1], x)
    assert torch.allclose(flow.add_noise(x, torch.tensor([0.25, 0.25]), noise), 0.75 * noise + 0.25 * x)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_positions_stay_untouched(flow, sampler, guidance):
    clean = torch.randn(3, 8, 6)
    cond_mask = (torch.arange(8) < 5).expand(3, 8)
    mask = torch.ones(3, 8, dtype=torch.bool)
    passes = []
    predict = flow.predict
    flow.predict = lambda y, sigma, mask, cond_mask, x_prev: (
        passes.append((y, cond_mask)) or predict(y, sigma, mask, cond_mask, x_prev)
    )
    found = flow.sample(
        mask, TimeSampler("uniform").grid(5), sampler, cond_mask=cond_mask, cond_latents=clean, guidance=guidance
    )
    assert all(torch.equal(y[:, :5], clean[:, :5]) for y, given in passes if given is not None)
    assert torch.allclose(found.x_pred[cond_mask], clean[cond_mask])
    assert found.x_pred[~cond_mask].isfinite().all()


def test_a_prompt_changes_what_follows(flow):
    cond_mask = (torch.arange(8) < 5).expand(1, 8)
    mask = torch.ones(1, 8, dtype=torch.bool)
    y, sigma = torch.randn(1, 8, 6), torch.ones(1)
    one, other = (
        flow.predict(torch.where(cond_mask.unsqueeze(-1), torch.randn(1, 8, 6), y), sigma, mask, cond_mask)
        for _ in "ab"
    )
    assert not torch.allclose(one.x_pred[:, 5:], other.x_pred[:, 5:])


def test_padding_changes_nothing(flow):
    y, sigma = torch.randn(1, 8, 6), torch.tensor([0.7])
    mask = torch.arange(8)[None] < 5
    moved = torch.where(mask.unsqueeze(-1), y, 100 * torch.randn(1, 8, 6))
    first, second = (flow.predict(each, sigma, mask).x_pred[:, :5] for each in (y, moved))
    assert torch.allclose(first, second)
    alone = flow.predict(y[:, :5], sigma, mask[:, :5]).x_pred
    assert torch.allclose(first, alone, atol=1e-5)


def test_losses_count_neither_padding_nor_prompts(flow):
    tokens = torch.randint(20, (2, 32))
    mask = torch.arange(32) < torch.tensor([[32], [18]])
    cond_mask = torch.arange(8) < torch.tensor([[3], [0]])
    t, noise = torch.tensor([0.4, 0.6]), torch.randn(2, 8, 6)
    _, ce, mse = flow(tokens, mask, t, noise, cond_mask, False)
    flow_again = flow(torch.where(mask, tokens, (tokens + 1) % 20), mask, t, noise, cond_mask, False)
    assert torch.allclose(ce, flow_again[1]) and torch.allclose(mse, flow_again[2])
    x = flow.vae.encode(tokens, mask)
    sigma = (1 - t) / t
    y = x + torch.where(cond_mask, 0.0, sigma[:, None]).unsqueeze(-1) * noise
    guess = flow.predict(y, sigma, torch.arange(8) < torch.tensor([[8], [5]]), cond_mask)
    nll = torch.nn.functional.cross_entropy(guess.logits.transpose(1, 2), tokens, reduction="none")
    assert torch.allclose(guess.nll(tokens), nll, atol=1e-5) and torch.equal(guess.tokens(), guess.logits.argmax(-1))
    assert ce[0].item() == pytest.approx(nll[0, 12:].mean().item(), rel=1e-4)
    assert ce[1].item() == pytest.approx(nll[1, :18].mean().item(), rel=1e-4)


def test_only_squared_error_moves_the_mean_head(flow):
    """Cross-entropy would pull the conditional mean off, and the sampler integrates it."""
    flow.mse_weight = 0.0
    tokens = torch.randint(20, (2, 32))
    mask = torch.ones(2, 32, dtype=torch.bool)
    cond_mask = torch.zeros(2, 8, dtype=torch.bool)
    loss, _, _ = flow(tokens, mask, torch.tensor([0.3, 0.7]), torch.randn(2, 8, 6), cond_mask, False)
    loss.backward()
    assert flow.denoiser.mean.weight.grad is None or not flow.denoiser.mean.weight.grad.any()
    assert flow.denoiser.embed_mean.weight.grad is None or not flow.denoiser.embed_mean.weight.grad.any()
    assert flow.denoiser.output.weight.grad.any()
