"""CIFAR-10, or your own folders of images, as one tensor in memory.

`load_split` reads torchvision's CIFAR10 (which it downloads), `cifar10_{train,test}.npz`, or an ImageFolder tree
(`train/CLASS/*.png`, `test/CLASS/*.png`). `epoch_batches` says which images make which batch, as a pure function of seed
and epoch, so that a resumed run goes on where the killed one stopped.
"""

import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

from kit.errors import UserError
from kit.images import open_image
from kit.randomness import step_seed
from kit.runlog import progress_bar

MAX_NPZ = 2**32  # bytes
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


@dataclass
class Images:
    """`images` uint8 (N, 3, H, W) RGB, `labels` long (N,), and the names of the classes."""

    images: torch.Tensor
    labels: torch.Tensor
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: torch.Tensor) -> "Images":
        return Images(self.images[indices], self.labels[indices], self.classes)

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device), self.classes)


def load_split(data_path: str | None, split: str, img_size: int) -> Images:
    """The "train" or "test" images under `data_path`; None means data/cifar10, downloaded if it is not there.

    Images of a folder tree are resized to `img_size`; CIFAR stays 32x32. Raises UserError for data that is missing,
    damaged or has no classes.
    """
    root = Path(data_path or "data/cifar10")
    if data_path and not root.exists():
        raise UserError(f"no data at {data_path}: name a folder with cifar10_{split}.npz, or with {split}/CLASS/*.png")
    if (root / f"cifar10_{split}.npz").is_file():
        return _load_npz(root / f"cifar10_{split}.npz")
    if (root / split).is_dir():
        return _load_folder(root / split, img_size)
    if data_path and not (root / CIFAR10.base_folder).is_dir():
        raise UserError(
            f"{root} holds neither cifar10_{split}.npz nor {split}/CLASS/ folders nor {CIFAR10.base_folder}/"
        )
    return _load_torchvision(root, split)


def _load_npz(path: Path) -> Images:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_NPZ:
            raise ValueError(f"it unpacks to {size:,} bytes, of which at most {MAX_NPZ:,} are read")
        with np.load(path) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (
        Exception
    ) as error:  # numpy parses an array's header as Python: a damaged one may raise anything, SyntaxError too
        raise UserError(f"{path} is damaged or lacks the arrays images and labels ({error})") from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path}: images are {images.dtype} {images.shape}, labels {labels.shape}; expected uint8 (N, H, W, 3) and (N,)"
        )
    if not len(labels) or not 0 <= labels.min() <= labels.max() < len(CIFAR_CLASSES):
        raise UserError(f"{path}: labels must be 0 to {len(CIFAR_CLASSES) - 1}, one for each image")
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.from_numpy(labels.astype(np.int64)), list(CIFAR_CLASSES))


def _load_torchvision(root: Path, split: str) -> Images:
    try:
        data = CIFAR10(root, train=split == "train", download=True)
    except Exception as error:  # no network surfaces as URLError, a broken archive as RuntimeError, EOFError, OSError
        raise UserError(
            f"cannot download CIFAR-10 into {root} ({error}); name a copy with --data_path, or remove a damaged {root}"
        ) from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Images(images, torch.tensor(data.targets), list(data.classes))


def _load_folder(folder: Path, img_size: int) -> Images:
    try:
        found = ImageFolder(folder)
    except (FileNotFoundError, OSError) as error:
        raise UserError(f"{folder} holds no folder of images for each class ({error})") from error
    fit = v2.Compose([v2.Resize(img_size, antialias=True), v2.CenterCrop(img_size)])
    images = torch.empty(len(found), 3, img_size, img_size, dtype=torch.uint8)
    with progress_bar(len(found), f"read {folder.name}", unit="image") as bar, ThreadPoolExecutor() as threads:
        for index, image in enumerate(threads.map(lambda sample: fit(read_image(sample[0])), found.samples)):
            images[index] = v2.functional.pil_to_tensor(image)
            bar.update()
    return Images(images, torch.tensor(found.targets), found.classes)


def read_image(path: str | Path) -> Image.Image:
    """An RGB image of any size. Raises UserError for a file that is missing or is no image."""
    return open_image(path, "RGB")


def find_images(paths: list[str]) -> list[Path]:
    """Image files among `paths` (files, and folders whose images are taken in name order).

    Raises UserError for a path that is missing and for a folder without images.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            members = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not members:
                raise UserError(f"no images under {path}")
            found += members
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"no image at {path}")
    return found


def hold_out(data: Images, count: int) -> tuple[Images, Images]:
    """Training images and `count` held-out ones, as many of each class in proportion; always the same ones.

    Raises UserError if nothing would be left to train on.
    """
    if count >= len(data):
        raise UserError(f"--val_images {count}: there are only {len(data)} training images")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    order = order[torch.argsort(data.labels[order], stable=True)]  # by class, shuffled within
    place = torch.arange(len(data))
    held = (place + 1) * count // len(data) > place * count // len(data)  # evenly spread over that order
    return data.select(order[~held]), data.select(order[held])


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, start: int, rank: int, world_size: int
) -> Iterator[torch.Tensor]:
    """Index tensors (batch_size,) of one epoch, from batch `start` on; rank r takes every world_size-th."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(step_seed(seed, epoch)))
    for batch in range(start, count // (batch_size * world_size)):
        first = (batch * world_size + rank) * batch_size
        yield order[first : first + batch_size]


def same_classes(first: list[str], second: list[str], first_name: str, second_name: str) -> None:
    """Raises UserError unless both lists are equal."""
    if first != second:
        raise UserError(f"classes differ: {', '.join(first)} in {first_name}; {', '.join(second)} in {second_name}")
