"""Images come in whole from every layout, are held out evenly, and each epoch shows each once."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from kit.errors import UserError
from tests.vit_cifar10.conftest import drawn, write_npz
from vit_cifar10.augment import Augment, Preprocess, build_mix, random_crop, random_flip
from vit_cifar10.dataset import Images, epoch_batches, hold_out, load_split


def test_npz_files_keep_every_pixel(images):
    data = load_split(str(images), "train", 32)
    pixels, labels = drawn(200, 1)
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert data.labels.tolist() == labels.tolist() and data.classes[3] == "cat"


def test_a_folder_tree_gives_squares_and_its_own_classes(class_folders):
    data = load_split(str(class_folders), "train", 24)
    assert data.images.shape == (60, 3, 24, 24) and data.classes == ["ant", "bee", "cow"]
    assert data.labels.bincount().tolist() == [24, 18, 18]
    means = torch.stack([data.images[data.labels == label].float().mean((0, 2, 3)) for label in range(3)])
    assert torch.cdist(means, means).fill_diagonal_(99).min() > 3


def test_torchvisions_own_files_are_read(tmp_path, monkeypatch):
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    pixels, labels = drawn(50, 1)
    rows = pixels.transpose(0, 3, 1, 2).reshape(50, -1)
    (folder / "part").write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))
    (folder / "meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    digests = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("part", "meta")}
    monkeypatch.setattr(CIFAR10, "train_list", [["part", digests["part"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["part", digests["part"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": digests["meta"]})
    data = load_split(str(tmp_path), "train", 32)
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), pixels) and data.classes == list("abcdefghij")


def test_held_out_images_are_even_over_classes_and_always_the_same():
    pixels, labels = drawn(1000, 0)
    data = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels), list("abcdefghij"))
    torch.manual_seed(5)
    train, val = hold_out(data, 100)
    torch.manual_seed(6)
    again, _ = hold_out(data, 100)
    assert val.labels.bincount().tolist() == [10] * 10 and len(train) == 900
    assert torch.equal(train.images, again.images)
    keys = [{row.tobytes() for row in part.images.numpy()} for part in (train, val)]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 1000
    with pytest.raises(UserError, match="only 1000 training images"):
        hold_out(data, 1000)


def test_an_epoch_shows_every_image_once_over_all_ranks_and_can_start_anywhere():
    ranks = [list(epoch_batches(100, 10, 3, 7, 0, rank, 2)) for rank in range(2)]
    assert sorted(torch.cat(ranks[0] + ranks[1]).tolist()) == list(range(100))
    later = list(epoch_batches(100, 10, 3, 7, 2, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(later, ranks[1][2:])) and len(later) == 3
    assert not torch.equal(ranks[0][0], next(epoch_batches(100, 10, 3, 8, 0, 0, 2)))


def test_crops_are_shifts_and_flips_are_mirrors():
    images = torch.randint(256, (64, 3, 9, 7), dtype=torch.uint8)
    padded = torch.nn.functional.pad(images, [2] * 4)
    seen = set()
    for image, crop in zip(padded, random_crop(images, 2)):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + 9, x : x + 7], crop)]
        assert places
        seen.add(places[0])
    assert len(seen) > 15
    mirrored = (random_flip(images) == images.flip(3)).flatten(1).all(1)
    unchanged = [torch.equal(a, b) for a, b in zip(random_flip(images), images)]
    assert 10 < mirrored.sum() < 54 and 10 < sum(unchanged) < 54


@pytest.mark.parametrize("options", [(0, False, 0.0), (4, False, 0.0), (4, True, 0.5)])
def test_augmentation_is_drawn_from_the_seed_alone(options):
    images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8)
    augment = Augment(Preprocess(32, [0.5] * 3, [0.25] * 3), *options)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert results[0].shape == images.shape and results[0].dtype == torch.float32


def test_preprocessing_is_torchvisions():
    images = torch.randint(256, (2, 3, 40, 50), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    pipeline = v2.Compose(
        [v2.Resize(32), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )
    assert torch.allclose(Preprocess(32, mean, std)(images), pipeline(images))


def test_mixed_targets_are_probabilities():
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8)
    mixed, targets = build_mix(0.8, 1.0, 10)(images, labels)
    assert targets.shape == (8, 10) and torch.allclose(targets.sum(1), torch.ones(8)) and not torch.equal(mixed, images)
    assert build_mix(0, 0, 10)(images, labels) == (images, labels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 32, 32, 3), np.uint8)}, "lacks the arrays"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8), "labels": np.zeros(3, int)}, "expected uint8"),
        ({"images": np.zeros((4, 32, 32), np.uint8), "labels": np.zeros(4, int)}, "expected uint8"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8), "labels": np.full(4, 10)}, "labels must be 0 to 9"),
        ({"images": np.zeros((0, 32, 32, 3), np.uint8), "labels": np.zeros(0, int)}, "labels must be 0 to 9"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "cifar10_train.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_split(str(tmp_path), "train", 32)


def test_a_damaged_file_is_refused(tmp_path):
    write_npz(tmp_path, "train", *drawn(50, 0))
    whole = (tmp_path / "cifar10_train.npz").read_bytes()
    (tmp_path / "cifar10_train.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_split(str(tmp_path), "train", 32)
