"""From stored images to what the network sees, a whole batch at a time on the device that trains.

Flips and crops are drawn per image. What torchvision.transforms.v2 draws once a call (TrivialAugment, erasing) is called
on groups of a few images; MixUp and CutMix are v2's own. All parameters come from torch's CPU generator.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

GROUP = 8  # images that share the parameters of one v2 call


class Preprocess:
    """uint8 images (B, 3, H, W) of any size -> normalized float32 (B, 3, img_size, img_size)."""

    def __init__(self, img_size: int, mean: list[float], std: list[float]):
        self.img_size = img_size
        self.mean, self.std = mean, std

    def resize(self, images: torch.Tensor) -> torch.Tensor:
        """The middle square, `img_size` wide."""
        if images.shape[-2:] == (self.img_size, self.img_size):
            return images
        return v2.functional.center_crop(v2.functional.resize(images, self.img_size, antialias=True), self.img_size)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Channels of mean 0 and standard deviation 1 over the training set."""
        return v2.functional.normalize(v2.functional.to_dtype(images, torch.float32, scale=True), self.mean, self.std)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.normalize(self.resize(images))


class Augment:
    """Training images: resize, flip, crop after padding, optionally TrivialAugment, normalize, optionally erase."""

    def __init__(self, preprocess: Preprocess, crop_padding: int, trivial: bool, erase_prob: float):
        self.preprocess = preprocess
        self.crop_padding = crop_padding
        self.trivial = v2.TrivialAugmentWide() if trivial else None
        self.erase = v2.RandomErasing(erase_prob) if erase_prob else None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = random_crop(random_flip(self.preprocess.resize(images)), self.crop_padding)
        if self.trivial:
            images = in_groups(self.trivial, images)
        images = self.preprocess.normalize(images)
        return in_groups(self.erase, images) if self.erase else images


def random_flip(images: torch.Tensor) -> torch.Tensor:
    """Each image mirrored left to right with a chance of one half."""
    flipped = (torch.rand(len(images)) < 0.5).to(images.device)
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def random_crop(images: torch.Tensor, padding: int) -> torch.Tensor:
    """Each image shifted by up to `padding` pixels either way, black moving in."""
    if not padding:
        return images
    B, _, H, W = images.shape
    padded = F.pad(images, [padding] * 4)
    top, left = torch.randint(2 * padding + 1, (2, B)).to(images.device)
    rows = top[:, None, None] + torch.arange(H, device=images.device)[:, None]
    columns = left[:, None, None] + torch.arange(W, device=images.device)
    return padded[torch.arange(B, device=images.device)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def in_groups(transform: Callable, images: torch.Tensor) -> torch.Tensor:
    """`transform` called on every GROUP images."""
    return torch.cat([transform(group) for group in images.split(GROUP)])


def build_mix(mixup: float, cutmix: float, num_classes: int) -> Callable:
    """(images, labels (B,)) -> (mixed images, probabilities (B, C)); `mixup` and `cutmix` are the alphas, 0 = none."""
    choices = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
    choices += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []
    return v2.RandomChoice(choices) if choices else lambda images, labels: (images, labels)
