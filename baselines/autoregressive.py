"""An autoregressive transformer on the same tokens: train it, then score it as TokCom is scored.

    python -m baselines.autoregressive --data_path RUN/data --output_dir checkpoints/autoregressive --time_budget 10m
    python -m baselines.autoregressive --data_path RUN/data --output_dir checkpoints/autoregressive --hidden_size 512 \\
        --num_hidden_layers 16 --intermediate_size 1408 --num_attention_heads 8 --epochs 20

`--data_path` is a folder of the data builder: train/, val/, test/, tokenizer.json, such as the data/ of a TokCom run. The best
weights are chosen on val and measured on test. Writes model/, config.json and report.json: negative log-likelihood in nats per
held-out token, BrierLM (corpus/brier.py) of the next 4 tokens after real prompts, on the sequences and by the protocol of
tokcom/evaluate.py, forward passes (NFE) per token and FLOPs of a pass per token. The network is transformers' Llama.
"""

import argparse

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from corpus.brier import NGRAMS, brier_lm
from corpus.chunks import Chunks, LengthBuckets, open_chunks, open_test, reported
from kit import device, errors
from kit.arguments import add_common, program
from kit.budget import TimeBudget
from kit.errors import UserError
from kit.randomness import step_seed
from kit.runlog import RunLog, environment, make_folder, progress_bar, write_json
from kit.schedule import lr_at

