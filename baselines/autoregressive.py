"""An autoregressive transformer on the same tokens: what every text model is compared with.

    python -m baselines.autoregressive --data_path RUN/data --output_dir checkpoints/autoregressive --time_budget 10m
    python -m baselines.autoregressive --data_path RUN/data --output_dir checkpoints/larger --hidden_size 512 \\
        --num_hidden_layers 16 --intermediate_size 1408 --num_attention_heads 8 --epochs 20

`--data_path` is a folder of the data builder: train/, val/, test/, tokenizer.json, such as the data/ of a TokCom run. The best
weights are chosen on val and measured on test. Writes model/, config.json and report.json: negative log-likelihood in nats per
held-out token and bits per byte, BrierLM (corpus/brier.py) of the next 4 tokens after real prompts, on the sequences and by the
protocol of tokcom/evaluate.py, forward passes (NFE) per token and FLOPs of a pass per token. The network is transformers' Llama.
"""

import argparse

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from corpus import brier, language_model
from corpus.brier import NGRAMS, brier_lm, prompts_of
from corpus.language_model import LESS_MEMORY, Data, padded
from kit import device, errors

IGNORED = -100


def parse_args() -> argparse.Namespace:
    parser = language_model.parser_of(__doc__)
    brier.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    brier.check(args)
    language_model.run(
        "autoregressive", args, build, lambda *given: nll(*given).mean(), nats_per_sequence, measure_samples
    )


def build(args: argparse.Namespace, data: Data) -> LlamaForCausalLM:
    """A Llama of the sizes asked for, with random weights; the token after the last is its start token."""
    config = LlamaConfig(
        vocab_size=data.tokenizer.vocab_size + 1,
        bos_token_id=data.tokenizer.vocab_size,
        eos_token_id=None,
        pad_token_id=data.tokenizer.vocab_size,
        **language_model.sizes(args),
    )
    return LlamaForCausalLM._from_config(config, attn_implementation=language_model.attention())


def nll(model: nn.Module, sequences: list[torch.Tensor], runtime: device.Runtime) -> torch.Tensor:
    """Negative log-likelihood (real tokens,) in nats; a start token stands before each sequence."""
    targets = padded(sequences, IGNORED, runtime)
    inputs = nn.functional.pad(targets.clamp_min(0)[:, :-1], (1, 0), value=model.config.bos_token_id)
    logits = model(input_ids=inputs, use_cache=False).logits.float()
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses[targets.flatten() != IGNORED]


@torch.no_grad()
def nats_per_sequence(
    model: nn.Module, sequences: list[torch.Tensor], runtime: device.Runtime, batch_size: int = 16
) -> np.ndarray:
    """Negative log-likelihood (S,) of each sequence in nats."""
    found = []
    for start in range(0, len(sequences), batch_size):
        part = sequences[start : start + batch_size]
        with runtime.autocast():
            losses = nll(model, part, runtime)
        found += [float(each.double().sum()) for each in losses.split([len(sequence) for sequence in part])]
    return np.array(found)


@torch.no_grad()
def generate(
    model: nn.Module, prompts: torch.Tensor, num_tokens: int, batch_size: int = 64, do_sample: bool = True
) -> torch.Tensor:
    """As many tokens (B, num_tokens) after prompts (B, N), which may be empty; drawn by torch's generator, or the likeliest."""
    start = torch.full((len(prompts), 1), model.config.bos_token_id, device=prompts.device)
    parts = []
    for given in torch.cat([start, prompts], 1).split(batch_size):
        tokens = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=do_sample, top_k=0 if do_sample else None, min_new_tokens=num_tokens,
            max_new_tokens=num_tokens, suppress_tokens=[model.config.bos_token_id],
        )  # fmt: skip
        parts.append(tokens[:, given.shape[1] :])
    return torch.cat(parts)


def measure_samples(model: nn.Module, data: Data, args: argparse.Namespace, runtime: device.Runtime) -> dict:
    """BrierLM of the 4 tokens after each prompt, as many samples of each as asked for; of --pairs, which answers.py measures, nothing."""
    if args.pairs:
        return {"nfe_per_token": 1}
    rows = prompts_of(data.test, args.num_prompts, args.max_length).to(runtime.device)
    prompts, truth, samples = rows[:, :-NGRAMS], rows[:, -NGRAMS:], []
    with runtime.autocast():
        for salt in range(1, args.continuations + 1):
            torch.manual_seed(args.seed * 1000 + salt)
            samples.append(generate(model, prompts, NGRAMS))
    return {**brier_lm(samples, truth), "nfe_per_token": 1}


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
