"""The network is timm's plain ViT, tensor for tensor, and its presets are what the README says."""

import pytest
import timm
import torch
import torch.nn.functional as F

from kit.errors import UserError
from vit_cifar10.attention import attention_maps, capture, on_patches, rollout
from vit_cifar10.model import Attention, Block, VisionTransformer, resize_pos_embed
from vit_cifar10.pretrained import build_model
from vit_cifar10.train import parse_args
from vit_cifar10.weights import TimmWeights

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}


def preset(name, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "--preset", name])
    return vars(parse_args())


def test_logits_equal_timms_for_the_same_weights():
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=7
    ).eval()
    torch.nn.init.normal_(theirs.head.weight)
    ours = VisionTransformer(**SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 32, 32)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)


def test_attention_is_the_fused_kernels():
    layer = Attention(48, 3, 0.0)
    x = torch.randn(2, 10, 48)
    q, k, v = layer.project(x)
    fused = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert torch.allclose(layer(x), layer.proj(fused), atol=1e-6)
    assert torch.allclose(layer.weights(x) @ v, F.scaled_dot_product_attention(q, k, v), atol=1e-6)


def test_mean_pooling_sees_every_patch_and_no_class_token():
    model = VisionTransformer(**SMALL, pool="mean").eval()
    assert model.cls_token is None and model.pos_embed.shape == (1, 16, 48)
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    model(image).square().sum().backward()
    assert (F.avg_pool2d(image.grad.abs(), 8) > 0).all()


def test_patches_are_told_apart_by_their_place():
    """Attention and pooling alone do not know the order."""
    model = VisionTransformer(**SMALL, pool="mean").eval()
    image = torch.randn(1, 3, 32, 32)
    moved = image.roll(8, dims=3)
    assert not torch.allclose(model(image), model(moved), atol=1e-4)
    model.pos_embed.data.zero_()
    assert torch.allclose(model(image), model(moved), atol=1e-5)


def test_stochastic_depth_drops_whole_branches_of_samples_and_keeps_the_mean():
    block = Block(16, 2, 2.0, 0.0, drop_path=0.5).train()
    branch = torch.ones(4000, 3, 16)
    kept = block._drop(branch)
    assert set(kept.unique().tolist()) == {0.0, 2.0} and (kept.flatten(1).std(1) == 0).all()
    assert kept.mean() == pytest.approx(1.0, abs=0.06)
    assert torch.equal(block.eval()._drop(branch), branch)


def test_position_embeddings_keep_their_picture_when_resized():
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    embedding = torch.cat([torch.full((1, 1, 1), 5.0), ramp.reshape(1, 64, 1)], dim=1)
    assert torch.allclose(resize_pos_embed(embedding, 8, 1), embedding, atol=1e-6)
    wider = resize_pos_embed(embedding, 16, 1)
    assert wider[0, 0, 0] == 5.0
    grid = wider[0, 1:, 0].view(16, 16)
    assert (grid.diff(dim=1) > -0.01).all() and torch.allclose(grid[0], grid[9], atol=1e-5)


@pytest.mark.parametrize(("name", "low", "high"), [("seed", 10e6, 11.5e6), ("cifar", 1e6, 7e6), ("tiny", 5e4, 2e5)])
def test_presets_have_the_size_they_claim(name, low, high, monkeypatch):
    config = preset(name, monkeypatch)
    model = build_model(config, 10)
    assert low < sum(p.numel() for p in model.parameters()) < high
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 1 and convolutions[0].stride == convolutions[0].kernel_size


def test_the_preset_reference_is_the_reference_recipe(monkeypatch):
    config = preset("reference", monkeypatch)
    expected = {
        "img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 6, "num_heads": 6, "optimizer": "adamw", "lr": 3e-4,
        "weight_decay": 0.1, "schedule": "cosine", "batch_size": 64, "epochs": 20, "crop_padding": 4, "mixup": 0.0,
        "cutmix": 0.0, "label_smoothing": 0.0, "dropout": 0.0, "drop_path": 0.0, "warmup_fraction": 0.0,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected


def test_any_inner_layer_can_be_captured():
    model = VisionTransformer(**SMALL).eval()
    with capture(model, "blocks.1.mlp", "norm") as seen:
        model(torch.randn(2, 3, 32, 32))
    assert seen["blocks.1.mlp"].shape == seen["norm"].shape == (2, 17, 48)
    assert not model.norm._forward_hooks
    with pytest.raises(UserError, match=r"no layer 'blocks.9'"), capture(model, "blocks.9"):
        pass


def test_rollout_of_layers_that_look_at_themselves_is_the_identity():
    model = VisionTransformer(**SMALL).eval()
    maps, logits = attention_maps(model, torch.randn(2, 3, 32, 32))
    assert maps.shape == (3, 2, 3, 17, 17) and logits.shape == (2, 7)
    assert torch.allclose(maps.sum(-1), torch.ones(3, 2, 3, 17)) and torch.allclose(
        rollout(maps).sum(-1), torch.ones(2, 17)
    )
    assert on_patches(model, rollout(maps)).shape == (2, 4, 4)
    still = torch.eye(17).expand(3, 2, 3, -1, -1)
    assert torch.allclose(rollout(still), torch.eye(17).expand(2, -1, -1))


def test_weights_of_another_kind_of_network_are_refused():
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, init_values=0.1
    )
    weights = TimmWeights({}, theirs.state_dict(), [0.5] * 3, [0.5] * 3, "x.safetensors")
    with pytest.raises(UserError, match=r"no plain ViT: blocks\.0\.ls1\.gamma"):
        weights.load_into(VisionTransformer(**SMALL))
