"""Train a vision transformer on CIFAR-10 from scratch; ends with the test set, a report and pictures.

    python -m vit_cifar10.train                                        # our recipe; downloads the data
    python -m vit_cifar10.train --time_budget 10m                      # as far as ten minutes go, on any machine
    python -m vit_cifar10.train --preset reference --data_path folder/      # another recipe, your copy of the data
    torchrun --nproc_per_node 8 -m vit_cifar10.train --batch_size 64   # several GPUs
    python -m vit_cifar10.train --output_dir checkpoints/vit --resume auto

Writes last.pth, best_model.pth (by held-out accuracy), config.json, env.json, log.jsonl and report/ to --output_dir. Every
random number of a step is drawn from (seed, step, rank): a resumed run repeats the one that was killed, bit for bit on a CPU.
"""

import argparse
import math
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from kit import device, errors
from kit.arguments import add_common, program
from kit.budget import TimeBudget
from kit.checkpoint import BEST, LAST, BackgroundWriter, load_checkpoint, load_weights, resume_path, save_checkpoint
from kit.compiling import compile_blocks
from kit.ema import EMA
from kit.errors import UserError
from kit.interrupt import Interrupt
from kit.losses import Losses
from kit.muon import OPTIMIZERS, Muon
from kit.randomness import step_seed
from kit.resume import check_resume
from kit.runlog import RunLog, progress_bar
from kit.schedule import SCHEDULES, lr_at, set_lr
from vit_cifar10.augment import Augment, Preprocess, build_mix
from vit_cifar10.dataset import Images, epoch_batches, hold_out, load_split, same_classes
from vit_cifar10.pretrained import ARCHITECTURE, NEEDED, build_model, load_pretrained
from vit_cifar10.report import predict_probabilities, write_report
from vit_cifar10.weights import load_timm

RESUMED = (*NEEDED, "optimizer_state_dicts", "step", "best_val_accuracy", "tally", "seconds")
FIXED_BY_CHECKPOINT = (*ARCHITECTURE, "optimizer", "val_images")
ON_DEVICE_BYTES = 4 << 30  # training images up to this size lie on the device

PRESETS = {
    # The reference recipe: CIFAR enlarged to 224, AdamW, light augmentation.
    "reference": {
        "img_size": 224, "patch_size": 16, "embed_dim": 384, "depth": 6, "num_heads": 6, "pool": "cls",
        "optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.1, "schedule": "cosine", "warmup_fraction": 0.0,
        "batch_size": 64, "epochs": 20, "label_smoothing": 0.0, "grad_clip": 0.0,
    },
    # Ours: the native 32x32, Muon on the hidden matrices, one cycle. The defaults of the arguments are its own.
    "cifar": {},
    # For fine-tuning published weights at their own resolution.
    "finetune": {
        "img_size": 224, "optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.01, "schedule": "cosine",
        "batch_size": 64, "epochs": 3, "crop_padding": 16,
    },
    # Two blocks, for tests and first trials.
    "tiny": {"embed_dim": 64, "depth": 2, "num_heads": 2, "batch_size": 64, "epochs": 10},
}  # fmt: skip


CIFAR_WITHOUT_GPU = {
    "embed_dim": 128,
    "depth": 6,
    "batch_size": 64,
}  # what the preset `cifar` is where only a CPU computes
LESS_MEMORY = "lower `batch_size` (raise `grad_accum` to keep the step) or `img_size`, or take a smaller model"


