"""A pass is given the one before it, once the network has learned what to make of that."""

import pytest
import torch
from torch import nn

from tests.small_diffusion import batch, counted, make, opened, real_batch


@pytest.mark.parametrize("ngram", [False, True])
def test_an_earlier_pass_changes_the_next_once_its_projection_has_learned(ngram):
    diffusion = opened(make(ngram=counted() if ngram else None))
    tokens, mask, t, noise = real_batch(0.5)
    z = diffusion.add_noise(tokens, t, noise)
    for projection, differs in ((0.0, False), (0.3, True)):
        nn.init.normal_(diffusion.network.prev_proj.weight, std=projection)
        first = diffusion.denoise(z, t, mask, tokens=tokens)
        second = diffusion.denoise(z, t, mask, tokens=tokens, prev=first.prev)
        assert torch.allclose(first.nll, second.nll, atol=1e-3) != differs
        losses = [diffusion(tokens, mask, t, noise, self_condition=twice)[0] for twice in (False, True)]
        assert torch.allclose(losses[0], first.nll.sum() / mask.sum(), rtol=1e-4)
        assert torch.allclose(losses[1], second.nll.sum() / mask.sum(), rtol=1e-4)


@pytest.mark.parametrize("predict_clean", [True, False])
def test_a_pixel_network_is_given_its_earlier_picture(predict_clean):
    diffusion = opened(make("pixel", predict_clean))
    tokens, mask, t, noise = batch()
    z = diffusion.add_noise(tokens, t, noise)
    first = diffusion.denoise(z, t, mask)
    assert torch.equal(first.prev, first.x_pred) and first.nll is None
    second = diffusion.denoise(z, t, mask, prev=first.prev)
    assert (second.x_pred - first.x_pred)[mask].abs().max() > 1e-3
    losses = [diffusion(tokens, mask, t, noise, self_condition=twice)[0] for twice in (False, True)]
    assert not torch.allclose(*losses, rtol=1e-3)


def test_what_the_next_pass_is_given_is_the_mean_embedding_of_the_posterior():
    diffusion = make()
    diffusion.network.head.bias.data.normal_()
    tokens, mask, t, noise = batch()
    z = diffusion.add_noise(tokens, t, noise)
    found = diffusion.denoise(z, t, mask)
    posterior = (diffusion.log_likelihood(z, t[:, None].expand_as(mask)) + diffusion.network.head.bias).softmax(-1)
    assert torch.allclose(found.prev, posterior @ diffusion.network.embedding, atol=1e-4)


def test_recovering_in_several_passes_gives_each_the_one_before():
    diffusion = opened(make(ngram=counted()))
    nn.init.normal_(diffusion.network.prev_proj.weight, std=0.5)
    tokens, mask, t, noise = real_batch(0.5)
    given = mask & (torch.arange(64) < 4)
    z = diffusion.add_noise(tokens, t, noise, given)
    seen = []
    found = diffusion.recover(z, t, mask, given, tokens, passes=3, callback=seen.append)
    prev, by_hand = None, []
    for _ in range(3):
        by_hand.append(diffusion.denoise(z, t, mask, given, tokens, prev))
        prev = by_hand[-1].prev
    assert torch.allclose(found.nll, by_hand[2].nll, atol=1e-4) and torch.equal(found.tokens, by_hand[2].tokens)
    assert not torch.allclose(by_hand[0].nll, by_hand[1].nll, atol=1e-3)
    assert not torch.allclose(by_hand[1].nll, by_hand[2].nll, atol=1e-4)
    assert len(seen) == 3
    assert all(torch.allclose(x, each.x_pred, atol=1e-5) for x, each in zip(seen, by_hand))
