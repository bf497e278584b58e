"""Write a checkpoint as ONNX and as a torch.export program, and check both against the original's logits.

    python -m vit_cifar10.export --checkpoint checkpoints/vit/last.pth --output_dir checkpoints/vit/export

Both take images (B, 3, img_size, img_size) as float32 in [0, 1], any B, and return logits (B, classes): the
normalization is inside.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from kit import errors
from kit.arguments import program
from kit.errors import UserError
from kit.runlog import make_folder, write_json
from kit.whole import whole
from vit_cifar10.pretrained import Pretrained, load_pretrained

TOLERANCE = 1e-4  # largest difference of a logit from the original's
FORMATS = ("onnx", "torch")


class Deployed(nn.Module):
    """The network with its normalization in front: images in [0, 1] -> logits."""

    def __init__(self, loaded: Pretrained):
        super().__init__()
        self.model = loaded.model
        self.register_buffer("mean", torch.tensor(loaded.preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(loaded.preprocess.std).view(3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model((images - self.mean) / self.std)


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", required=True, help="last.pth or best_model.pth of a run")
    parser.add_argument("--output_dir", help="folder to write (default: export beside the checkpoint)")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS, help="what to write")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    loaded = load_pretrained(args.checkpoint, torch.device("cpu"))
    output = make_folder(args.output_dir or loaded.path.parent / "export")
    deployed = Deployed(loaded).eval()
    side = loaded.preprocess.img_size
    program = torch.export.export(
        deployed, (torch.rand(2, 3, side, side),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    images = torch.rand(
        5, 3, side, side, generator=torch.Generator().manual_seed(0)
    )  # another batch than it was traced with
    with torch.no_grad():
        expected = deployed(images)
    writers = {"onnx": (write_onnx, "model.onnx"), "torch": (write_program, "model.pt2")}
    for name in args.formats:
        write, file = writers[name]
        difference = (write(program, output / file, images) - expected).abs().max().item()
        if not difference < TOLERANCE:
            raise UserError(f"{output / file} differs from {args.checkpoint} by {difference:.2g} in a logit")
        print(f"{output / file}  largest difference of a logit {difference:.1e}")
    write_json(output / "classes.json", loaded.classes)


def write_onnx(program: torch.export.ExportedProgram, path: Path, images: torch.Tensor) -> torch.Tensor:
    """Write `path`, read it back with onnxruntime, return its logits of `images`."""
    try:
        import onnxruntime

        torch.onnx.export(
            program, (), path, input_names=["images"], output_names=["logits"], external_data=False, verbose=False
        )
    except ImportError as error:
        raise UserError(f"ONNX needs its packages: pip install onnx onnxscript onnxruntime ({error})") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def write_program(program: torch.export.ExportedProgram, path: Path, images: torch.Tensor) -> torch.Tensor:
    """Write `path`, read it back, return its logits of `images`."""
    with whole(path) as partial:
        torch.export.save(program, partial)
    with torch.no_grad():
        return torch.export.load(path).module()(images)


if __name__ == "__main__":
    errors.run(main)
