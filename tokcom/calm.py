"""The other layout of language in vectors: a causal transformer writes one vector after the other (CALM, arXiv 2510.27688).

    python -m tokcom.calm --vae_checkpoint RUN/best_vae.pt --data_path RUN/data --output_dir checkpoints/calm --time_budget 10m
    python -m tokcom.calm --vae_checkpoint RUN/best_vae.pt --data_path RUN/data --output_dir checkpoints/calm --head flow

`--vae_checkpoint` is stage one of tokcom.train, frozen. The transformer reads the tokens of each chunk so far and a small head draws the next
vector, which the VAE's decoder turns into tokens. Heads:
  energy   a network of noise, in one pass; trained by the energy score, which no distribution but the true one makes least (Gneiting & Raftery 2007)
  flow     a denoiser of --passes passes, trained by squared error (as in MAR, arXiv 2406.11838)
  tokens   no vector: each token of the next chunk by itself, given what came before; what the vectors have to beat
With --token_loss the transformer below the other two heads also learns from what that one would cost, so many times, in training alone.
Writes model/, config.json and report.json: BrierLM of the next 4 tokens by the protocol of tokcom/evaluate.py; of the tokens' head
also nats per token and bits per byte. `cost` is what the weights were chosen by, per token: the head's own loss.
"""  # fmt: skip

import argparse
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel

from corpus import language_model
from corpus.brier import NGRAMS, brier_lm, prompts_of
from corpus.language_model import LESS_MEMORY, Data, padded
from kit import errors
from kit.device import Runtime
from kit.errors import UserError
from kit.sampling import integrate
from tokcom.inference import load_checkpoint
from tokcom.model import NoiseEmbedding, RMSNorm, SwiGLU, TokComVAE, initialize

HEADS = ("energy", "flow", "tokens")
LEAST_SIGMA, MOST_SIGMA = 0.05, 20.0  # of the flow, in the vectors' standard deviations


def parse_args() -> argparse.Namespace:
    parser = language_model.parser_of(__doc__)
    parser.add_argument("--vae_checkpoint", required=True, help="best_vae.pt or best_diffusion.pt of tokcom.train")
    parser.add_argument("--head", default="energy", choices=HEADS, help="what draws the next vector")
    parser.add_argument("--head_layers", type=int, default=3, help="blocks of the head")
    parser.add_argument(
        "--token_loss", type=float, default=0.0, help="weight of the tokens' cross-entropy beside the head's own loss"
    )
    parser.add_argument(
        "--draws", type=int, default=8, help="from the posterior, and of the energy head, for each vector in training"
    )
    parser.add_argument("--passes", type=int, default=16, help="of the flow's head for a vector")
    parser.add_argument("--num_prompts", type=int, default=512, help="prompts continued for BrierLM")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for name in ("head_layers", "passes", "num_prompts"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    least = 2 if args.head == "energy" else 1  # whose score is of pairs
    if args.draws < least:
        raise UserError(f"--draws {args.draws}: the head of {args.head} needs at least {least}")
    if not 0 <= args.token_loss < float("inf") or (args.token_loss and args.head == "tokens"):
        raise UserError(
            f"--token_loss {args.token_loss:g}: need a number from 0, and 0 for the tokens' head, which has no other loss"
        )
    vae, _, vae_args, _ = load_checkpoint(args.vae_checkpoint)
    vae.requires_grad_(False)

    def build(args: argparse.Namespace, vocab_size: int) -> NextVector:
        if vocab_size != vae_args.vocab_size:
            raise UserError(f"{args.data_path} has {vocab_size} tokens, {args.vae_checkpoint} {vae_args.vocab_size}")
        return NextVector(config_of(args, vae_args))

    language_model.run(
        f"next vector, {args.head}{' and tokens' if args.token_loss else ''}", args, build, partial(loss, vae=vae), partial(costs, vae=vae), partial(measure, vae=vae),
        likelihood=args.head == "tokens",
    )  # fmt: skip


def config_of(args: argparse.Namespace, vae_args) -> LlamaConfig:
    """The sizes asked for, those of the VAE's vectors, and the head; the token after the last stands before each text."""
    return LlamaConfig(
        vocab_size=vae_args.vocab_size + 1, bos_token_id=vae_args.vocab_size, eos_token_id=None, pad_token_id=None,
        chunk_size=vae_args.chunk_size, latent_dim=vae_args.latent_dim, head=args.head, head_layers=args.head_layers, passes=args.passes, draws=args.draws, token_loss=args.token_loss,
        attn_implementation=language_model.attention(), **language_model.sizes(args),
    )  # fmt: skip


class Head(nn.Module):
    """A vector (..., latent_dim) from a context (..., D), and from another vector: noise, or a noisy one at log sigma (...)."""

    def __init__(self, dim: int, latent_dim: int, layers: int):
        super().__init__()
        self.input = nn.Linear(latent_dim, dim)
        self.noise_embed = NoiseEmbedding(dim)
        self.context = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(layers))
        self.blocks = nn.ModuleList(SwiGLU(dim, dim, dim) for _ in range(layers))
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, latent_dim)

    def forward(self, x: torch.Tensor, context: torch.Tensor, log_sigma: torch.Tensor | None = None) -> torch.Tensor:
        if log_sigma is not None:
            context = context + self.noise_embed(log_sigma.flatten()).view(*log_sigma.shape, -1)
        x = self.input(x)
        for project, norm, block in zip(self.context, self.norms, self.blocks):
            x = x + block(norm(x) + project(context))
        return self.output(self.norm(x)).float()


