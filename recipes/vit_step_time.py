"""Does loading or augmentation hold training back? Step time with real and with fixed data, in turns.

    python -m recipes.vit_step_time --data_path path/to/cifar10 [arguments of vit_cifar10.train]

Writes results/vit_cifar10/step_time.json: milliseconds per step of real batches (indexing, augmenting, stepping), of one
batch augmented beforehand, and of indexing and augmenting alone.
"""

import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from kit import device
from kit.compiling import compile_blocks
from kit.runlog import environment, write_json
from vit_cifar10.augment import Augment, Preprocess, build_mix
from vit_cifar10.dataset import epoch_batches, load_split
from vit_cifar10.pretrained import build_model
from vit_cifar10.train import build_optimizers, get_batch, parse_args
from vit_cifar10.train import statistics as channel_statistics

ROUNDS = 7


def main() -> None:
    args = parse_args()
    runtime = device.start(args.device, args.seed, args.precision)
    data = load_split(args.data_path, "train", args.img_size).to(runtime.device)
    augment = Augment(
        Preprocess(args.img_size, *channel_statistics(data)), args.crop_padding, args.trivial_augment, args.erase_prob
    )
    mix = build_mix(args.mixup, args.cutmix, len(data.classes))
    model = build_model(vars(args), len(data.classes)).to(runtime.device)
    if args.compile:
        compile_blocks(model)
    optimizers = build_optimizers(model, args)

    def prepare(indices):
        images, labels = get_batch(data, indices, runtime)
        return mix(augment(images), labels)

    def train(inputs, targets):
        with runtime.autocast():
            logits = model(inputs)
        F.cross_entropy(logits.float(), targets, label_smoothing=args.label_smoothing).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    order = list(epoch_batches(len(data), args.batch_size, args.seed, 0, 0, 0, 1))
    fixed = prepare(order[0])
    kinds = {
        "real": lambda indices: train(*prepare(indices)),
        "fixed": lambda indices: train(*fixed),
        "augmentation": prepare,
    }
    count = 50 if runtime.device.type == "cuda" else 3
    times = {name: [] for name in kinds}
    for step in range(ROUNDS + 1):  # the first round warms up
        for name, work in kinds.items():
            wait(runtime)
            start = time.perf_counter()
            for indices in order[:count]:
                work(indices)
            wait(runtime)
            if step:
                times[name].append(1000 * (time.perf_counter() - start) / count)
    result = {
        "milliseconds_per_step": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in times.items()
        },
        "real_over_fixed": statistics.median(a / b for a, b in zip(times["real"], times["fixed"])),
        "config": {name: value for name, value in vars(args).items() if name not in ("data_path", "output_dir")},
        "environment": environment(runtime) | {"argv": None},
    }
    folder = Path(__file__).parent.parent / "results" / "vit_cifar10"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "step_time.json", result)
    print({name: round(values["median"], 2) for name, values in result["milliseconds_per_step"].items()})


def wait(runtime: device.Runtime) -> None:
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
