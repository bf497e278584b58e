"""Train a JiT on token-color images.

    python train.py --data_path data/train --model JiT-B/4 --img_size 64          # one GPU
    torchrun --nproc_per_node 8 train.py --data_path data/train                    # several
    python train.py --data_path novels/ --model JiT-Ti/4 --img_size 16 --max_steps 2000   # raw text, on a CPU
    python train.py --data_path data/train --output_dir checkpoints/jit --resume auto     # go on where it stopped

Writes last.pth, best_model.pth (by validation loss), checkpoint_epoch_N.pth, config.json, env.json and log.jsonl to
--output_dir. Every random number of a step is drawn from (seed, step, rank): a resumed run repeats the one that was
killed, bit for bit on a CPU.
"""

import argparse
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from baselines.ngram import ALL, ORDERS, NGram
from dataset import batches
from diffusion import OBJECTIVES, Diffusion
from kit import device, errors
from kit.checkpoint import BEST, LAST, load_checkpoint, load_weights, resume_path, save_checkpoint
from kit.chunks import Chunks, LengthBuckets, is_built, open_built, open_chunks
from kit.ema import EMA
from kit.errors import UserError
from kit.interrupt import Interrupt
from kit.losses import Losses
from kit.randomness import step_seed
from kit.runlog import RunLog, progress_bar
from kit.schedule import SCHEDULES, lr_at
from kit.times import TIME_SAMPLERS, TimeSampler
from kit.tokenizer import Tokenizer
from model import SIZE_FLAGS, build_jit_model
from palette import PALETTES, SCANS, Layout, Palette, build_palette
from pretrained import NEEDED
from validation import Validation

