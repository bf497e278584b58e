"""Starting weights from timm's plain vision transformers: by name, or from a safetensors file on disk."""

from dataclasses import dataclass
from pathlib import Path

import torch

from kit.errors import UserError
from vit_cifar10.model import VisionTransformer, resize_pos_embed

HALF = [0.5, 0.5, 0.5]  # mean and standard deviation that most of timm's ViTs were trained with


@dataclass
class TimmWeights:
    """`architecture` holds arguments of VisionTransformer; `mean` and `std` are what the weights expect."""

    architecture: dict
    state: dict[str, torch.Tensor]
    mean: list[float]
    std: list[float]
    origin: str

    def load_into(self, model: VisionTransformer) -> None:
        """Copy everything but the head, which stays fresh; position embeddings are resized to the model's grid.

        Raises UserError if the weights are of another kind of network.
        """
        state = {name: value for name, value in self.state.items() if not name.startswith("head.")}
        state["pos_embed"] = resize_pos_embed(state["pos_embed"], model.grid, model.prefix)
        own = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
        wrong = sorted(own.keys() ^ state.keys()) or [n for n in own if own[n].shape != state[n].shape]
        if wrong:
            raise UserError(f"{self.origin} is no plain ViT: {wrong[0]} does not fit ({len(wrong)} such tensors)")
        model.load_state_dict(state, strict=False)


def load_timm(source: str, img_size: int) -> TimmWeights:
    """Weights of timm model `source`, or of a .safetensors file that holds one's state_dict, for images of `img_size`.

    A file does not say how many heads there are; it gets one for every 64 channels, as in timm's tiny to large, and 16
    in huge. Raises UserError for a name that is unknown or cannot be downloaded, and for a file that is no ViT.
    """
    mean, std, heads = HALF, HALF, None
    if source.endswith(".safetensors"):
        state = _read_safetensors(Path(source))
    else:
        state, heads, mean, std = _download(source)
    try:
        dim, _, patch_size, _ = state["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        pool = "cls" if "cls_token" in state else "mean"
        state["pos_embed"]
    except (KeyError, ValueError) as error:
        raise UserError(f"{source} holds no plain ViT of timm: {error} is missing") from error
    if img_size % patch_size:
        raise UserError(f"--img_size {img_size} is no multiple of the weights' patch size {patch_size}")
    architecture = {"img_size": img_size, "patch_size": patch_size, "embed_dim": dim, "depth": depth, "pool": pool}
    architecture |= {"num_heads": heads or (16 if dim == 1280 else dim // 64), "mlp_ratio": hidden / dim}
    return TimmWeights(architecture, state, list(mean), list(std), source)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"no weights at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error})") from error


def _download(name: str) -> tuple[dict, int, list, list]:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"weights by name need timm: pip install timm ({error})") from error
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:3])
        raise UserError(f"timm has no model {name!r}{': did you mean ' + close if close else ''}")
    if not timm.model_entrypoint(name).__module__.endswith(".vision_transformer"):
        raise UserError(f"{name} is no plain vision transformer")
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub client raises its own family, RuntimeError for models without weights
        raise UserError(f"cannot download {name}: {error}; name a .safetensors file instead") from error
    cfg = model.pretrained_cfg
    return model.state_dict(), model.blocks[0].attn.num_heads, cfg["mean"], cfg["std"]
