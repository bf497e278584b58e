"""The network starts as documented, ignores padding, and refuses what does not fit."""

import pytest
import torch

from kit.errors import UserError
from model import build_jit_model, load_pretrained_jit

NAMED = [
    "JiT-Ti/4",
    "JiT-S/4",
    "JiT-B/2",
    "JiT-B/4",
    "JiT-B/8",
    "JiT-B/16",
    "JiT-B/32",
    "JiT-L/4",
    "JiT-L/16",
    "JiT-L/32",
]


@pytest.mark.parametrize("name", [*NAMED, "JiT-H/16", "JiT-H/32"])
def test_every_preset_can_be_built(name):
    with torch.device("meta"):
        model = build_jit_model(name, 64)
    assert sum(p.numel() for p in model.parameters()) > 5e6


def test_the_base_model_has_the_papers_size():
    with torch.device("meta"):
        model = build_jit_model("JiT-B/4", 64)
    assert (len(model.blocks), model.pos_embed.shape[-1], model.blocks[0].attention.num_heads) == (12, 768, 12)


def test_a_new_network_is_its_head_bias():
    """adaLN-zero gates are closed and the head is zero: whatever goes in, the bias comes out."""
    model = build_jit_model("JiT-Ti/4", 8, vocab_size=50)
    model.head.bias.data.normal_()
    features = model(torch.randn(2, 3, 8, 8), torch.rand(2), torch.ones(2, 8, 8, dtype=torch.bool))
    assert torch.allclose(model.head(features), model.head.bias.expand(2, 8, 8, 50))
    assert all(block.modulation.weight.abs().sum() == 0 for block in model.blocks)


def disturbed(model):
    """Open the gates, so that every part of the network speaks."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_padding_changes_nothing_that_is_real():
    torch.manual_seed(0)
    model = disturbed(build_jit_model("JiT-Ti/4", 16, vocab_size=50))
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, :4] = True
    mask[:, 3, 2] = False
    z, t = torch.randn(1, 3, 16, 16), torch.tensor([0.7])
    other = torch.where(mask[:, None], z, torch.randn_like(z) * 9)
    expected = model(z, t, mask)[mask]
    assert torch.allclose(model(other, t, mask)[mask], expected, atol=1e-5)
    assert torch.allclose(model(z, t, mask, num_patches=4)[mask], expected, atol=1e-5)


def test_every_pixel_sees_every_other():
    torch.manual_seed(0)
    model = disturbed(build_jit_model("JiT-Ti/4", 8, vocab_size=10))
    z = torch.randn(1, 3, 8, 8, requires_grad=True)
    model(z, torch.tensor([0.5]), torch.ones(1, 8, 8, dtype=torch.bool))[0, 0, 0].sum().backward()
    assert (z.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", ["JiT-B", "B/4", "JiT-XXL/4", "JiT-B/0", "JiT-B/four", ""])
def test_unknown_models_are_refused(name):
    with pytest.raises(UserError, match="unknown model"):
        build_jit_model(name, 64)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(UserError, match="not a multiple of the patch size 4"):
        build_jit_model("JiT-Ti/4", 18)


def test_weights_come_back_from_a_checkpoint(trained):
    checkpoint = torch.load(trained / "best_model.pth", weights_only=True)
    model = load_pretrained_jit("JiT-Ti/4", trained / "best_model.pth", 8)
    assert torch.equal(model.unpatch.weight, checkpoint["ema_state_dict"]["unpatch.weight"])
    own = load_pretrained_jit("JiT-Ti/4", trained / "best_model.pth", 8, use_ema=False)
    assert torch.equal(own.unpatch.weight, checkpoint["model_state_dict"]["unpatch.weight"])


def test_a_checkpoint_of_another_model_or_size_is_refused(trained):
    with pytest.raises(UserError, match="--img_size 8, not 64"):
        load_pretrained_jit("JiT-Ti/4", trained / "best_model.pth", 64)
    with pytest.raises(UserError, match="--model JiT-Ti/4, not JiT-B/4"):
        load_pretrained_jit("JiT-B/4", trained / "best_model.pth", 8)
