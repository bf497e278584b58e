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

from corpus.chunks import LengthBuckets, is_built, open_built, open_chunks
from corpus.loader import batches
from corpus.ngram import ALL, NGram
from corpus.pairs import open_pairs
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer, load_tokenizer
from diffusion import Diffusion
from draws import FOLDS, draw, sample_inputs
from kit import device, errors
from kit.budget import TimeBudget
from kit.checkpoint import BEST, LAST, BackgroundWriter, load_checkpoint, load_weights, resume_path
from kit.ema import EMA
from kit.errors import UserError
from kit.interrupt import Interrupt
from kit.losses import Losses
from kit.muon import build_optimizers
from kit.randomness import step_seed
from kit.resume import check_resume, samples_per_step
from kit.runlog import RunLog, progress_bar
from kit.schedule import lr_at, set_lr
from kit.times import TimeSampler
from model import SIZE_FLAGS, build_jit_model
from palette import Layout, Palette, build_palette
from pretrained import NEEDED
from settings import parse_args, resolve, split_step
from validation import Validation

REFIT_STEPS = 50  # how often the noise schedule adapts
RESUMED = (*NEEDED, "optimizer_state_dict", "step", "best_val_loss")  # what a checkpoint must hold to go on from
FIXED_BY_CHECKPOINT = (
    "model",
    "img_size",
    "objective",
    "palette",
    "scan",
    "predict_clean",
    "time_sampling",
    "t_mean",
    "t_std",
    "ngram",
    "token_dim",
    "token_depth",
    "soft_input",
    "rope",
    "optimizer",
)
BEFORE_THE_CHOICE = {"rope": "grid", "optimizer": "adamw"}  # what older checkpoints do not say
LESS_MEMORY = "lower `batch_size` (raise `grad_accum` to keep the step) or `img_size`, or take a smaller model"


