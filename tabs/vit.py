"""ViT: an image, its classes, and where the network looks."""

from pathlib import Path

import gradio
import numpy as np
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from kit.errors import UserError
from tabs import show
from vit_cifar10.attention import attention_maps, on_patches, overlay, rollout
from vit_cifar10.dataset import read_image
from vit_cifar10.pretrained import Pretrained, load_pretrained


@torch.no_grad()
def classify(loaded: Pretrained, path: str | None) -> tuple[dict[str, float], str]:
    """The probability of each class, and the attention rollout over the image."""
    if not path:
        raise UserError("choose an image first")
    image = loaded.preprocess.resize(pil_to_tensor(read_image(Path(path))))
    device = loaded.model.head.weight.device
    maps, logits = attention_maps(loaded.model, loaded.preprocess(image[None].to(device)))
    heat = on_patches(loaded.model, rollout(maps))[0].cpu()
    seen = image.permute(1, 2, 0).numpy()
    pictures = [
        show.picture(_large(seen), f"as the network sees it, {image.shape[1]}×{image.shape[2]}"),
        show.picture(
            _large((255 * overlay(torch.from_numpy(seen.copy()), heat)).astype(np.uint8)), "attention rollout"
        ),
    ]
    chances = logits.float().softmax(1)[0].tolist()
    return dict(zip(loaded.classes, chances)), show.row(pictures)


def _large(pixels: np.ndarray) -> np.ndarray:
    times = max(1, 256 // len(pixels))
    return pixels.repeat(times, 0).repeat(times, 1)


def build(path: str | None, device: torch.device) -> None:
    """The controls, or how to come by a checkpoint."""
    if path is None:
        gradio.Markdown(
            "A vision transformer from scratch on CIFAR-10, the control experiment. This tab needs a checkpoint, which takes "
            "about ten minutes of two cores (seed 0 of three):\n\n```bash\n./recipes/vit_cpu.sh\npython demo.py --vit checkpoints/vit_rows/cpu/0/last.pth\n```"
        )
        return
    loaded = load_pretrained(path, device)
    gradio.Markdown(f"A vision transformer from scratch; classes: {', '.join(loaded.classes)}.")
    with gradio.Row():
        image = gradio.Image(type="filepath", label="Image", sources=["upload"], height=260)
        classes = gradio.Label(num_top_classes=5, label="Classes")
    go = gradio.Button("Classify", variant="primary")
    looked = gradio.HTML(elem_id="looked")

    @show.guarded
    def on_classify(path):
        return classify(loaded, path)

    go.click(on_classify, image, [classes, looked])