IGNORED = -100
VALIDATIONS = 10  # in as many passes as --epochs names; the best weights are kept
LESS_MEMORY = "lower `batch_size` or `max_length`, or take a smaller model"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--data_path", required=True, help="folder of the data builder, or any raw text")
    parser.add_argument("--output_dir", required=True, help="run folder")
    for name, value, text in (
        ("hidden_size", 192, "width"), ("num_hidden_layers", 6, "blocks"), ("num_attention_heads", 4, "heads"),
        ("intermediate_size", 512, "width inside the MLP"), ("max_length", 256, "longest sequence, in tokens"),
        ("batch_size", 16, "sequences per step"), ("epochs", 2, "passes over the data"), ("num_samples", 128, "sequences measured, of val and of test"),
        ("num_prompts", 512, "prompts continued for BrierLM"), ("seed", 0, "of everything"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--time_budget", help="train so long instead of by epochs, e.g. 90s, 10m")
    add_common(parser, "device", "precision")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for name in (
        "batch_size", "epochs", "num_samples", "num_prompts", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_length",
    ):  # fmt: skip
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    if not 0 < args.lr < float("inf"):
        raise UserError(f"--lr {args.lr}: need a positive number")
    runtime = device.start(args.device, args.seed, args.precision)
    output = make_folder(args.output_dir)

    # data
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
    order = LengthBuckets(train.lengths, args.batch_size, args.seed)
    rows = prompts_of(test, args)
    selection, held_out = ([c[i] for i in reported(c, args.num_samples)] for c in (val, test))

    # model
    model = build(args, tokenizer.vocab_size).to(runtime.device)
    size = sum(p.numel() for p in model.parameters())
    print(f"autoregressive: {size / 1e6:.1f}M parameters, {len(train):,} sequences, {runtime.device} {runtime.dtype}")

    # loop
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    budget = TimeBudget(args.time_budget)
    planned = order.steps_per_epoch * (10**6 if args.time_budget else args.epochs)
    step, total, best, weights = 0, planned, float("inf"), None
    log = RunLog(output, vars(args), runtime)
    bar = progress_bar(total, "steps")
    while step < total:
        for indices in order.epoch(step // order.steps_per_epoch, 0):
            lr = lr_at(step, args.lr, round(0.05 * total), total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            torch.manual_seed(step_seed(args.seed, step, 0, 1))
            with runtime.autocast():
                loss = nll(model, [train[i] for i in indices], runtime).mean()
            if not torch.isfinite(loss):
                raise UserError(f"the loss is no longer a number at step {step}: lower --lr")
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % 20 == 0:
                log.log(step, loss=loss.item(), grad_norm=norm.item(), lr=lr)
                bar.set_postfix_str(f"loss {loss.item():.3f}")
            total = bar.total = budget.total_steps(step, planned, runtime)
            bar.update()
            if step >= total or step % max(1, min(total, order.steps_per_epoch * args.epochs) // VALIDATIONS) == 0:
                loss = float(score_text(model, selection, runtime).mean())
                log.log(step, val_loss=loss)
                if loss < best:
                    best, weights = loss, {name: value.clone() for name, value in model.state_dict().items()}
            if step >= total:
                break
    bar.close()
    log.close()
    if weights:
        model.load_state_dict(weights)
    model.save_pretrained(output / "model")

    # report
    model.eval()
    with torch.no_grad(), runtime.autocast():
        losses = score_text(model, held_out, runtime)
        brier = score_samples(model, rows, args, runtime)
    report = {
        "data": args.data_path, "read_from": str(test.origin), "num_sequences": len(held_out), "num_tokens": len(losses),
        "nll": float(losses.mean()), **brier, "steps": step, "parameters": size, "nfe_per_token": 1,
        "flops_per_token_and_pass": flops_per_token(model, [train[i] for i in range(args.batch_size)], runtime),
        "environment": environment(runtime),
    }  # fmt: skip
    write_json(output / "report.json", report)
    print(f"{report['nll']:.3f} nats per token, BrierLM {brier['brier_lm']:.4f}; wrote {output}/report.json")


def build(args: argparse.Namespace, vocab_size: int) -> LlamaForCausalLM:
    """A Llama of the sizes asked for, with random weights. Raises UserError for sizes that do not fit."""
    if args.hidden_size % (2 * args.num_attention_heads):
        raise UserError(
            f"--hidden_size {args.hidden_size} does not give {args.num_attention_heads} heads an even width"
        )
    config = LlamaConfig(
        vocab_size=vocab_size + 1, hidden_size=args.hidden_size, intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_hidden_layers, num_attention_heads=args.num_attention_heads,
        max_position_embeddings=args.max_length + 1, initializer_range=args.hidden_size**-0.5, bos_token_id=vocab_size,
        eos_token_id=None, pad_token_id=vocab_size, tie_word_embeddings=False,
    )  # fmt: skip
    attention = "sdpa" if torch.cuda.is_available() else "eager"  # on CPUs the fused bf16 backward is slow
    return LlamaForCausalLM._from_config(config, attn_implementation=attention)


def nll(model: nn.Module, sequences: list[torch.Tensor], runtime: device.Runtime) -> torch.Tensor:
    """Negative log-likelihood (real tokens,) in nats; a start token stands before each sequence."""
    start, longest = model.config.bos_token_id, max(map(len, sequences))
    tokens = torch.full((len(sequences), longest + 1), IGNORED)
    for row, sequence in zip(tokens, sequences):
        row[1 : len(sequence) + 1] = sequence
    tokens = tokens.to(runtime.device)
    inputs = tokens[:, :-1].clamp_min(0)
    inputs[:, 0] = start
    logits = model(input_ids=inputs, use_cache=False).logits.float()
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses[tokens[:, 1:].flatten() != IGNORED]


@torch.no_grad()
def score_text(model: nn.Module, sequences: list[torch.Tensor], runtime: device.Runtime) -> torch.Tensor:
    """Negative log-likelihood (real tokens,) in nats of many sequences."""
    with runtime.autocast():
        return torch.cat([nll(model, sequences[i : i + 16], runtime) for i in range(0, len(sequences), 16)])


def prompts_of(test: Chunks, args: argparse.Namespace) -> torch.Tensor:
    """The first tokens (B, N) of held-out sequences: a prompt of a quarter of the window and the 4 after it.

    Raises UserError where no sequence is as long.
    """
    length = max(NGRAMS, args.max_length // 4) + NGRAMS
    rows = [test[i][:length] for i in reported(test, args.num_prompts, length)]
    if not rows:
        raise UserError(f"no held-out sequence has the {length} tokens that BrierLM needs")
    return torch.stack(rows)


def score_samples(model: nn.Module, rows: torch.Tensor, args: argparse.Namespace, runtime: device.Runtime) -> dict:
    """BrierLM of the last 4 tokens of rows (B, N), two samples each."""
    rows = rows.to(runtime.device)
    start = torch.full((len(rows), 1), model.config.bos_token_id, device=rows.device)
    prompts, truth, samples = torch.cat([start, rows[:, :-NGRAMS]], 1), rows[:, -NGRAMS:], []
    for salt in (1, 2):
        torch.manual_seed(args.seed * 1000 + salt)
        parts = [
            model.generate(
                p,
                attention_mask=torch.ones_like(p),
                do_sample=True,
                top_k=0,
                min_new_tokens=NGRAMS,
                max_new_tokens=NGRAMS,
            )
            for p in prompts.split(64)
        ]
        samples.append(torch.cat(parts)[:, prompts.shape[1] :])
    return brier_lm(*samples, truth)


@torch.no_grad()
def flops_per_token(model: nn.Module, sequences: list[torch.Tensor], runtime: device.Runtime) -> float:
    """Floating-point operations of one pass over whole sequences, per real token, as torch counts them."""
    with FlopCounterMode(display=False) as counter, runtime.autocast():
        nll(model, sequences, runtime)
    return counter.get_total_flops() / sum(map(len, sequences))


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
