"""What language models compared on the same chunks share: arguments, data, the loop, the report.

A model is a transformers network and two functions: the loss of some training sequences, and what held-out ones cost in
nats. Both read the chunks that the data builder wrote, the same that train.py and tokcom read.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from corpus.bits import per_byte
from corpus.chunks import LengthBuckets, open_chunks, open_test, reported
from corpus.pairs import open_pairs
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer
from kit import device
from kit.arguments import add_common, program
from kit.budget import TimeBudget
from kit.errors import UserError
from kit.muon import OPTIMIZERS, build_optimizers
from kit.randomness import step_seed
from kit.runlog import RunLog, environment, make_folder, progress_bar, write_json
from kit.schedule import lr_at, set_lr
from kit.whole import whole_folder

VALIDATIONS = 10  # in as many passes as --epochs names; the best weights are kept
LESS_MEMORY = "lower `batch_size` or `max_length`, or take a smaller model"
REPORT = "report.json"  # written last
SIZES = ("batch_size", "epochs", "num_samples", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_length")  # fmt: skip


def parser_of(description: str) -> argparse.ArgumentParser:
    parser = program(description)
    parser.add_argument("--data_path", required=True, help="folder of the data builder, or any raw text")
    parser.add_argument("--output_dir", required=True, help="run folder")
    for name, value, text in (
        ("hidden_size", 192, "width"), ("num_hidden_layers", 6, "blocks"), ("num_attention_heads", 4, "heads"),
        ("intermediate_size", 512, "width inside the MLP"), ("max_length", 256, "longest sequence, in tokens"),
        ("batch_size", 16, "sequences per step"), ("epochs", 2, "passes over the data"), ("num_samples", 128, "sequences measured, of val and of test"),
        ("seed", 0, "of everything"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    parser.add_argument(
        "--pairs",
        action=argparse.BooleanOptionalAction,
        default=False,
        help='--data_path holds rows {"prompt", "answer"}',
    )
    parser.add_argument("--vocab_size", type=int, default=512, help="size of the BPE trained on --pairs")
    parser.add_argument(
        "--optimizer", default="adamw", choices=OPTIMIZERS, help="muon: for the matrices between embeddings and output"
    )
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--dropout", type=float, default=0.0, help="of embeddings and of what each block adds")
    parser.add_argument("--time_budget", help="train so long instead of by epochs, e.g. 90s, 10m")
    parser.add_argument("--max_steps", type=int, help="train for so many steps instead of by epochs")
    add_common(parser, "device", "precision")
    return parser


def check(args: argparse.Namespace) -> None:
    for name in SIZES:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    if args.max_steps is not None and (args.max_steps < 1 or args.time_budget):
        raise UserError(f"--max_steps {args.max_steps}: need at least 1, and no --time_budget beside it")
    if not 0 < args.lr < float("inf"):
        raise UserError(f"--lr {args.lr}: need a positive number")
    if not 0 <= args.dropout < 1:
        raise UserError(f"--dropout {args.dropout}: need a number from 0 to below 1")
    if args.hidden_size % (2 * args.num_attention_heads):
        raise UserError(
            f"--hidden_size {args.hidden_size} does not give {args.num_attention_heads} heads an even width"
        )


def sizes(args: argparse.Namespace) -> dict:
    """The settings that configurations of Llama's family share."""
    return dict(
        hidden_size=args.hidden_size, intermediate_size=args.intermediate_size, num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads, max_position_embeddings=args.max_length + 1,
        initializer_range=args.hidden_size**-0.5, tie_word_embeddings=False,
    )  # fmt: skip


def attention() -> str:
    """Which attention: on CPUs the fused bf16 backward is slow."""
    return "sdpa" if torch.cuda.is_available() else "eager"


def add_dropout(model: nn.Module, probability: float) -> None:
    """Dropout of a network of Llama's family in training, which these networks have in attention only."""

    def hook(module, inputs, output):
        if not module.training:
            return output
        if isinstance(output, tuple):
            return F.dropout(output[0], probability), *output[1:]
        return F.dropout(output, probability)

    if probability:
        model.model.embed_tokens.register_forward_hook(hook)
        for layer in model.model.layers:
            layer.self_attn.register_forward_hook(hook)
            layer.mlp.register_forward_hook(hook)


@dataclass
class Data:
    """`selection` and `held_out`: the sequences that choose the weights, and those that the report measures."""

    train: Chunks
    test: Chunks
    tokenizer: Tokenizer
    selection: list[torch.Tensor]
    held_out: list[torch.Tensor]