def canonical_preset(name: str) -> str:
    """A preset's name, of which `seed` is an older one of `reference`."""
    return "reference" if name == "seed" else name


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument(
        "--preset", default="cifar", type=canonical_preset, choices=PRESETS, help="recipe that sets the defaults below"
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data_path", help="folder with cifar10_train.npz or train/CLASS/*.png (default: download)")
    data.add_argument("--val_images", type=int, default=5000, help="training images held out")
    data.add_argument("--crop_padding", type=int, default=4, help="random crop after padding by so many pixels")
    data.add_argument("--trivial_augment", action=flag, default=False, help="TrivialAugmentWide")
    data.add_argument("--erase_prob", type=float, default=0.0, help="chance of random erasing")
    data.add_argument("--mixup", type=float, default=0.0, help="alpha of MixUp, 0 = none")
    data.add_argument("--cutmix", type=float, default=0.0, help="alpha of CutMix, 0 = none")
    model = parser.add_argument_group("model")
    model.add_argument("--weights", help="start from timm ViT weights: a name, or a .safetensors file")
    model.add_argument("--img_size", type=int, default=32, help="side of the square the network sees")
    model.add_argument("--patch_size", type=int, default=4, help="side of a patch")
    model.add_argument("--embed_dim", type=int, default=256, help="width")
    model.add_argument("--depth", type=int, default=8, help="blocks")
    model.add_argument("--num_heads", type=int, default=4, help="attention heads")
    model.add_argument("--mlp_ratio", type=float, default=4.0, help="hidden width of the MLP over the width")
    model.add_argument("--pool", default="mean", choices=("cls", "mean"), help="class token, or mean of patches")
    model.add_argument("--dropout", type=float, default=0.0, help="after embedding and branches")
    model.add_argument("--drop_path", type=float, default=0.0, help="stochastic depth of the last block")
    loop = parser.add_argument_group("optimization")
    loop.add_argument("--optimizer", default="muon", choices=OPTIMIZERS, help="muon: hidden matrices only")
    loop.add_argument("--batch_size", type=int, default=256, help="images per device and forward pass")
    loop.add_argument("--grad_accum", type=int, default=1, help="forward passes per step")
    loop.add_argument("--epochs", type=int, default=20, help="passes over the training images")
    loop.add_argument("--time_budget", help="train so long instead, e.g. 90s, 10m, 2h; the schedule follows")
    loop.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    loop.add_argument("--schedule", default="onecycle", choices=SCHEDULES, help="after the warm-up")
    loop.add_argument("--warmup_fraction", type=float, default=0.2, help="fraction of the run with a rising rate")
    loop.add_argument("--weight_decay", type=float, default=0.1, help="of AdamW and Muon")
    loop.add_argument("--label_smoothing", type=float, default=0.1, help="probability spread over all classes")
    loop.add_argument("--grad_clip", type=float, default=1.0, help="largest gradient norm, 0 = any")
    loop.add_argument("--ema_decay", type=float, default=0.999, help="of the averaged weights, ramped up")
    loop.add_argument("--patience", type=int, help="stop after so many validations without a better accuracy")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="checkpoints/vit", help="run folder")
    add_common(
        run, "resume", "save_steps", "log_interval", "device", "precision", "compile", "seed", "wandb", save_steps=1000
    )
    run.add_argument("--val_interval", type=int, default=1, help="validate and save every so many epochs")
    chosen, _ = parser.parse_known_args()
    parser.set_defaults(**PRESETS[chosen.preset])
    if chosen.preset == "cifar" and (chosen.device == "cpu" or not torch.cuda.is_available()):
        parser.set_defaults(**CIFAR_WITHOUT_GPU)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check(args)
    runtime = device.start(args.device, args.seed, args.precision)
    output = Path(args.output_dir)
    resumed = resume_path(args.resume, output)
    saved = load_checkpoint(resumed, RESUMED) if resumed else None
    budget = TimeBudget(args.time_budget, saved["seconds"] if saved else 0.0)

    # data
    weights = None
    if saved:
        if args.weights:  # they decided the architecture of the run that is resumed
            vars(args).update({name: saved["config"][name] for name in ARCHITECTURE})
        now = vars(args) | {"world_size": runtime.world_size}
        check_resume(now, saved["config"], resumed, FIXED_BY_CHECKPOINT, runtime)
    elif args.weights:
        weights = load_timm(args.weights, args.img_size)
        vars(args).update(weights.architecture)
    with runtime.main_first():  # which downloads what is not there
        train, val = hold_out(load_split(args.data_path, "train", args.img_size), args.val_images)
        test = load_split(args.data_path, "test", args.img_size)  # not used before the end, but it must be there
    same_classes(test.classes, train.classes, "the test images", "the training images")
    if saved:
        same_classes(train.classes, saved["classes"], "the data", str(resumed))
        mean, std = saved["mean"], saved["std"]
    else:
        mean, std = (weights.mean, weights.std) if weights else statistics(train)
    preprocess = Preprocess(args.img_size, mean, std)
    augment = Augment(preprocess, args.crop_padding, args.trivial_augment, args.erase_prob)
    mix = build_mix(args.mixup, args.cutmix, len(train.classes))
    val = val.to(runtime.device)
    if train.images.nbytes <= ON_DEVICE_BYTES:
        train = train.to(runtime.device)
    steps_per_epoch = len(train) // (args.batch_size * runtime.world_size * args.grad_accum)
    if not steps_per_epoch:
        raise UserError(f"{len(train)} training images are fewer than one step of --batch_size {args.batch_size}")

    # model
    model = build_model(vars(args), len(train.classes))
    if weights:
        weights.load_into(model)
    model.to(runtime.device)
    optimizers = build_optimizers(model, args)
    ema = EMA(model, args.ema_decay)

    # resume
    step, best, best_step = 0, 0.0, 0
    tally = torch.zeros(3, device=runtime.device)  # loss, right answers and images of this epoch
    if saved:
        load_weights(model, saved["model_state_dict"], resumed)
        ema.load_state_dict(saved["ema_state_dict"], saved["step"])
        for optimizer, state in zip(optimizers, saved["optimizer_state_dicts"]):
            optimizer.load_state_dict(state)
        step = best_step = saved["step"]
        if (output / BEST).is_file():  # else the run goes on in another folder, which is to have one of its own
            best, best_step = saved["best_val_accuracy"]
        tally.copy_(saved["tally"])
        del saved
    config = {**vars(args), "world_size": runtime.world_size}
    log = RunLog(output, config, runtime, step if resumed else None, args.wandb)

    writer = BackgroundWriter()

    def save(name: str) -> None:
        if runtime.is_main:
            state = {
                "model_state_dict": model.state_dict(),
                "ema_state_dict": ema.state_dict(),
                "optimizer_state_dicts": [optimizer.state_dict() for optimizer in optimizers],
                "classes": train.classes,
                "mean": mean,
                "std": std,
                "config": config,
                "step": step,
                "epoch": step // steps_per_epoch,
                "test_acc": math.nan,  # percent; known when the run has ended
                "best_val_accuracy": [best, best_step],
                "tally": tally,
                "seconds": budget.spent,
            }
            writer.save(output / name, state)

    if runtime.is_main:
        size = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{args.preset}: {size:.2f}M parameters, {len(train):,} images of {len(train.classes)} classes, {len(val):,} held out"
        )
        print(
            f"{runtime.device} {runtime.dtype}, {steps_per_epoch} steps per epoch, from step {step}; writing {output}"
        )
    if args.compile:
        compile_blocks(model)
    parallel = runtime.parallel(model)
    losses = Losses(log, runtime, output)
    planned = steps_per_epoch * (args.epochs if budget.limit is None else 10**6)
    total_steps = budget.total_steps(step, planned, runtime)
    bar = progress_bar(total_steps, "train", initial=step, active=runtime.is_main)
    patience = args.patience * args.val_interval * steps_per_epoch if args.patience else math.inf
    interrupt = Interrupt(runtime)
    stops = False

    def goes_on() -> bool:
        return step < total_steps and step - best_step < patience and not stops

    # loop
    while goes_on():
        epoch, inside = divmod(step, steps_per_epoch)
        order = epoch_batches(
            len(train), args.batch_size, args.seed, epoch, inside * args.grad_accum, runtime.rank, runtime.world_size
        )
        while goes_on() and step < (epoch + 1) * steps_per_epoch:
            lr = lr_at(step, args.lr, round(args.warmup_fraction * total_steps), total_steps, args.schedule)
            set_lr(optimizers, lr)
            loss = 0.0
            for micro in range(args.grad_accum):
                torch.manual_seed(step_seed(args.seed, step, micro, 1 + runtime.rank))
                images, labels = get_batch(train, next(order), runtime)
                inputs, targets = mix(augment(images), labels)
                with nullcontext() if micro == args.grad_accum - 1 else runtime.no_sync(parallel):
                    with runtime.autocast():
                        logits = parallel(inputs)
                    part = F.cross_entropy(logits.float(), targets, label_smoothing=args.label_smoothing)
                    (part / args.grad_accum).backward()
                loss = loss + part.detach() / args.grad_accum
                right = (logits.argmax(1) == labels).sum()
                tally[:2] += torch.stack([part.detach() * len(labels), right.float()])
                tally[2] += len(labels)
            norm = nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip or math.inf)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ema.update(model)
            step += 1
            losses.add(step, lr, loss=loss, grad_norm=norm)
            total_steps = bar.total = budget.total_steps(step, planned, runtime)
            bar.update()

            done = step >= total_steps
            epoch_ends = step % steps_per_epoch == 0
            validates = done or (epoch_ends and step // steps_per_epoch % args.val_interval == 0)
            saves = done or epoch_ends or step % args.save_steps == 0
            reads = validates or saves or step % args.log_interval == 0
            stops = interrupt.at(step)
            if reads or stops:
                bar.set_postfix_str(f"loss {losses.write():.3f}")
            if epoch_ends or done:
                seen = runtime.sum(tally.clone()).tolist()
                tally.zero_()
                log.log(
                    step, epoch=step / steps_per_epoch, train_loss=seen[0] / seen[2], train_accuracy=seen[1] / seen[2]
                )
            if validates:
                with ema.applied(model):
                    result = validate(model, preprocess, val, runtime)
                log.log(step, **result)
                bar.write(
                    f"epoch {step / steps_per_epoch:.2f}  {budget.spent:6.0f} s  "
                    f"train loss {seen[0] / seen[2]:.3f} accuracy {seen[1] / seen[2]:.1%}  "
                    f"held-out loss {result['val_loss']:.3f} accuracy {result['val_accuracy']:.1%}"
                )
                if result["val_accuracy"] > best:
                    best, best_step = result["val_accuracy"], step
                    save(BEST)
            if saves or stops:
                save(LAST)

    # finish
    bar.close()
    writer.wait()
    finished = step >= total_steps or not stops
    log.close(finished)
    runtime.check_agreement(model)
    if not finished:
        if runtime.is_main:
            print(f"stopped at step {step:,}; continue with --output_dir {output} --resume auto")
    elif runtime.is_main:
        report_on_test(test, output, BEST if args.patience else LAST, runtime)
    runtime.wait()
    runtime.finish()


# ----------------------------------------------------------------------------------------------------------------------
# Before the loop


def check(args: argparse.Namespace) -> None:
    for name in ("batch_size", "grad_accum", "epochs", "val_interval", "save_steps", "log_interval", "val_images",
                 "img_size", "patch_size", "embed_dim", "depth", "num_heads"):  # fmt: skip
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    if args.patience is not None and args.patience < 1:
        raise UserError(f"--patience {args.patience}: need at least 1")
    for name in ("erase_prob", "ema_decay", "warmup_fraction"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: need a number from 0 to 1")
    for name in ("dropout", "drop_path", "label_smoothing"):
        if not 0 <= getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need a number from 0 to below 1")
    for name in ("mixup", "cutmix", "weight_decay", "crop_padding", "grad_clip"):
        if not 0 <= getattr(args, name) < math.inf:
            raise UserError(f"--{name} {getattr(args, name)}: need 0 or more")
    if not 0 < args.lr < math.inf:
        raise UserError(f"--lr {args.lr}: need a positive number")
    if not 0 < args.mlp_ratio <= 64:
        raise UserError(f"--mlp_ratio {args.mlp_ratio}: need a number above 0, up to 64")
    if args.img_size % args.patch_size:
        raise UserError(f"--img_size {args.img_size} is no multiple of --patch_size {args.patch_size}")
    if args.embed_dim % args.num_heads:
        raise UserError(f"--embed_dim {args.embed_dim} is no multiple of --num_heads {args.num_heads}")


def statistics(data: Images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]."""
    counts = torch.stack([torch.bincount(data.images[:, c].flatten(), minlength=256) for c in range(3)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    fraction = counts / counts.sum(1, keepdim=True)
    mean = (fraction * values).sum(1)
    std = (fraction * (values - mean[:, None]).square()).sum(1).sqrt()
    return mean.tolist(), std.clamp(min=1e-3).tolist()


def build_optimizers(model: nn.Module, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW for all; or Muon (Jordan et al. 2024) for the blocks' matrices, scaled to AdamW's step, AdamW for the rest."""
    adamw = {"lr": args.lr, "betas": (0.9, 0.999), "fused": True}
    if args.optimizer == "adamw":
        return [torch.optim.AdamW(model.parameters(), weight_decay=args.weight_decay, **adamw)]
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    return [
        Muon(hidden, args.lr, args.weight_decay),
        torch.optim.AdamW(rest, weight_decay=0.0, **adamw),
    ]


# ----------------------------------------------------------------------------------------------------------------------
# In the loop and after it


def get_batch(data: Images, indices: torch.Tensor, runtime: device.Runtime) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a batch, on the device that trains."""
    indices = indices.to(data.images.device)
    images, labels = data.images[indices], data.labels[indices]
    return images.to(runtime.device, non_blocking=True), labels.to(runtime.device, non_blocking=True)


def validate(model: nn.Module, preprocess: Preprocess, val: Images, runtime: device.Runtime) -> dict:
    """Loss and accuracy on the held-out images, every rank computing all of them."""
    probabilities = predict_probabilities(model, preprocess, val.images, runtime)
    loss = F.nll_loss(probabilities.clamp(min=1e-12).log(), val.labels.cpu())
    accuracy = (probabilities.argmax(1) == val.labels.cpu()).float().mean()
    # devices may round differently, and all of them have to decide alike which model is the best
    return {"val_loss": runtime.mean(loss.item()), "val_accuracy": runtime.mean(accuracy.item())}


def report_on_test(test: Images, run: Path, reported: str, runtime: device.Runtime) -> None:
    """The only use of the test set, when all is decided: a report on the checkpoint `reported` (the final averaged weights, or
    the best ones where --patience chose among them), and the test accuracy of LAST and BEST noted in their files."""
    for name in dict.fromkeys((LAST, BEST)):
        if not (run / name).is_file():
            continue
        loaded = load_pretrained(run / name, runtime.device)
        if name == reported:
            report = write_report(loaded, test, run / "report", runtime)
            accuracy = report["accuracy"]
        else:
            found = predict_probabilities(loaded.model, loaded.preprocess, test.images, runtime)
            accuracy = (found.argmax(1) == test.labels).float().mean().item()
        save_checkpoint(run / name, {**load_checkpoint(run / name, RESUMED), "test_acc": 100 * accuracy})
    low, high = report["accuracy_interval"]
    print(f"test accuracy {report['accuracy']:.2%} [{low:.2%}, {high:.2%}] of {run / reported}")
    print(f"report   {run}/report/report.json")
    for figure in report["figures"]:
        print(f"picture  {run}/report/{figure}")


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