FOLDS = 4  # of the n-gram model: what a chunk is trained with was counted from the other three quarters of the data
REFIT_STEPS = 50  # how often the time sampler is fitted again
RESUMED = (*NEEDED, "optimizer_state_dict", "step", "best_val_loss")  # what a checkpoint must hold to go on from
FIXED_BY_CHECKPOINT = (
    "model",
    "img_size",
    "objective",
    "palette",
    "scan",
    "predict_clean",
    "time_sampling",
    "t_std",
    "ngram",
    "token_dim",
    "token_depth",
    "soft_input",
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    show = " (default: %(default)s)"
    flag = argparse.BooleanOptionalAction
    data = parser.add_argument_group("data")
    data.add_argument("--data_path", default="data/train", help="folder of the data builder, or any raw text" + show)
    data.add_argument("--val_path", help="validation chunks (default: the val beside the train)")
    data.add_argument(
        "--tokenizer_path",
        help="tokenizer for raw text: tokenizer.json, folder or Hugging Face name (default: train one)",
    )
    data.add_argument("--vocab_size", type=int, default=512, help="size of the BPE trained on raw text" + show)
    data.add_argument("--min_tokens", type=int, default=64, help="shortest chunk cut from raw text" + show)
    data.add_argument("--num_workers", type=int, default=0, help="loader processes" + show)
    model = parser.add_argument_group("model and method")
    model.add_argument("--model", default="JiT-B/4", help="JiT-{Ti,S,B,L,H}/{patch size}" + show)
    model.add_argument(
        "--img_size", type=int, default=64, help="side of the picture: it holds img_size^2 tokens" + show
    )
    model.add_argument(
        "--objective", default="token", choices=OBJECTIVES, help="palette softmax, or pixel regression" + show
    )
    model.add_argument(
        "--predict_clean", action=flag, default=True, help="pixel objective: predict the image, not the velocity" + show
    )
    model.add_argument("--palette", default="context", choices=PALETTES, help="which token gets which color" + show)
    model.add_argument("--scan", default="block", choices=SCANS, help="which token gets which pixel" + show)
    model.add_argument(
        "--time_sampling", default="fitted", choices=TIME_SAMPLERS, help="distribution of training noise" + show
    )
    model.add_argument(
        "--t_mean", type=float, help="mean of log(t/(1-t)) (default: noise 1.5 times the palette's spacing)"
    )
    model.add_argument("--t_std", type=float, default=1.2, help="its spread; JiT's own are -0.8 and 0.8" + show)
    model.add_argument(
        "--ngram",
        type=int,
        choices=(0, *ORDERS),
        help="order of the n-gram model that stands beside the network; 0 = the network alone (default: 3 on a CPU, 0 on a GPU)",
    )
    model.add_argument(
        "--ngram_start",
        type=float,
        default=0.75,
        help="fraction of the run after which the n-grams join; before, the network learns alone" + show,
    )
    model.add_argument(
        "--init_from",
        metavar="PATH",
        help="start from the weights (not the optimizer) of a checkpoint, such as a network alone that --ngram joins",
    )
    model.add_argument(
        "--token_dim", type=int, help="width of the path at the resolution of tokens (default: the model's)"
    )
    model.add_argument("--token_depth", type=int, help="its blocks before and after the trunk (default: the model's)")
    model.add_argument(
        "--soft_input", action=flag, default=True, help="the network reads posteriors, not colors alone" + show
    )
    model.add_argument(
        "--self_cond_prob",
        type=float,
        default=0.25,
        help="probability of a step with a second, conditioned pass" + show,
    )
    model.add_argument(
        "--infill_prob", type=float, default=0.2, help="share of samples with prefixes or spans given clean" + show
    )
    model.add_argument("--dropout", type=float, default=0.0, help="in the middle half of the blocks" + show)
    loop = parser.add_argument_group("optimization")
    loop.add_argument("--batch_size", type=int, default=32, help="chunks per device and forward pass" + show)
    loop.add_argument("--grad_accum", type=int, default=1, help="forward passes per step" + show)
    loop.add_argument("--epochs", type=int, default=100, help="passes over the data" + show)
    loop.add_argument(
        "--max_steps",
        type=int,
        help="stop (and end the schedule) after this many steps (default: by --epochs, which it replaces)",
    )
    loop.add_argument("--lr", type=float, default=5e-4, help="peak learning rate" + show)
    loop.add_argument("--warmup_epochs", type=float, default=0.0, help="linear warm-up in epochs" + show)
    loop.add_argument(
        "--warmup_steps",
        type=int,
        help="the same in steps (default: by --warmup_epochs, at least 50 or a tenth of the run)",
    )
    loop.add_argument("--schedule", default="cosine", choices=SCHEDULES, help="after the warm-up" + show)
    loop.add_argument("--weight_decay", type=float, default=0.0, help="AdamW's" + show)
    loop.add_argument("--grad_clip", type=float, default=1.0, help="largest gradient norm" + show)
    loop.add_argument("--ema_decay", type=float, default=0.9999, help="of the averaged weights, ramped up" + show)
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="checkpoints/jit", help="run folder" + show)
    run.add_argument(
        "--resume", metavar="PATH|auto", help="continue from a checkpoint, or from last.pth of --output_dir"
    )
    run.add_argument(
        "--save_interval", type=int, default=10, help="keep checkpoint_epoch_N.pth every this many epochs" + show
    )
    run.add_argument("--save_steps", type=int, default=500, help="write last.pth every this many steps" + show)
    run.add_argument(
        "--val_interval",
        type=int,
        help="validate every this many steps (default: a tenth of the run, an epoch at most)",
    )
    run.add_argument("--val_samples", type=int, default=256, help="validation chunks used" + show)
    run.add_argument("--log_interval", type=int, default=20, help="write the log every this many steps" + show)
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N" + show)
    run.add_argument(
        "--precision",
        default="auto",
        choices=device.PRECISIONS,
        help="auto is bf16 where the hardware multiplies in it, else fp32" + show,
    )
    run.add_argument("--compile", action=flag, default=False, help="torch.compile the network" + show)
    run.add_argument("--seed", type=int, default=0, help="of everything" + show)
    run.add_argument(
        "--wandb", metavar="PROJECT", help="also log to this Weights & Biases project, offline without a network"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check(args)
    runtime = device.start(args.device, args.seed, args.precision)
    output = Path(args.output_dir)
    resumed = resume_path(args.resume, output)
    saved = load_checkpoint(resumed, RESUMED) if resumed else None
    if args.ngram is None:
        alone = runtime.device.type == "cuda" or args.objective == "pixel"
        args.ngram = saved["config"].get("ngram", 0) if saved else 0 if alone else max(ORDERS)
    if args.ngram and args.objective == "pixel":
        raise UserError("--ngram: n-grams join logits, which the pixel objective has none of; use --objective token")
    if saved:
        compare(args, saved["config"], resumed, runtime)
    given = load_checkpoint(args.init_from, NEEDED) if args.init_from and not saved else None
    if given:
        for name in ("img_size", "palette", "scan", "objective"):
            if given["config"][name] != getattr(args, name):
                raise UserError(
                    f"{args.init_from} was trained with --{name} {given['config'][name]}, not {getattr(args, name)}"
                )

    # data
    begun = saved or given
    tokenizer = Tokenizer.from_json(begun["tokenizer"]) if begun else None
    train, val, tokenizer = open_data(args, output, tokenizer, runtime)
    vocab_size = tokenizer.vocab_size
    for chunks in (train, val):
        chunks.check(args.img_size**2, vocab_size, "--img_size")
    counts, pairs = train.statistics(vocab_size)
    palette = (
        Palette.from_state(begun["palette"])
        if begun
        else build_palette(args.palette, vocab_size, counts, pairs, args.seed)
    )
    ngram = NGram(train.folds(FOLDS if args.ngram else 1), vocab_size)
    order = LengthBuckets(train.lengths, args.batch_size, args.seed, runtime.rank, runtime.world_size)
    steps_per_epoch = order.batches_per_epoch // args.grad_accum
    if not steps_per_epoch:
        raise UserError(f"--grad_accum {args.grad_accum}: an epoch has only {order.batches_per_epoch} batches")
    total_steps = args.max_steps or args.epochs * steps_per_epoch
    warmup_steps = args.warmup_steps
    if warmup_steps is None:
        warmup_steps = max(min(50, total_steps // 10), round(args.warmup_epochs * steps_per_epoch))
    val_interval = args.val_interval or max(1, min(steps_per_epoch, total_steps // 10))

    # model
    network = build_jit_model(
        args.model, args.img_size, args.predict_clean, vocab_size if args.objective == "token" else None, args.dropout,
        ngram=args.ngram, **{name: getattr(args, name) for name in SIZE_FLAGS if getattr(args, name) is not None},
    )  # fmt: skip
    if args.objective == "token":
        network.head.bias.data.copy_(ngram.log_unigram[ALL])  # the untrained network is the unigram posterior
    if given:
        network.start_from(given["ema_state_dict"], args.init_from)
    layout = Layout(args.img_size, network.patch_size, args.scan)
    diffusion = Diffusion(
        network, palette, layout, args.objective, ngram.log_unigram[ALL], ngram if args.ngram else None
    ).to(runtime.device)
    joins = round(args.ngram_start * total_steps)
    t_mean = -math.log(1.5 * palette.spacing) if args.t_mean is None else args.t_mean
    times = TimeSampler(args.time_sampling, t_mean, args.t_std, runtime.device)
    optimizer = torch.optim.AdamW(
        network.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay, fused=True
    )
    ema = EMA(network, args.ema_decay)

    # resume
    step, best = 0, math.inf
    if saved:
        load_weights(network, saved["model_state_dict"], resumed)
        ema.load_state_dict(saved["ema_state_dict"], saved["step"])
        optimizer.load_state_dict(saved["optimizer_state_dict"])
        for group in optimizer.param_groups:
            group["weight_decay"] = args.weight_decay
        times = TimeSampler.from_state(saved["time_sampler"], runtime.device)
        step, best = saved["step"], saved["best_val_loss"]
        del saved
    config = {**vars(args), "vocab_size": vocab_size, "t_mean": t_mean}
    log = RunLog(output, config, runtime, step if resumed else None, args.wandb)

    ngram_state = ngram.state()

    def save(name: str) -> None:
        observed = times.state_dict(runtime)  # by all ranks
        if runtime.is_main:
            state = {
                "model_state_dict": network.state_dict(),
                "ema_state_dict": ema.state_dict(),
                "optimizer_state_dict": optimizer.state_dict(),
                "time_sampler": observed,
                "palette": palette.state(),
                "ngram": ngram_state,
                "joined": diffusion.joined,
                "tokenizer": tokenizer.to_json(),
                "config": config,
                "step": step,
                "epoch": step // steps_per_epoch,
                "best_val_loss": best,
            }
            save_checkpoint(output / name, state)
        runtime.wait()

    if runtime.is_main:
        size = sum(p.numel() for p in network.parameters()) / 1e6
        print(
            f"{args.model} {size:.1f}M parameters, {args.objective} objective, {palette.name} palette of {vocab_size} tokens, {runtime.device} {runtime.dtype}"
        )
        print(
            f"{len(train):,} chunks, {steps_per_epoch:,} steps per epoch, {total_steps:,} steps, from step {step:,}; writing {output}"
        )
    if args.compile:
        network.compile(dynamic=True)
    trained = diffusion
    if runtime.world_size > 1:
        trained = nn.parallel.DistributedDataParallel(
            diffusion,
            device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None,
            broadcast_buffers=False,  # palette and n-gram tables never change
            find_unused_parameters=True,  # a step may have no second pass, no n-grams yet, no candidates beside the rest
        )
    validation = Validation(val, args.val_samples, args.batch_size, layout.multiple, runtime)
    losses = Losses(log, runtime, output)
    bar = progress_bar(total_steps, "train", initial=step, active=runtime.is_main)
    seen_tokens, since = 0, time.time()

    interrupt = Interrupt()

    # loop
    while step < total_steps and not runtime.any(interrupt.received):
        epoch, inside = divmod(step, steps_per_epoch)
        loader = batches(train, order.epoch(epoch, inside * args.grad_accum), layout.multiple, args.num_workers)
        loader = iter(loader)
        while step < min(total_steps, (epoch + 1) * steps_per_epoch):
            lr = lr_at(step, args.lr, warmup_steps, total_steps, args.schedule)
            for group in optimizer.param_groups:
                group["lr"] = lr
            diffusion.joined = args.ngram > 0 and step >= joins
            loss = 0.0
            for micro in range(args.grad_accum):
                batch = next(loader)
                torch.manual_seed(step_seed(args.seed, step, micro, 1 + runtime.rank))
                seen_tokens += int(batch["num_tokens"].sum())
                inputs = draw(batch, train, times, args, runtime)
                # all ranks make a second pass in the same steps, and exchange gradients once a step
                conditioned = step_seed(args.seed, step, micro, 0) % 2**20 < args.self_cond_prob * 2**20
                last = runtime.world_size == 1 or micro == args.grad_accum - 1
                with nullcontext() if last else trained.no_sync():
                    with runtime.autocast():
                        part, per_sample = trained(**inputs, self_condition=conditioned)
                    (part / args.grad_accum).backward()
                loss = loss + part.detach() / args.grad_accum
                times.observe(
                    inputs["t"], torch.where((inputs["cond_mask"] & inputs["mask"]).any(1), math.nan, per_sample)
                )
            norm = nn.utils.clip_grad_norm_(network.parameters(), args.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(network)
            step += 1
            losses.add(step, lr, loss=loss, grad_norm=norm)
            bar.update()

            done = step == total_steps
            epoch_ends = step % steps_per_epoch == 0
            validates = step % val_interval == 0 or done
            saves = step % args.save_steps == 0 or epoch_ends or done
            reads = validates or saves or step % args.log_interval == 0
            stops = interrupt.received if runtime.world_size == 1 else reads and runtime.any(interrupt.received)
            if reads or stops:
                speed = runtime.sum(torch.tensor(float(seen_tokens), device=runtime.device)).item() / (
                    time.time() - since
                )
                mean = losses.write(tokens_per_second=round(speed))
                bar.set_postfix_str(f"loss {mean:.3f}, {speed:,.0f} tokens/s")
                seen_tokens, since = 0, time.time()
            if step % REFIT_STEPS == 0:
                times.refit(runtime)
            if validates:
                with ema.applied(network):
                    result = validation.measure(diffusion)
                log.log(step, **result)
                bar.write(
                    f"step {step}: validation loss {result['val_loss']:.4f}, tokens recovered {result['val_accuracy']:.1%}"
                )
                if result["val_loss"] < best:
                    best = result["val_loss"]
                    save(BEST)
                since = time.time()
            if epoch_ends and step // steps_per_epoch % args.save_interval == 0:
                save(f"checkpoint_epoch_{step // steps_per_epoch}.pth")
            if saves or stops:
                save(LAST)
            if stops:
                break

    # finish
    bar.close()
    log.close()
    if runtime.is_main:
        left = "" if step >= total_steps else f"; stopped early, continue with --output_dir {output} --resume auto"
        print(f"step {step:,} of {total_steps:,}, best validation loss {best:.4f}, in {output}{left}")
    runtime.finish()


# ----------------------------------------------------------------------------------------------------------------------
# Before the loop


def check(args: argparse.Namespace) -> None:
    for name in ("batch_size", "grad_accum", "epochs", "save_interval", "save_steps", "log_interval", "val_samples"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    for name in ("max_steps", "val_interval"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    for name in ("self_cond_prob", "infill_prob", "dropout", "ema_decay", "ngram_start"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: need a number from 0 to 1")
    if args.weight_decay < 0 or args.num_workers < 0 or not args.grad_clip > 0:
        raise UserError("--weight_decay and --num_workers need 0 or more, --grad_clip more than 0")
    if not (args.lr > 0 and math.isfinite(args.lr)):
        raise UserError(f"--lr {args.lr}: need a positive number")


def compare(args: argparse.Namespace, config: dict, path: Path, runtime) -> None:
    """Refuse a checkpoint of another model; say which other arguments changed."""
    changed = {k: v for k, v in vars(args).items() if k in config and config[k] != v and k not in ("resume", "t_mean")}
    for name in FIXED_BY_CHECKPOINT:
        if name in changed:
            raise UserError(
                f"{path} was trained with --{name} {config[name]}, not {changed[name]}; pass the same to --resume"
            )
    if changed and runtime.is_main:
        listed = ", ".join(f"--{name} {config[name]} -> {value}" for name, value in changed.items())
        print(f"changed since {path}: {listed}")


def open_data(args, output: Path, tokenizer, runtime) -> tuple[Chunks, Chunks, Tokenizer]:
    """Training and validation chunks and the tokenizer."""
    path = Path(args.data_path)
    if runtime.world_size > 1 and path.exists() and not is_built(path) and not is_built(path / "train"):
        raise UserError(f"{path} is raw text: run build_pretrain_data.py on it first, then train on several devices")
    capacity = args.img_size**2
    train, val, tokenizer = open_chunks(
        args.data_path,
        output / "data",
        tokenizer,
        tokenizer_path=args.tokenizer_path,
        vocab_size=args.vocab_size,
        min_tokens=min(args.min_tokens, capacity),
        max_tokens=capacity,
        seed=args.seed,
    )
    if args.val_path:
        if not Path(args.val_path).exists():
            raise UserError(f"no validation data at {args.val_path}")
        val = open_built(Path(args.val_path))
    if val is None:
        raise UserError(
            f"no validation chunks beside {args.data_path}: name some with --val_path, or rebuild with --val_fraction above 0"
        )
    return train, val, tokenizer


# ----------------------------------------------------------------------------------------------------------------------
# In the loop


def draw(batch: dict, train: Chunks, times: TimeSampler, args, runtime) -> dict:
    """Times, noise and given positions for one batch; moves it to the device."""
    tokens, mask = (batch[name].to(runtime.device, non_blocking=True) for name in ("tokens", "mask"))
    u = (torch.randperm(len(tokens)) + torch.rand(len(tokens))) / len(
        tokens
    )  # stratified: every batch covers all times
    return {
        "tokens": tokens,
        "mask": mask,
        "t": times.sample(u).to(runtime.device),
        "noise": torch.randn(*tokens.shape, 3, device=runtime.device),
        "cond_mask": draw_known(batch["num_tokens"], tokens.shape[1], args.infill_prob).to(runtime.device),
        "fold": (1 + train.fold_of(batch["index"], FOLDS)).to(runtime.device) if args.ngram else None,
    }


def draw_known(num_tokens: torch.Tensor, num_positions: int, probability: float) -> torch.Tensor:
    """Which positions (B, N) are given clean: with `probability` a sample gets a prefix, or all but a span, or scattered runs."""
    known = torch.zeros(len(num_tokens), num_positions, dtype=torch.bool)
    for row, count in zip(known, num_tokens.tolist()):
        if torch.rand(()) >= probability or count < 4:
            continue
        kind, share = int(torch.randint(3, ())), float(torch.rand(()))
        length = min(count - 1, max(1, round(share * count)))
        if kind == 0:  # a prefix to continue
            row[:length] = True
        elif kind == 1:  # a gap to fill
            start = int(torch.randint(count - length + 1, ()))
            row[:count] = True
            row[start : start + length] = False
        else:  # runs of eight
            row[:count] = (torch.rand(-(-count // 8)) < share).repeat_interleave(8)[:count]
            row[int(torch.randint(count, ()))] = False
    return known


if __name__ == "__main__":
    errors.run(main)
