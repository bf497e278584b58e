"""CIFAR-10 in small: real images where they lie, drawn ones everywhere."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import run_main
from tests.runs import made_once
from vit_cifar10 import train

TINY = ("--preset", "tiny", "--device", "cpu", "--precision", "fp32")
SHORT = (*TINY, "--val_images", "40", "--batch_size", "20", "--epochs", "3", "--log_interval", "3")


def write_npz(folder, split, images, labels):
    np.savez(folder / f"cifar10_{split}.npz", images=images, labels=np.asarray(labels, dtype=np.int64))


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images whose class is their color, under noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    colors = np.random.default_rng(0).integers(40, 216, (10, 3))
    noise = rng.normal(0, 25, (count, 32, 32, 3))
    return (colors[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """200 training and 100 test images that are drawn; ten of the latter have wrong labels."""

    def make(folder):
        write_npz(folder, "train", *drawn(200, 1))
        pixels, labels = drawn(100, 2)
        labels[:10] = labels[:10][::-1]
        write_npz(folder, "test", pixels, labels)

    return made_once(tmp_path_factory, "drawn", make)


@pytest.fixture(scope="session")
def real_images(shared, tmp_path_factory):
    """600 training and 300 test images of CIFAR-10."""
    folder = tmp_path_factory.mktemp("real")
    for split, count in (("train", 600), ("test", 300)):
        pack = np.load(shared / "cifar10" / f"cifar10_{split}_jpegpack.npz")
        offsets, data = pack["offsets"], pack["jpeg"]
        decoded = [Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())) for i in range(count)]
        write_npz(folder, split, np.stack([np.asarray(image) for image in decoded]), pack["labels"][:count])
    return folder


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """A tree of PNG files of several sizes, three classes."""
    folder = tmp_path_factory.mktemp("tree")
    pixels, labels = drawn(60, 3)
    for index, (array, label) in enumerate(zip(pixels, labels % 3)):
        for split in ("train", "test"):
            place = folder / split / ("ant", "bee", "cow")[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).resize((32 + index, 40)).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def trained(images, tmp_path_factory):
    """A finished run on the drawn images, with its report."""
    make = partial(run_main, train, "--data_path", images, *SHORT, "--output_dir")
    return made_once(tmp_path_factory, "vit_trained", make)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
