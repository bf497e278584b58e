"""The VAE reads whole chunks, lets padding out, and normalizes what it says."""

import pytest
import torch

from corpus.loader import collate
from kit.errors import UserError
from tests.tokcom.test_flow import ARGS
from tokcom.config import PRESETS, ModelArgs, TrainConfig, from_dict, to_dict
from tokcom.model import DenoisedModel, TokComVAE


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return TokComVAE(ARGS).eval()


def test_padding_of_a_chunk_changes_nothing(vae):
    tokens = torch.randint(20, (5, 4))
    mask = torch.tensor([[True, True, False, False]]).expand(5, 4)
    other = torch.where(mask, tokens, (tokens + 7) % 20)
    assert torch.equal(vae.posterior(tokens, mask)[0], vae.posterior(other, mask)[0])
    assert vae.posterior(tokens, torch.zeros_like(mask))[0].isfinite().all()


def test_every_token_and_its_place_reach_the_vector(vae):
    tokens = torch.tensor([[3, 5, 7, 9]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    mean, _ = vae.posterior(tokens, mask)
    for place in range(4):
        changed = tokens.clone()
        changed[0, place] = 11
        assert not torch.allclose(vae.posterior(changed, mask)[0], mean)
    assert not torch.allclose(vae.posterior(tokens[:, [1, 0, 2, 3]], mask)[0], mean)


def test_latents_are_in_units_of_the_statistics(vae):
    tokens, mask = torch.randint(20, (3, 12)), torch.ones(3, 12, dtype=torch.bool)
    raw, _ = vae.posterior(tokens.view(-1, 4), mask.view(-1, 4))
    logits = vae.decode_raw(raw).view(3, 12, 20)
    vae.set_statistics(torch.randn(6), torch.rand(6) + 0.5)
    latents = vae.encode(tokens, mask)
    assert torch.allclose(latents.view(-1, 6) * vae.latent_std + vae.latent_mean, raw, atol=1e-5)
    assert torch.allclose(vae.decode(latents), logits, atol=1e-4)


def test_hidden_tokens_are_hidden(vae):
    tokens, mask = torch.randint(20, (50, 4)), torch.ones(50, 4, dtype=torch.bool)
    all_hidden = vae.posterior(tokens, mask, dropout=1.0)[0]
    assert torch.allclose(all_hidden, all_hidden[:1].expand_as(all_hidden), atol=1e-6)


def test_sequences_are_padded_to_whole_chunks():
    batch = collate([torch.arange(5), torch.arange(9)], 4)
    assert batch["tokens"].shape == (2, 12) and batch["mask"].sum(1).tolist() == [5, 9]


def test_the_v5_2_preset_is_the_seeds():
    args = from_dict(ModelArgs, PRESETS["v5.2"])
    expected = {
        "hidden_size": 896, "num_hidden_layers": 24, "vae_num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "chunk_size": 4, "max_length": 1024,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected and args.max_chunks == 256


def test_the_base_preset_has_about_a_hundred_million_parameters():
    args = from_dict(ModelArgs, PRESETS["base"] | {"vocab_size": 8192, "mask_token_id": 8192})
    with torch.device("meta"):
        count = sum(p.numel() for model in (TokComVAE(args), DenoisedModel(args)) for p in model.parameters())
    assert 80e6 < count < 120e6


@pytest.mark.parametrize("name", PRESETS)
def test_settings_go_to_a_dict_and_come_back(name):
    args, config = from_dict(ModelArgs, PRESETS[name]), from_dict(TrainConfig, PRESETS[name])
    args.check()
    config.check()
    flat = to_dict(args, config)
    assert from_dict(ModelArgs, flat) == args and from_dict(TrainConfig, flat) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 0}, "need 1 to 16"), ({"chunk_size": 17}, "need 1 to 16"), ({"max_length": 30}, "no multiple"),
        ({"hidden_size": 33}, "even width"), ({"num_key_value_heads": 3}, "no multiple"), ({"latent_dim": 0}, "--latent_dim 0: need at least 1"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        from_dict(ModelArgs, to_dict(ARGS) | change).check()