def open_data(args: argparse.Namespace, output: Path) -> Data:
    """Raises UserError for data without validation set, or that does not fit the arguments."""
    if args.pairs:
        parts = open_pairs(args.data_path, args.max_length, vocab_size=args.vocab_size)
        train, val, test, tokenizer = parts.train, parts.val, parts.test, parts.tokenizer
        selection, held_out = ([c[i] for i in reported(c, args.num_samples)] for c in (val, test))
        return Data(train, test, tokenizer, selection, held_out)
    train, val, tokenizer = open_chunks(
        args.data_path,
        output / "data",
        None,
        min_tokens=max(1, args.max_length // 4),
        max_tokens=args.max_length,
        seed=args.seed,
    )
    if val is None:
        raise UserError(f"no validation sequences beside {args.data_path}: build it with --val_fraction above 0")
    test = open_test(str(train.origin.parent), output / "data", tokenizer)  # of raw text: the build that was just made
    for chunks in (train, val, test):
        chunks.check(args.max_length, tokenizer.vocab_size, "max_length")
    selection, held_out = ([c[i] for i in reported(c, args.num_samples)] for c in (val, test))
    return Data(train, test, tokenizer, selection, held_out)


def run(
    name: str,
    args: argparse.Namespace,
    build: Callable[[argparse.Namespace, Data], nn.Module],
    loss_of: Callable[[nn.Module, list[torch.Tensor], device.Runtime], torch.Tensor],
    nats_of: Callable[[nn.Module, list[torch.Tensor], device.Runtime], np.ndarray],
    measure: Callable[[nn.Module, Data, argparse.Namespace, device.Runtime], dict],
    likelihood: bool = True,
) -> None:
    """Train the network that `build(args, data)` makes, keep the best weights, write model/ and report.json.

    `loss_of(model, sequences, runtime)` is minimized; `nats_of` gives what each sequence costs (S,), in nats where it is a
    `likelihood` or a bound of it; `measure` adds to the report.
    """
    check(args)
    runtime = device.start(args.device, args.seed, args.precision)
    output = make_folder(args.output_dir)
    if (output / REPORT).exists():
        raise UserError(f"{output} holds a finished run: choose another `output_dir`")
    data = open_data(args, output)
    model = build(args, data).to(runtime.device)
    add_dropout(model, args.dropout)
    size = sum(p.numel() for p in model.parameters())
    print(f"{name}: {size / 1e6:.1f}M parameters, {len(data.train):,} sequences, {runtime.device} {runtime.dtype}")
    steps, tokens, seconds = train(model, args, data, loss_of, nats_of, runtime, output)
    with whole_folder(output / "model") as partial:
        model.eval().save_pretrained(partial)
    flops = flops_per_token(model, [data.train[i] for i in range(min(args.batch_size, len(data.train)))], runtime)
    nats = nats_of(model, data.held_out, runtime)
    count = sum(map(len, data.held_out))
    costs = per_byte(nats, data.held_out, data.tokenizer) if likelihood else {"num_tokens": count}
    found = measure(model, data, args, runtime)
    per_token = found.pop(
        "training_flops_per_token", 3 * flops
    )  # where training does more than one pass and its gradients
    report = {
        "baseline": name, "data": args.data_path, "read_from": str(data.test.origin),
        "num_sequences": len(data.held_out), **costs, "cost": float(nats.sum() / count),
        **found, "steps": steps, "parameters": size, "training_tokens": tokens,
        "training_seconds": round(seconds), "flops_per_token_and_pass": flops, "training_flops": per_token * tokens,
        "settings": vars(args), "environment": environment(runtime),
    }  # fmt: skip
    write_json(output / REPORT, report)
    said = (
        f"{report['nll']:.3f} nats per token, {report['bits_per_byte']:.3f} bits per byte"
        if likelihood
        else f"cost {report['cost']:.3f}"
    )
    print(f"{said}; wrote {output}/report.json")


def train(model, args, data: Data, loss_of, nats_of, runtime, output: Path) -> tuple[int, int, float]:
    """Leaves the weights of the best validation in the model; returns steps, tokens seen, and seconds without validation."""
    order = LengthBuckets(data.train.lengths, args.batch_size, args.seed)
    optimizers = build_optimizers(args.optimizer, model, args.lr, weight_decay=0.01, betas=(0.9, 0.95))
    budget = TimeBudget(args.time_budget)
    planned = args.max_steps or order.steps_per_epoch * (10**6 if args.time_budget else args.epochs)
    step, total, best, weights, tokens = 0, planned, float("inf"), None, 0
    selected = np.array([len(sequence) for sequence in data.selection]).sum()
    log = RunLog(output, vars(args), runtime)
    bar = progress_bar(total, "steps")
    for indices in order.batches():
        model.train()
        lr = lr_at(step, args.lr, round(0.05 * total), total)
        set_lr(optimizers, lr)
        torch.manual_seed(step_seed(args.seed, step, 0, 1))
        with runtime.autocast():
            loss = loss_of(model, [data.train[i] for i in indices], runtime)
        if not torch.isfinite(loss):
            raise UserError(f"the loss is no longer a number at step {step}: lower --lr")
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += int(data.train.lengths[indices].sum())
        if step % 20 == 0:
            log.log(step, loss=loss.item(), grad_norm=norm.item(), lr=lr)
            bar.set_postfix_str(f"loss {loss.item():.3f}")
        total = bar.total = budget.total_steps(step, planned, runtime)
        bar.update()
        if step >= total or step % max(1, min(total, order.steps_per_epoch * args.epochs) // VALIDATIONS) == 0:
            model.eval()
            with budget.paused():
                loss = float(nats_of(model, data.selection, runtime).sum() / selected)
            log.log(step, val_loss=loss)
            if loss < best:
                best, weights = loss, {name: value.clone() for name, value in model.state_dict().items()}
        if step >= total:
            break
    bar.close()
    log.close(finished=False)  # the report is yet to come
    if weights:
        model.load_state_dict(weights)
    return step, tokens, budget.spent


def padded(sequences: list[torch.Tensor], fill: int, runtime: device.Runtime) -> torch.Tensor:
    """Sequences as one batch (B, N) on the device, filled up at the end."""
    return nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=fill).to(runtime.device)


@torch.no_grad()
def flops_per_token(model: nn.Module, sequences: list[torch.Tensor], runtime: device.Runtime) -> float:
    """Floating-point operations of one pass over whole sequences, per real token, as torch counts them."""
    with FlopCounterMode(display=False) as counter, runtime.autocast():
        model(input_ids=padded(sequences, 0, runtime))
    return counter.get_total_flops() / sum(map(len, sequences))