def tokens_head(dim: int, chunk_size: int, vocab_size: int) -> nn.Sequential:
    """Logits (..., K, V) of the tokens of a chunk, each by itself, from its context (..., D)."""
    layers = nn.Linear(dim, chunk_size * dim), nn.Unflatten(-1, (chunk_size, dim)), RMSNorm(dim)
    return nn.Sequential(*layers, nn.Linear(dim, vocab_size))


class NextVector(LlamaPreTrainedModel):
    """A Llama over chunks: tokens (B, C, K) to a context (B, C, D) of each chunk, from which its head draws the chunk's vector."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        dim, K = config.hidden_size, config.chunk_size
        self.model = LlamaModel(config)
        self.read = nn.Sequential(nn.Linear(K * dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        of_tokens = partial(tokens_head, dim, K, config.vocab_size - 1)
        self.head = of_tokens() if config.head == "tokens" else Head(dim, config.latent_dim, config.head_layers)
        self.beside = of_tokens() if getattr(config, "token_loss", 0) else None
        self.post_init()
        for part in filter(None, (self.read, self.head, self.beside)):
            initialize(part)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            super()._init_weights(module)
        elif isinstance(module, NoiseEmbedding):  # from_pretrained calls this for what is not in the file
            module.reset_frequencies()

    def get_output_embeddings(self) -> nn.Module | None:
        """The layer to the vocabulary, where there is one."""
        head = self.head if self.config.head == "tokens" else self.beside
        return head and head[-1]

    def contexts(self, tokens: torch.Tensor) -> torch.Tensor:
        """The context (B, C, D) of each chunk of tokens (B, C, K): of those before it."""
        before = F.pad(tokens[:, :-1], (0, 0, 1, 0), value=self.config.bos_token_id)
        chunks = self.read(self.model.embed_tokens(before).flatten(2))
        return self.model(inputs_embeds=chunks, use_cache=False).last_hidden_state

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """What writing costs: the contexts of tokens (B, N), and one vector drawn for each chunk (tokens' head: logits)."""
        context = self.contexts(in_chunks(input_ids, self.config.chunk_size))
        return self.head(context) if self.config.head == "tokens" else self.draw(context)

    def draw(self, context: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """A vector (..., latent_dim) for each context (..., D)."""
        shape = *context.shape[:-1], self.config.latent_dim

        def noise():
            place = generator.device if generator else context.device
            return torch.randn(shape, device=place, generator=generator).to(context.device)

        if self.config.head == "energy":
            return self.head(noise(), context)
        sigmas = np.geomspace(MOST_SIGMA, LEAST_SIGMA, self.config.passes).tolist()

        def denoise(y, sigma):
            return self.denoised(y, torch.full(shape[:-1], sigma, device=y.device), context)

        return denoise(integrate(denoise, sigmas[0] * noise(), sigmas, "stochastic", noise), sigmas[-1])

    def denoised(self, y: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """E[x | y = x + sigma eps, context], y (..., latent_dim), sigma (...), preconditioned as in tokcom/flow.py."""
        s = sigma[..., None]
        found = self.head(y * (1 + s**2).rsqrt(), context, sigma.log())
        return y / (1 + s**2) + s * (1 + s**2).rsqrt() * found


def energy_score(drawn: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Energy score (n,) of draws (N, n, d) from a forecast against draws (M, n, d) from the truth: 2 E|x - y| - E|x - x'|, without bias."""
    apart = torch.linalg.vector_norm(drawn[:, None] - truth[None], dim=-1).mean((0, 1))
    # of a draw from itself the distance is 0, where the norm has no slope
    first, second = torch.triu_indices(len(drawn), len(drawn), 1)
    return 2 * apart - torch.linalg.vector_norm(drawn[first] - drawn[second], dim=-1).mean(0)


def in_chunks(tokens: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Tokens (B, N) as (B, C, K), the last chunk filled up with zeros."""
    return F.pad(tokens, (0, -tokens.shape[1] % chunk_size)).unflatten(1, (-1, chunk_size))


def batch_of(sequences: list[torch.Tensor], chunk_size: int, runtime: Runtime) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, C, K) of sequences, and True where there is one."""
    ones = padded([torch.ones_like(sequence) for sequence in sequences], 0, runtime)
    return in_chunks(padded(sequences, 0, runtime), chunk_size), in_chunks(ones, chunk_size).bool()


def chunk_costs(model: NextVector, tokens: torch.Tensor, mask: torch.Tensor, vae: TokComVAE) -> torch.Tensor:
    """What each real chunk of tokens and mask (B, C, K) costs (n,): nats, an energy score, or the denoiser's weighted squared error; in
    training with what --token_loss asks for."""
    real, vae = mask.any(-1), vae.to(tokens.device)
    context = model.contexts(tokens)[real]
    if model.config.head == "tokens":
        return token_nats(model.head(context), tokens[real], mask[real])
    beside = 0
    if model.training and model.beside is not None:
        beside = model.config.token_loss * token_nats(model.beside(context), tokens[real], mask[real])
    with torch.no_grad():
        mean, log_variance = vae.posterior(tokens[real], mask[real])
        mean, spread = (mean - vae.latent_mean) / vae.latent_std, (log_variance / 2).exp() / vae.latent_std
        truth = mean + spread * torch.randn(getattr(model.config, "draws", 8), *mean.shape, device=mean.device)
    context = context.expand(len(truth), *context.shape)
    if model.config.head == "energy":
        return energy_score(model.draw(context), truth) + beside
    log_sigma = np.log(LEAST_SIGMA) + torch.rand(truth.shape[:-1], device=mean.device) * np.log(
        MOST_SIGMA / LEAST_SIGMA
    )
    sigma = log_sigma.exp()
    found = model.denoised(truth + sigma[..., None] * torch.randn_like(truth), sigma, context)
    return ((1 + sigma**-2) * (found - truth).square().mean(-1)).mean(0) + beside


def token_nats(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Nats (n,) of the real tokens of chunks (n, K) under logits (n, K, V)."""
    nats = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none")
    return (nats.view_as(mask) * mask).sum(-1)


def loss(model: NextVector, sequences: list[torch.Tensor], runtime: Runtime, vae: TokComVAE) -> torch.Tensor:
    """Mean over real chunks; of the tokens' head over real tokens."""
    tokens, mask = batch_of(sequences, model.config.chunk_size, runtime)
    found = chunk_costs(model, tokens, mask, vae)
    return found.sum() / mask.sum() if model.config.head == "tokens" else found.mean()


@torch.no_grad()
def costs(model: NextVector, sequences: list[torch.Tensor], runtime: Runtime, vae: TokComVAE, batch_size: int = 16) -> np.ndarray:  # fmt: skip
    """What each sequence costs (S,), the same draws each time."""
    found = []
    state = torch.get_rng_state()
    torch.manual_seed(0)
    for start in range(0, len(sequences), batch_size):
        tokens, mask = batch_of(sequences[start : start + batch_size], model.config.chunk_size, runtime)
        with runtime.autocast():
            each = chunk_costs(model, tokens, mask, vae)
        found += [float(part.double().sum()) for part in each.split(mask.any(-1).sum(1).tolist())]
    torch.set_rng_state(state)
    return np.array(found)


@torch.no_grad()
def generate(
    model: NextVector, vae: TokComVAE, prompts: torch.Tensor, num_tokens: int, generator: torch.Generator
) -> torch.Tensor:
    """As many tokens (B, num_tokens) after prompts (B, N) of whole chunks, chunk by chunk."""
    K, vae = model.config.chunk_size, vae.to(prompts.device)
    tokens = prompts.unflatten(1, (-1, K))
    for _ in range(-(-num_tokens // K)):
        context = model.contexts(F.pad(tokens, (0, 0, 0, 1)))[:, -1]
        if model.config.head == "tokens":
            chances = model.head(context).float().softmax(-1).flatten(0, 1)
            drawn = torch.multinomial(chances.to(generator.device), 1, generator=generator).view(-1, K)
        else:
            drawn = vae.decode(model.draw(context, generator)[:, None]).argmax(-1)
        tokens = torch.cat([tokens, drawn.to(tokens.device)[:, None]], 1)
    return tokens.flatten(1)[:, prompts.shape[1] :][:, :num_tokens]


def measure(model: NextVector, data: Data, args: argparse.Namespace, runtime: Runtime, vae: TokComVAE) -> dict:
    """BrierLM of the 4 tokens after each prompt, two samples each, and what training cost."""
    K = model.config.chunk_size
    rows = prompts_of(data.test, args.num_prompts, args.max_length).to(runtime.device)
    prompts, truth, samples = rows[:, : (rows.shape[1] - NGRAMS) // K * K], rows[:, -NGRAMS:], []
    with runtime.autocast():
        for salt in (1, 2):
            generator = torch.Generator(runtime.device).manual_seed(args.seed * 1000 + salt)
            parts = [
                generate(model, vae, part, rows.shape[1] - prompts.shape[1], generator) for part in prompts.split(64)
            ]
            samples.append(torch.cat(parts)[:, -NGRAMS:])
        some = [data.train[i] for i in range(min(args.batch_size, len(data.train)))]
        with FlopCounterMode(display=False) as counter:
            loss(model, some, runtime, vae)
    return {**brier_lm(*samples, truth), "nfe_per_token": 1 / K, "chunk_size": K, "training_flops_per_token": 3 * counter.get_total_flops() / sum(map(len, some))}  # fmt: skip


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
