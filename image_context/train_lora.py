"""Teach a VLM to read what generate_train_data wrote: LoRA on a pretrained one, all weights of one that is built here.

    python -m image_context.train_lora --config image_context/configs/train.yaml                   # Qwen2-VL-2B, one GPU
    torchrun --nproc_per_node 8 -m image_context.train_lora --config image_context/configs/train.yaml
    python -m image_context.train_lora --config image_context/configs/smoke_test.yaml              # tiny, on a CPU
    python -m image_context.train_lora --config image_context/configs/train.yaml --resume auto     # go on where it stopped

Reads <output_dir>/train_data; writes <output_dir>/final (an adapter with its base's name, or the whole model), last.pth,
config.json, env.json and log.jsonl. Loss lies on the answer alone. Every random number of a step is drawn from (seed, step,
rank): a resumed run repeats the one that was killed, bit for bit on a CPU.
"""

import argparse
import json
import random
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from image_context.config import Config, load_config
from image_context.dataset import ahead, batches, read_records
from image_context.model import BUILT, AnswerLoss, add_compressors, add_lora, trainable_fraction
from image_context.vlm import open_vlm
from kit import device, errors
from kit.arguments import add_common, program
from kit.budget import TimeBudget
from kit.checkpoint import LAST, load_checkpoint, load_weights, resume_path, save_checkpoint
from kit.errors import UserError
from kit.interrupt import Interrupt
from kit.losses import Losses
from kit.muon import build_optimizers
from kit.randomness import step_seed
from kit.runlog import RunLog, make_folder, progress_bar
from kit.schedule import lr_at, set_lr
from kit.whole import whole_folder

