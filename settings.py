"""The settings of train.py: its flags, the ranges they have to lie in, and what follows from a device or from a checkpoint."""

import argparse
import math

from corpus.ngram import ORDERS
from diffusion import OBJECTIVES
from kit.arguments import add_common, program
from kit.device import Runtime
from kit.errors import UserError
from kit.muon import OPTIMIZERS
from kit.schedule import SCHEDULES
from kit.times import TIME_SAMPLERS, canonical
from model import ROPES
from palette import PALETTES, SCANS


def parse_args(description: str) -> argparse.Namespace:
    """The command line's settings. Raises UserError for numbers out of range."""
    parser = program(description)
    flag = argparse.BooleanOptionalAction
    data = parser.add_argument_group("data")
    data.add_argument("--data_path", default="data/train", help="folder of the data builder, or any raw text")
    data.add_argument(
        "--pairs",
        action=flag,
        default=False,
        help='--data_path holds rows {"prompt", "answer"}: prompts are given clean, answers are learned (with --init_from: fine-tuning)',
    )
    data.add_argument("--val_path", help="validation chunks (default: the val beside the train)")
    data.add_argument(
        "--tokenizer_path",
        help="tokenizer for raw text: tokenizer.json, folder or Hugging Face name (default: train one)",
    )
    data.add_argument("--vocab_size", type=int, default=512, help="size of the BPE trained on raw text")
    data.add_argument("--min_tokens", type=int, default=64, help="shortest chunk cut from raw text")
    add_common(data, "num_workers")
    model = parser.add_argument_group("model and method")
    model.add_argument("--model", default="JiT-B/4", help="JiT-{N,Ti,S,B,L,H}/{patch size}")
    model.add_argument("--img_size", type=int, default=64, help="side of the picture: it holds img_size^2 tokens")
    model.add_argument("--objective", default="token", choices=OBJECTIVES, help="palette softmax, or pixel regression")
    model.add_argument(
        "--predict_clean", action=flag, default=True, help="pixel objective: predict the image, not the velocity"
    )
    model.add_argument("--palette", default="context", choices=PALETTES, help="which token gets which color")
    model.add_argument("--scan", default="block", choices=SCANS, help="which token gets which pixel")
    model.add_argument(
        "--time_sampling",
        default="adaptive",
        type=canonical,
        choices=TIME_SAMPLERS,
        help="distribution of training noise",
    )
    model.add_argument(
        "--t_mean", type=float, help="mean of log(t/(1-t)) (default: noise 1.5 times the palette's spacing)"
    )
    model.add_argument("--t_std", type=float, default=1.2, help="its spread; JiT's own are -0.8 and 0.8")
    model.add_argument(
        "--ngram",
        type=int,
        choices=(0, *ORDERS),
        help="order of the n-gram model combined with the network; 0 = the network alone (default: 3 on a CPU, 0 on a GPU)",
    )
    model.add_argument(
        "--ngram_start",
        type=float,
        default=0.75,
        help="fraction of the run after which the n-grams join; before, the network learns alone",
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
    model.add_argument("--soft_input", action=flag, default=True, help="the network reads posteriors, not colors alone")
    model.add_argument(
        "--rope",
        default="grid",
        choices=ROPES,
        help="patches turn by row and column, or by their place in reading order",
    )
    model.add_argument(
        "--self_cond_prob",
        type=float,
        default=0.25,
        help="probability of a step with a second, conditioned pass",
    )
    model.add_argument(
        "--infill_prob",
        type=float,
        default=0.2,
        help="probability with which a sample has prefixes or spans given clean",
    )
    model.add_argument(
        "--infill_blank",
        type=float,
        default=0.0,
        help="fraction of those of which nothing else is seen, the rest being pure noise, as gaps are before they are filled",
    )
    model.add_argument(
        "--loss_fraction",
        type=float,
        default=1.0,
        help="fraction of the positions, drawn anew in each step, that the loss is computed on; for very large vocabularies",
    )
    model.add_argument("--dropout", type=float, default=0.0, help="in the middle half of the blocks")
    loop = parser.add_argument_group("optimization")
    loop.add_argument("--batch_size", type=int, default=32, help="chunks per device and forward pass")
    loop.add_argument("--grad_accum", type=int, default=1, help="forward passes per step")
    loop.add_argument(
        "--tokens_per_step",
        type=int,
        help="tokens in a step on all devices together: sets --grad_accum, and --batch_size to at most what it is",
    )
    loop.add_argument("--epochs", type=int, default=100, help="passes over the data")
    loop.add_argument(
        "--max_steps",
        type=int,
        help="stop (and end the schedule) after this many steps (default: by --epochs, which it replaces)",
    )
    loop.add_argument("--time_budget", help="train so long instead, e.g. 90s, 10m, 2h; the schedule follows")
    loop.add_argument("--optimizer", default="adamw", choices=OPTIMIZERS, help="muon: for the matrices inside")
    loop.add_argument("--lr", type=float, default=5e-4, help="peak learning rate")
    loop.add_argument("--warmup_epochs", type=float, default=0.0, help="linear warm-up in epochs")
    loop.add_argument(
        "--warmup_steps",
        type=int,
        help="the same in steps (default: by --warmup_epochs, at least 50 or a tenth of the run)",
    )
    loop.add_argument("--schedule", default="cosine", choices=SCHEDULES, help="after the warm-up")
    loop.add_argument("--weight_decay", type=float, default=0.0, help="AdamW's")
    loop.add_argument("--grad_clip", type=float, default=1.0, help="largest gradient norm")
    loop.add_argument("--ema_decay", type=float, default=0.9999, help="of the averaged weights, ramped up")
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", default="checkpoints/jit", help="run folder")
    add_common(run, "resume", "log_interval", "device", "precision", "compile", "seed", "wandb")
    run.add_argument("--save_minutes", type=float, default=5.0, help="write last.pth every this many minutes")
    run.add_argument("--save_steps", type=int, help="and every this many steps")
    run.add_argument("--save_interval", type=int, default=10, help="keep checkpoint_epoch_N.pth every this many epochs")
    run.add_argument(
        "--val_interval",
        type=int,
        help="validate every this many steps (default: a tenth of the run, an epoch at most)",
    )
    run.add_argument("--val_samples", type=int, default=256, help="validation chunks used")
    args = parser.parse_args()
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    for name in ("batch_size", "grad_accum", "epochs", "save_interval", "log_interval", "val_samples"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    for name in ("max_steps", "val_interval", "save_steps", "tokens_per_step"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    for name in ("self_cond_prob", "infill_prob", "infill_blank", "dropout", "ema_decay", "ngram_start"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} {getattr(args, name)}: need a number from 0 to 1")
    if not 0 < args.loss_fraction <= 1:
        raise UserError(f"--loss_fraction {args.loss_fraction}: need a number above 0, up to 1")
    if not args.save_minutes >= 0:
        raise UserError(f"--save_minutes {args.save_minutes}: need 0 or more")
    if args.weight_decay < 0 or not args.grad_clip > 0:
        raise UserError("--weight_decay needs 0 or more, --grad_clip more than 0")
    if not (args.lr > 0 and math.isfinite(args.lr)):
        raise UserError(f"--lr {args.lr}: need a positive number")


def resolve(args: argparse.Namespace, saved: dict | None, runtime: Runtime) -> None:
    """Settle what follows from the device or from the checkpoint that is continued."""
    if saved:
        for name in ("ngram", "t_mean"):
            if getattr(args, name) is None:
                setattr(args, name, saved["config"].get(name))
    elif args.ngram is None:
        args.ngram = max(ORDERS) if runtime.device.type == "cpu" and args.objective == "token" else 0
    if args.ngram and args.objective == "pixel":
        raise UserError("--ngram: n-grams join logits, which the pixel objective has none of; use --objective token")


def split_step(args: argparse.Namespace, mean_length: float, samples: int | None, runtime: Runtime) -> None:
    """Set --batch_size (at most what it is) and --grad_accum so that a step has --tokens_per_step tokens on all devices.

    `samples`: how many chunks a step has in the run that is continued. Raises UserError if they cannot be shared out evenly.
    """
    devices, most = runtime.world_size, args.batch_size
    if samples is None:
        on_each = math.ceil(max(1, args.tokens_per_step / mean_length) / devices)
        args.grad_accum = math.ceil(on_each / most)
        args.batch_size = math.ceil(on_each / args.grad_accum)
    else:
        splits = [n for n in range(1, samples + 1) if samples % (devices * n) == 0 and samples // (devices * n) <= most]
        if not splits:
            raise UserError(f"a step of the run has {samples} chunks, which {devices} devices cannot share evenly")
        args.grad_accum, args.batch_size = splits[0], samples // (devices * splits[0])