def main() -> None:
    args = parse_args(__doc__)
    runtime = device.start(args.device, args.seed, args.precision)
    output = Path(args.output_dir)
    resumed = resume_path(args.resume, output)
    saved = load_checkpoint(resumed, RESUMED) if resumed else None
    if saved:
        saved["config"] = BEFORE_THE_CHOICE | saved["config"]
    resolve(args, saved, runtime)
    begun = saved or load_start(args)

    # data
    tokenizer = Tokenizer.from_json(begun["tokenizer"]) if begun else None
    with runtime.main_first():  # which builds what has to be built
        train, val, tokenizer = open_data(args, output, tokenizer)
    if args.tokens_per_step:
        split_step(args, float(train.lengths.mean()), saved and samples_per_step(saved["config"], runtime), runtime)
    if saved:
        now = vars(args) | {"world_size": runtime.world_size}
        check_resume(now, saved["config"], resumed, FIXED_BY_CHECKPOINT, runtime)
    vocab_size = tokenizer.vocab_size
    for chunks in (train, val):
        chunks.check(args.img_size**2, vocab_size, "img_size")
    ngram = NGram(train.folds(FOLDS if args.ngram else 1), vocab_size)
    order = LengthBuckets(train.lengths, args.batch_size, args.seed, runtime.rank, runtime.world_size, args.grad_accum)
    steps_per_epoch = order.steps_per_epoch
    budget = TimeBudget(args.time_budget, saved.get("seconds", 0.0) if saved else 0.0)
    planned = args.max_steps or steps_per_epoch * (args.epochs if budget.limit is None else 10**6)
    total_steps = budget.total_steps(saved["step"] if saved else 0, planned, runtime)
    warmup_steps = args.warmup_steps
    if warmup_steps is None:
        warmup_steps = max(min(50, total_steps // 10), round(args.warmup_epochs * steps_per_epoch))
    val_interval = args.val_interval or max(1, min(steps_per_epoch, total_steps // 10))

    # model
    if begun:
        palette = Palette.from_state(begun["palette"])
    else:
        palette = build_palette(args.palette, vocab_size, *train.statistics(vocab_size), args.seed)
    network = build_jit_model(
        args.model, args.img_size, args.predict_clean, vocab_size if args.objective == "token" else None, args.dropout,
        ngram=args.ngram, **{name: getattr(args, name) for name in SIZE_FLAGS if getattr(args, name) is not None},
    )  # fmt: skip
    if args.objective == "token":
        network.head.bias.data.copy_(ngram.log_unigram[ALL])  # the untrained network is the unigram posterior
    if begun and not saved:
        network.start_from(begun["ema_state_dict"], args.init_from)
    layout = Layout(args.img_size, network.patch_size, args.scan)
    diffusion = Diffusion(
        network, palette, layout, args.objective, ngram.log_unigram[ALL], ngram if args.ngram else None
    ).to(runtime.device)
    diffusion.joined = False  # before --ngram_start the network learns alone
    if args.t_mean is None:
        args.t_mean = -math.log(1.5 * palette.spacing)
    times = TimeSampler(args.time_sampling, args.t_mean, args.t_std, runtime.device)
    optimizers = build_optimizers(args.optimizer, network, args.lr, args.weight_decay, (0.9, 0.95), network.ends())
    ema = EMA(network, args.ema_decay)

    # resume
    step, best = 0, math.inf
    if saved:
        load_weights(network, saved["model_state_dict"], resumed)
        ema.load_state_dict(saved["ema_state_dict"], saved["step"])
        states = saved["optimizer_state_dict"]  # of one, as it was before there was a choice, or of each
        states = states if isinstance(states, list) else [states]
        if len(states) != len(optimizers):
            raise UserError(f"{resumed} holds the state of {len(states)} optimizers, not of {len(optimizers)}")
        for optimizer, state in zip(optimizers, states):
            optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["weight_decay"] = args.weight_decay
        times = TimeSampler.from_state(saved["time_sampler"], runtime)
        step = saved["step"]
        if (output / BEST).is_file():  # else the run goes on in another folder, which is to have one of its own
            best = saved["best_val_loss"]
        diffusion.joined = saved.get("joined", args.ngram > 0)
    resumed_step = step if saved else None  # what happened there has happened
    del saved, begun
    config = {**vars(args), "vocab_size": vocab_size, "world_size": runtime.world_size}
    log = RunLog(output, config, runtime, resumed_step, args.wandb)
    ngram_state, writer = ngram.state(), BackgroundWriter()

    def save(name: str, to_go_on: bool = True) -> None:
        observed = times.state_dict(runtime)  # by all ranks
        if runtime.is_main:
            state = {
                "model_state_dict": network.state_dict(),
                "ema_state_dict": ema.state_dict(),
                **({"optimizer_state_dict": [o.state_dict() for o in optimizers]} if to_go_on else {}),
                "time_sampler": observed,
                "palette": palette.state(),
                "ngram": ngram_state,
                "joined": diffusion.joined,
                "tokenizer": tokenizer.to_json(),
                "config": config,
                "step": step,
                "epoch": step // steps_per_epoch,
                "best_val_loss": best,
                "seconds": budget.spent,
            }
            writer.save(output / name, state)

    if runtime.is_main:
        size = sum(p.numel() for p in network.parameters()) / 1e6
        print(
            f"{args.model} {size:.1f}M parameters, {args.objective} objective, {palette.name} palette of {vocab_size} tokens, {runtime.device} {runtime.dtype}"
        )
        length_of_run = args.time_budget or f"{total_steps:,} steps"
        print(
            f"{len(train):,} chunks, {steps_per_epoch:,} steps per epoch, {length_of_run} in all, a step of about "
            f"{order.samples_per_step * train.lengths.mean():,.0f} tokens, from step {step:,}; writing {output}"
        )
    length = float(train.lengths.mean())
    token_flops = network.training_flops(length, args.self_cond_prob) / length
    matmul_rate = device.matmul_rate(runtime) * runtime.world_size
    steps = order.steps_from(step)
    loader = iter(
        batches(train, order.batches(step), layout.multiple, args.num_workers)
    )  # forks before a compiler has threads
    if args.compile:
        diffusion.compile()
    parallel = runtime.parallel(
        diffusion,
        broadcast_buffers=False,  # palette and n-gram tables never change
        find_unused_parameters=True,  # a step may have no second pass, no n-grams yet, no candidates beside the rest
    )
    validation = Validation(val, args.val_samples, args.batch_size, layout.multiple, runtime)
    losses = Losses(log, runtime, output)
    bar = progress_bar(total_steps, "train", initial=step, active=runtime.is_main)
    interrupt = Interrupt(runtime)
    seen_tokens, since, saved_at = 0, time.time(), time.time()

    while True:
        last_step, end_of_epoch = step >= total_steps, step % steps_per_epoch == 0
        stopped = interrupt.at(step)
        due = interrupt.looked and runtime.any(time.time() - saved_at > 60 * args.save_minutes)
        if step != resumed_step:
            validate = last_step or step % val_interval == 0
            keep = step > 0 and end_of_epoch and step // steps_per_epoch % args.save_interval == 0
            checkpoint = step > 0 and (
                last_step or stopped or keep or due or (args.save_steps and step % args.save_steps == 0)
            )
            report = validate or checkpoint or step % args.log_interval == 0
            if report and step > 0:
                tokens_per_second = round(seen_tokens / (time.time() - since))
                utilization = round(tokens_per_second * token_flops / matmul_rate, 4)
                mean = losses.write(tokens_per_second=tokens_per_second, matmul_fraction=utilization)
                bar.set_postfix_str(
                    f"loss {mean:.3f}, {tokens_per_second:,} tokens/s, {utilization:.0%} of the matmul rate"
                )
            if validate:
                with budget.paused(), ema.applied(network):
                    result = validation.measure(diffusion)
                    example = validation.example(diffusion, tokenizer) if runtime.is_main else {}
                log.log(step, **result)
                log.table(step, "recovered", [example])
                if runtime.is_main:
                    bar.write(
                        f"step {step}: validation loss {result['val_loss']:.4f}, tokens recovered {result['val_accuracy']:.1%}\n"
                        f"  nearest color  {example['nearest']}\n  recovered      {example['recovered']}"
                    )
                if result["val_loss"] < best:
                    best = result["val_loss"]
                    save(BEST, to_go_on=False)
            if keep:
                save(f"checkpoint_epoch_{step // steps_per_epoch}.pth")
            if checkpoint:
                save(LAST)
                saved_at = time.time()
            if report:
                seen_tokens, since = 0, time.time()
        if last_step or stopped:
            break

        # one step
        lr = lr_at(step, args.lr, warmup_steps, total_steps, args.schedule)
        set_lr(optimizers, lr)
        if args.ngram and step >= round(args.ngram_start * total_steps):
            diffusion.joined = True
        loss = 0.0
        chunks = next(steps)
        lengths = torch.from_numpy(train.lengths[chunks])
        seen_tokens += int(lengths.sum())
        given = torch.from_numpy(train.given[chunks]) if args.pairs else None
        drawn = draw(lengths, given, layout.multiple, times, step, args, runtime)
        # all ranks make a second pass in the same steps, and exchange gradients once a step
        self_condition = step_seed(args.seed, step, 0, 0) % 2**20 < args.self_cond_prob * 2**20
        for micro in range(args.grad_accum):
            torch.manual_seed(step_seed(args.seed, step, micro, 1 + runtime.rank))  # of dropout
            inputs = sample_inputs(next(loader), drawn, order.own(micro), train, order.parts, args, runtime)
            with nullcontext() if micro == args.grad_accum - 1 else runtime.no_sync(parallel):
                with runtime.autocast():
                    part, per_sample = parallel(**inputs, self_condition=self_condition)
                (part / args.grad_accum).backward()
            loss = loss + part.detach() / args.grad_accum
            if not args.pairs:  # whose prompts are always given; elsewhere what is partly given is the exception
                partly_given = (inputs["cond_mask"] & inputs["mask"]).any(1)
                per_sample = torch.where(partly_given, math.nan, per_sample)
            times.observe(inputs["t"], per_sample)
        norm = nn.utils.clip_grad_norm_(network.parameters(), args.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        ema.update(network)
        step += 1
        total_steps = bar.total = budget.total_steps(step, planned, runtime)
        if step % REFIT_STEPS == 0:
            times.refit(runtime)
        losses.add(step, lr, loss=loss, grad_norm=norm)
        bar.update()

    # finish
    bar.close()
    writer.wait()
    log.close(finished=step >= total_steps)
    runtime.check_agreement(network)
    if runtime.is_main:
        left = "" if step >= total_steps else f"; stopped early, continue with --output_dir {output} --resume auto"
        print(f"step {step:,} of {total_steps:,}, best validation loss {best:.4f}, in {output}{left}")
    runtime.finish()


# ----------------------------------------------------------------------------------------------------------------------
# Before the loop


def load_start(args: argparse.Namespace) -> dict | None:
    """The checkpoint that --init_from names. Raises UserError if it is of another picture or objective."""
    if not args.init_from:
        return None
    given = load_checkpoint(args.init_from, NEEDED)
    config = BEFORE_THE_CHOICE | given["config"]
    for name in ("img_size", "palette", "scan", "objective", "rope"):
        if config[name] != getattr(args, name):
            raise UserError(f"{args.init_from} was trained with --{name} {config[name]}, not {getattr(args, name)}")
    return given


def open_data(args, output: Path, tokenizer) -> tuple[Chunks, Chunks, Tokenizer]:
    """Training and validation chunks and the tokenizer."""
    capacity = args.img_size**2
    if args.pairs:
        pairs = open_pairs(args.data_path, capacity, tokenizer, args.tokenizer_path, args.vocab_size)
        return pairs.train, pairs.val, pairs.tokenizer
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
        if not is_built(Path(args.val_path)):
            raise UserError(f"--val_path {args.val_path} is no folder of chunks, such as DATA/val")
        val = open_built(Path(args.val_path))
        beside = Path(args.val_path).parent / "tokenizer.json"
        if beside.is_file() and not load_tokenizer(beside).same_as(tokenizer):
            raise UserError(f"--val_path {args.val_path} was built with another tokenizer than {args.data_path}")
    if val is None:
        raise UserError(
            f"no validation chunks beside {args.data_path}: name some with --val_path, or rebuild with --val_fraction above 0"
        )
    return train, val, tokenizer


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
