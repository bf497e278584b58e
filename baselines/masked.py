"""Masked diffusion on the same tokens: the discrete relative of this project's continuous one.

    python -m baselines.masked --data_path RUN/data --output_dir checkpoints/masked --time_budget 10m

MDLM (Sahoo et al., arXiv 2406.07524) with its simplest and best settings: log-linear schedule (at time t each token is masked
with probability t), the SUBS parameterization (a mask is never predicted, a token that shows stays), no time in the network, which is
transformers' EuroBERT: Llama without the causal mask. The report's `nll` is the evidence bound in nats per held-out token,
which equals that of predicting in random order: (L / l) times the cost of l masked tokens, l uniform in 1 … L
(Ou et al., arXiv 2406.03736), measured at --levels values of l for each text.
"""

import argparse
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import EuroBertConfig, EuroBertForMaskedLM

from corpus import language_model
from corpus.bits import per_byte
from corpus.language_model import LESS_MEMORY, Data, padded
from kit import device, errors
from kit.errors import UserError

LEAST_TIME = 1e-3  # the loss divides by t
WEIGHTINGS = ("bound", "even")
SELECTION_LEVELS = 2  # with the same masks at each validation


def parse_args() -> argparse.Namespace:
    parser = language_model.parser_of(__doc__)
    parser.add_argument(
        "--weighting",
        default="even",
        choices=WEIGHTINGS,
        help="of the masked tokens in training: 1 / t as in the bound, or all alike, which is steadier in small batches",
    )
    parser.add_argument("--levels", type=int, default=16, help="forward passes for the bound of each held-out text")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.levels < 1:
        raise UserError(f"--levels {args.levels}: need at least 1")
    language_model.run(
        "masked diffusion", args, build, partial(loss, weighting=args.weighting), lambda *given: nats_per_sequence(*given, SELECTION_LEVELS),
        lambda *given: measure(*given, args.levels),
    )  # fmt: skip


def measure(model: nn.Module, data, args: argparse.Namespace, runtime: device.Runtime, levels: int) -> dict:
    """The bound at more levels than choosing the weights takes."""
    nats = nats_per_sequence(model, data.held_out, runtime, levels)
    return {"levels": levels, **per_byte(nats, data.held_out, data.tokenizer)}


def build(args: argparse.Namespace, data: Data) -> EuroBertForMaskedLM:
    """A EuroBERT of the sizes asked for, with random weights; the token after the last is the mask."""
    config = EuroBertConfig(
        vocab_size=data.tokenizer.vocab_size + 1, mask_token_id=data.tokenizer.vocab_size, bos_token_id=None, eos_token_id=None, pad_token_id=data.tokenizer.vocab_size,
        **language_model.sizes(args),
    )  # fmt: skip
    return EuroBertForMaskedLM._from_config(config, attn_implementation=language_model.attention())


def logits(model: nn.Module, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Logits (B, N, V) float32 from tokens (B, N), some of them masks; real (B, N) True = no padding."""
    return model(input_ids=tokens, attention_mask=real.long()).logits[..., :-1].float()


def loss(
    model: nn.Module, sequences: list[torch.Tensor], runtime: device.Runtime, weighting: str = "bound"
) -> torch.Tensor:
    """The bound in nats per token, at one random time for each sequence; the times of a batch are spread evenly.

    With `weighting` even, the mean cost of the masked tokens instead: another average over times of the same costs.
    """
    tokens, real = padded(sequences, 0, runtime), padded([torch.ones_like(s) for s in sequences], 0, runtime).bool()
    count = len(tokens)
    t = (torch.rand(1) + torch.arange(count) / count) % 1 * (1 - LEAST_TIME) + LEAST_TIME
    t = t[torch.randperm(count)].to(runtime.device)[:, None]  # sequences come sorted by length
    hidden = (torch.rand(tokens.shape, device=tokens.device) < t) & real
    found = logits(model, tokens.masked_fill(hidden, model.config.mask_token_id), real)
    cost = F.cross_entropy(found[hidden], tokens[hidden], reduction="none")
    if weighting == "even":
        return cost.sum() / max(1, len(cost))
    return (cost / t.expand_as(hidden)[hidden]).sum() / real.sum()


@torch.no_grad()
def nats_per_sequence(
    model: nn.Module,
    sequences: list[torch.Tensor],
    runtime: device.Runtime,
    levels: int,
    batch_size: int = 16,
    seed: int = 0,
) -> np.ndarray:
    """The bound (S,) of each sequence in nats: one number of masks in each of `levels` equal parts of 1 … L."""
    generator, found = torch.Generator().manual_seed(seed), []
    for start in range(0, len(sequences), batch_size):
        part = sequences[start : start + batch_size]
        tokens, real = padded(part, 0, runtime), padded([torch.ones_like(s) for s in part], 0, runtime).bool()
        lengths, total = real.sum(1), torch.zeros(len(part), dtype=torch.float64, device=tokens.device)
        for level in range(levels):
            place = (level + torch.rand(len(part), generator=generator)).to(tokens.device) / levels
            masks = 1 + (place * lengths).long().clamp(max=lengths - 1)
            order = torch.rand(tokens.shape, generator=generator).to(tokens.device).masked_fill(~real, 2)
            hidden = order.argsort(1).argsort(1) < masks[:, None]
            with runtime.autocast():
                logit = logits(model, tokens.masked_fill(hidden, model.config.mask_token_id), real)
            cost = F.cross_entropy(logit.transpose(1, 2), tokens, reduction="none") * hidden
            total += cost.double().sum(1) * lengths / masks / levels
        found += total.tolist()
    return np.array(found)


@torch.no_grad()
def generate(
    model: nn.Module, tokens: torch.Tensor, given: torch.Tensor, passes: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Tokens (B, N) in `passes` forward passes; those where `given` (B, N) stay.

    Ancestral sampling: from time t to s each mask is replaced with probability (t - s) / t, by the Gumbel trick in float64
    (in float32 the rare tokens are lost; Zheng et al., arXiv 2409.02908).
    """
    real = torch.ones_like(given)
    tokens = torch.where(given, tokens, model.config.mask_token_id)
    for step in range(passes, 0, -1):
        uniform = torch.rand(*tokens.shape, model.config.vocab_size - 1, dtype=torch.float64, generator=generator)
        drawn = (logits(model, tokens, real).double() - (-uniform.to(tokens.device).log()).log()).argmax(-1)
        chosen = torch.rand(tokens.shape, generator=generator).to(tokens.device) < 1 / step
        tokens = torch.where((tokens == model.config.mask_token_id) & chosen, drawn, tokens)
    return tokens


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
