"""Looking inside a vision transformer: outputs of inner layers, attention maps, attention rollout, and their pictures.

with capture(model, "blocks.3.mlp") as seen:
    model(images)
seen["blocks.3.mlp"]                       # (B, tokens, dim)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.errors import UserError
from kit.figures import blank, plt, save
from vit_cifar10.model import VisionTransformer
from vit_cifar10.pretrained import Pretrained


@contextmanager
def capture(model: torch.nn.Module, *layers: str) -> Iterator[dict[str, torch.Tensor]]:
    """A dict that holds the last output of each named layer (any name of `model.named_modules()`).

    Raises UserError for a name the model does not have.
    """
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            raise UserError(f"the model has no layer {name!r}; it has for example {', '.join(list(modules)[1:4])}")
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.__setitem__(name, output.detach())

    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_maps(model: VisionTransformer, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every block, (depth, B, heads, N, N) float32, and the logits, of normalized images (B, 3, H, W)."""
    names = [f"blocks.{index}.norm1" for index in range(len(model.blocks))]
    with capture(model, *names) as seen:
        logits = model(inputs)
    return torch.stack([block.attn.weights(seen[name]) for block, name in zip(model.blocks, names)]), logits


def rollout(maps: torch.Tensor) -> torch.Tensor:
    """How much of each input token reaches each output token, (B, N, N), from maps (depth, B, heads, N, N).

    Attention rollout: heads averaged, half of each layer taken as the residual path (Abnar & Zuidema, arXiv 2005.00928).
    """
    flow = torch.eye(maps.shape[-1], device=maps.device).expand(maps.shape[1], -1, -1)
    for layer in maps.mean(2):
        flow = (0.5 * layer + 0.5 * torch.eye(layer.shape[-1], device=layer.device)) @ flow
    return flow


def on_patches(model: VisionTransformer, weights: torch.Tensor) -> torch.Tensor:
    """What the answer looks at, (B, grid, grid): the class token's row of weights (B, N, N), or the mean of all rows."""
    row = weights[:, 0] if model.prefix else weights.mean(1)
    return row[:, model.prefix :].unflatten(1, (model.grid, model.grid))


@torch.no_grad()
def draw_attention(loaded: Pretrained, images: torch.Tensor, path: Path) -> None:
    """One row for each uint8 image (B, 3, H, W): the image, where the first, middle and last block look, the rollout."""
    model, preprocess = loaded.model, loaded.preprocess
    device = model.head.weight.device
    maps, logits = attention_maps(model, preprocess(images.to(device)))
    shown = preprocess.resize(images).permute(0, 2, 3, 1).cpu()
    depth = len(maps)
    layers = sorted({0, depth // 2, depth - 1})
    columns = [(f"block {index + 1} of {depth}", on_patches(model, maps[index].mean(1))) for index in layers]
    columns.append(("rollout", on_patches(model, rollout(maps))))
    confidence, guess = logits.softmax(1).max(1)
    width = 1 + len(columns)
    figure, axes = plt.subplots(len(images), width, figsize=(1.9 * width, 2.0 * len(images)), squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    for (title, _), axis in zip([("image", None), *columns], axes[0]):
        axis.set_title(title)
    for index, row in enumerate(axes):
        row[0].imshow(shown[index].numpy(), interpolation="bicubic")
        row[0].set_ylabel(f"{loaded.classes[guess[index]]}\n{confidence[index]:.0%}", fontsize=9)
        for axis, (_, heat) in zip(row[1:], columns):
            axis.imshow(overlay(shown[index], heat[index].cpu()), interpolation="bicubic")
    save(figure, path)


def draw_heads(loaded: Pretrained, image: torch.Tensor, path: Path) -> None:
    """Every head of every block on one uint8 image (3, H, W): rows are blocks, columns are heads."""
    model, preprocess = loaded.model, loaded.preprocess
    maps, _ = attention_maps(model, preprocess(image[None].to(model.head.weight.device)))
    shown = preprocess.resize(image[None])[0].permute(1, 2, 0).cpu()
    depth, _, heads = maps.shape[:3]
    figure, axes = plt.subplots(depth, heads, figsize=(1.4 * heads, 1.4 * depth), squeeze=False)
    for block, row in enumerate(axes):
        row[0].set_ylabel(f"block {block + 1}", fontsize=8)
        for head, axis in enumerate(row):
            axis.imshow(overlay(shown, on_patches(model, maps[block, :, head])[0].cpu()), interpolation="bicubic")
            blank(axis)
            if block == 0:
                axis.set_title(f"head {head + 1}", fontsize=8)
    save(figure, path)


def overlay(image: torch.Tensor, heat: torch.Tensor) -> np.ndarray:
    """A uint8 image (H, W, 3) darkened where heat (grid, grid) is low and tinted where it is high; floats in [0, 1]."""
    heat = F.interpolate(heat[None, None], image.shape[:2], mode="bicubic", align_corners=False)[0, 0]
    low, high = heat.quantile(0.02), heat.quantile(0.98)
    heat = ((heat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)[..., None]
    tint = torch.from_numpy(plt.colormaps["inferno"](heat[..., 0].numpy())[..., :3]).float()
    picture = image.float() / 255
    gray = picture.mean(-1, keepdim=True)
    return ((0.55 * tint + 0.45 * gray) * (0.35 + 0.65 * heat) + 0.25 * picture * heat).clamp(0, 1).numpy()
