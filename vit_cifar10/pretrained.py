"""A checkpoint ready for use: network, preprocessing and the names of the classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torchvision.transforms.v2.functional import pil_to_tensor

from kit.checkpoint import build_fitting, load_checkpoint, validated
from kit.errors import UserError
from kit.hub import HubModel
from vit_cifar10.augment import Preprocess
from vit_cifar10.dataset import read_image
from vit_cifar10.model import VisionTransformer

ARCHITECTURE = (
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "pool",
    "mlp_ratio",
    "dropout",
    "drop_path",
)
PATHS = ("data_path", "output_dir", "resume", "weights", "wandb")  # settings that name places
NEEDED = ("model_state_dict", "ema_state_dict", "config", "classes", "mean", "std")


Fraction = Annotated[float, Field(ge=0, lt=1)] | Literal[0]
Classes = Annotated[list[str], Field(min_length=1, max_length=100_000)]
Channels = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
Spreads = Annotated[list[Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=3, max_length=3)]


class SavedConfig(BaseModel):
    """What is read of the settings in a checkpoint, in ranges that no real network leaves."""

    model_config = ConfigDict(extra="allow")

    img_size: Annotated[int, Field(ge=1, le=4096)]
    patch_size: Annotated[int, Field(ge=1, le=4096)]
    embed_dim: Annotated[int, Field(ge=1, le=2**16)]
    depth: Annotated[int, Field(ge=0, le=1024)]
    num_heads: Annotated[int, Field(ge=1, le=1024)]
    pool: Literal["cls", "mean"]
    mlp_ratio: Annotated[float, Field(gt=0, le=64)]
    dropout: Fraction
    drop_path: Fraction


@dataclass(eq=False)
class Pretrained(HubModel):
    """`model` in evaluation mode on its device; `preprocess` makes its input; `classes` names its outputs."""

    TITLE = "A vision transformer from scratch"
    ABOUT = "A plain ViT for small images."
    USAGE = 'from vit_cifar10.pretrained import Pretrained\n\nloaded = Pretrained.from_pretrained("OWNER/NAME")  # or a folder'
    TAGS = ("image-classification", "vit")

    model: VisionTransformer
    preprocess: Preprocess
    classes: list[str]
    config: dict
    path: Path

    def state(self) -> dict:
        config = {name: value for name, value in self.config.items() if name not in PATHS}
        return {
            "ema_state_dict": self.model.state_dict(), "config": config, "classes": self.classes,
            "mean": list(self.preprocess.mean), "std": list(self.preprocess.std),
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, device: torch.device) -> "Pretrained":
        return load_pretrained(path, device)

    def numbers(self, report: dict) -> str:
        low, high = report["accuracy_interval"]
        return f"- {report['accuracy']:.2%} of {report['images']:,} test images right (95 % interval {low:.1%} to {high:.1%})"

    def read(self, paths: list[Path]) -> torch.Tensor:
        """Image files of any size as uint8 squares (N, 3, img_size, img_size). Raises UserError for what is no image."""
        return torch.stack([self.preprocess.resize(pil_to_tensor(read_image(path))) for path in paths])


def build_model(config: dict, num_classes: int) -> VisionTransformer:
    """The network that the arguments of a run describe."""
    return VisionTransformer(num_classes=num_classes, **{name: config[name] for name in ARCHITECTURE})


def load_pretrained(path: str | Path, device: torch.device, ema: bool = True) -> Pretrained:
    """Load a checkpoint of `train`, by default its averaged weights. Raises UserError for any other file."""
    saved = load_checkpoint(path, NEEDED)
    config, state = saved["config"], saved["ema_state_dict"] if ema else saved["model_state_dict"]
    for kind, value in (
        (SavedConfig, config),
        (Classes, saved["classes"]),
        (Channels, saved["mean"]),
        (Spreads, saved["std"]),
    ):
        validated(kind, value, path)
    if config["embed_dim"] % config["num_heads"] or config["img_size"] % config["patch_size"]:
        raise UserError(f"{path} is damaged: its sizes do not divide each other")
    model = build_fitting(lambda: build_model(config, len(saved["classes"])), state, path)
    preprocess = Preprocess(config["img_size"], saved["mean"], saved["std"])
    return Pretrained(model.to(device).eval(), preprocess, list(saved["classes"]), saved["config"], Path(path))