SAVED = ("weights", "optimizers", "step", "seconds", "config", "samples_per_step")
LESS_MEMORY = (
    "lower training.batch_size (raise training.gradient_accumulation_steps to keep the step) or model.max_pixels"
)
KEYS = {"seed": "seed", "time_budget": "training.time_budget", "grad_clip": "training.grad_clip"}  # from the config


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--config", required=True, help="YAML file, such as image_context/configs/train.yaml")
    parser.add_argument("--output_dir", help="run folder (default: the config's)")
    add_common(parser, "resume", "device", "precision", "wandb")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = load_config(args.config)
    settings, built = config.training, config.model.name in BUILT
    runtime = device.start(args.device, config.seed, args.precision)
    output = make_folder(args.output_dir or config.output_dir)
    resumed = resume_path(args.resume, output)
    saved = load_checkpoint(resumed, SAVED) if resumed else None
    if saved and saved["config"] != config.hash:
        raise UserError(f"{resumed} belongs to another config ({saved['config']}) than {args.config} ({config.hash})")

    # data
    records = read_records(output / "train_data" / "records.jsonl")
    check_data(output / "train_data" / "config.json", config)
    per_step = settings.batch_size * settings.gradient_accumulation_steps * runtime.world_size
    if saved and saved["samples_per_step"] != per_step:
        raise UserError(
            f"{resumed} was trained on {saved['samples_per_step']} pairs a step, and {runtime.world_size} process(es) make "
            f"{per_step}: epochs and schedule would change; resume with as many processes as before"
        )
    if len(records) < per_step:
        raise UserError(f"{len(records)} training pairs make no step of {per_step}: write more, or lower batch_size")
    steps_per_epoch = len(records) // per_step

    # model
    vlm = open_vlm(config.model, runtime, output, languages=config.data.languages)
    if not built:
        add_lora(vlm, config.lora.r, config.lora.alpha, config.lora.dropout, config.model.qlora)
    add_compressors(vlm.model, config.compressors)
    model = vlm.model
    trained = nn.ParameterDict({name.replace(".", "/"): p for name, p in model.named_parameters() if p.requires_grad})
    if runtime.is_main:
        print(
            f"{config.model.name}: {trainable_fraction(model)}; {len(records):,} pairs, {steps_per_epoch} steps an epoch"
        )

    # optimizer, resume
    optimizers = build_optimizers(
        settings.optimizer, model, settings.learning_rate, settings.weight_decay, betas=(0.9, 0.98)
    )
    step = 0
    if saved:
        load_weights(trained, saved["weights"], resumed)
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        step = saved["step"]
    budget = TimeBudget(settings.time_budget, saved["seconds"] if saved else 0.0)
    planned = settings.max_steps or settings.num_epochs * steps_per_epoch
    if settings.time_budget:
        planned = 10**9
    total_steps = budget.total_steps(step, planned, runtime)
    # a batch of text leaves the vision tower unused
    loss_module = runtime.parallel(AnswerLoss(model), find_unused_parameters=True)
    log = RunLog(output, config.model_dump(), runtime, step if saved else None, args.wandb)
    losses = Losses(log, runtime, output)
    interrupt = Interrupt(runtime)
    bar = progress_bar(total_steps, "steps", initial=step, active=runtime.is_main)

    # loop
    model.train()
    stops, loader = False, None
    while step < total_steps and not stops:
        lr = lr_at(step, settings.learning_rate, round(settings.warmup_fraction * total_steps), total_steps)
        set_lr(optimizers, lr)
        epoch, inside = divmod(step, steps_per_epoch)
        if loader is None or inside == 0:
            order = in_steps([record.sample.length for record in records], per_step, config.seed, epoch)
            mine = order[inside * per_step + runtime.rank :: runtime.world_size]
            loader = ahead(batches(records, output / "train_data", vlm, settings.batch_size, mine))
        torch.manual_seed(step_seed(config.seed, step, 0, 1 + runtime.rank))
        total, right = 0.0, 0.0
        for micro in range(settings.gradient_accumulation_steps):
            batch = {name: value.to(runtime.device, non_blocking=True) for name, value in next(loader).items()}
            last = micro == settings.gradient_accumulation_steps - 1
            with nullcontext() if last else runtime.no_sync(loss_module):
                with runtime.autocast():
                    loss, accuracy = loss_module(batch)
                (loss / settings.gradient_accumulation_steps).backward()
            total += loss.detach() / settings.gradient_accumulation_steps
            right += accuracy / settings.gradient_accumulation_steps
        norm = nn.utils.clip_grad_norm_(trained.parameters(), settings.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.add(step, lr, loss=total, grad_norm=norm, accuracy=right)
        total_steps = bar.total = budget.total_steps(step, planned, runtime)
        bar.update()

        saves = step >= total_steps or step % settings.save_steps == 0
        reads = saves or step % settings.log_interval == 0
        stops = interrupt.at(step)
        if reads or stops:
            bar.set_postfix_str(f"loss {losses.write():.3f}")
        if (saves or stops) and runtime.is_main:
            save_checkpoint(output / LAST, {
                "weights": trained.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step,
                "seconds": budget.spent, "config": config.hash, "samples_per_step": per_step,
            })  # fmt: skip
    bar.close()

    # finish
    runtime.check_agreement(trained)
    finished = step >= total_steps
    if finished and runtime.is_main:
        with whole_folder(output / "final") as partial:
            vlm.save(partial)
    log.close(finished)
    if runtime.is_main:
        print(f"vlm  {output / 'final'}" if finished else f"stopped early; continue with --resume auto in {output}")
    runtime.finish()


def check_data(path: Path, config: Config) -> None:
    """Raises UserError if the training data beside `path` were written for another model, task or number of pairs."""
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: write the training data again with generate_train_data") from error
    wanted = config.model_dump(mode="json")
    for section in (wanted, written):  # of the model only what made the documents
        section["model"] = {name: section["model"].get(name) for name in ("name", "vocab_size", "start")}
    for name in ("seed", "model", "data", "generation"):
        if written[name] != wanted[name]:
            raise UserError(f"{path.parent} was written with another {name} than the config's: write it again")


def in_steps(lengths: list[int], per_step: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: whole steps, each of documents of one length as far as there are enough, so that little is padded."""
    order, rng = list(range(len(lengths))), random.Random(step_seed(seed, epoch, 0, 0))
    rng.shuffle(order)
    order = order[: len(order) // per_step * per_step]
    if len(set(lengths)) == 1:  # nothing to sort: the order that such runs have always had
        return order
    order.sort(key=lengths.__getitem__)
    steps = [order[at : at + per_step] for at in range(0, len(order), per_step)]
    rng.shuffle(steps)
    return [i for step in steps for i in step]


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY, KEYS)
