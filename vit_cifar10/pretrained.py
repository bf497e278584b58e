"""A checkpoint ready for use: network, preprocessing and the names of the classes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from kit.checkpoint import load_checkpoint, load_weights
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
    try:
        model = build_model(saved["config"], len(saved["classes"]))
        preprocess = Preprocess(saved["config"]["img_size"], saved["mean"], saved["std"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no checkpoint of vit_cifar10.train: its config lacks {error}") from error
    load_weights(model, saved["ema_state_dict"] if ema else saved["model_state_dict"], path)
    return Pretrained(model.to(device).eval(), preprocess, list(saved["classes"]), saved["config"], Path(path))
