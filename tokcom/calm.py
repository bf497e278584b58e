"""The other layout of language in vectors: a causal transformer writes one vector after the other (CALM, arXiv 2510.27688).

    python -m tokcom.calm --vae_checkpoint RUN/best_vae.pt --data_path RUN/data --output_dir checkpoints/calm --time_budget 10m
    python -m tokcom.calm --vae_checkpoint RUN/best_vae.pt --data_path RUN/data --output_dir checkpoints/calm_flow --head flow

`--vae_checkpoint` is stage one of tokcom.train, frozen. The transformer reads the tokens of each chunk so far and a small head draws the next
vector, which the VAE's decoder turns into tokens. Heads:
  energy   a network of noise, in one pass; trained by the energy score, which no distribution but the true one makes least (Gneiting & Raftery 2007)
  flow     a denoiser of --passes passes, trained by squared error (as in MAR, arXiv 2406.11838)
  posterior  a denoiser of as many, which says what tokens a noisy vector stands for and from them what vector (as in CDCD, arXiv 2211.15089);
           the transformer below it learns from the tokens alone
  tokens   no vector: each token of the next chunk by itself, given what came before; what the vectors have to beat
With --token_loss the transformer below the first two heads also learns from what the last would cost, so many times, in training alone.
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
from transformers import DynamicCache, LlamaConfig, LlamaModel, LlamaPreTrainedModel

from corpus import brier, language_model
from corpus.brier import NGRAMS, brier_lm, prompts_of
from corpus.chunks import reported
from corpus.language_model import LESS_MEMORY, Data, padded
from corpus.tokenizer import Tokenizer
from kit import errors
from kit.device import Runtime
from kit.errors import UserError
from kit.sampling import integrate
from tokcom.inference import load_checkpoint
from tokcom.model import NoiseEmbedding, RMSNorm, SwiGLU, TokComVAE, initialize

HEADS = ("energy", "flow", "posterior", "tokens")
FITTED = 1500  # training sequences on which the posterior head's vectors are fitted
LEAST_SIGMA, MOST_SIGMA = 0.05, 20.0  # of the flow, in the vectors' standard deviations


def parser() -> argparse.ArgumentParser:
    parser = language_model.parser_of(__doc__)
    parser.add_argument("--vae_checkpoint", required=True, help="best_vae.pt or best_diffusion.pt of tokcom.train")
    parser.add_argument("--head", default="energy", choices=HEADS, help="what draws the next vector")
    parser.add_argument("--head_layers", type=int, default=3, help="blocks of the head")
    parser.add_argument(
        "--token_loss", type=float, default=0.0, help="weight of the tokens' cross-entropy beside the head's own loss"
    )
    parser.add_argument(
        "--draws",
        type=float,
        default=8,
        help="from the VAE's posterior, and of the energy head, for each vector in training; below 1, one for such a share of the vectors",
    )
    parser.add_argument("--passes", type=int, default=16, help="of the flow's head for a vector")
    brier.add_arguments(parser)
    return parser


def main() -> None:
    args = parser().parse_args()
    brier.check(args)
    for name in ("head_layers", "passes"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    if args.head == "energy":
        if args.draws < 2 or args.draws % 1:
            raise UserError(
                f"--draws {args.draws:g}: the energy head, whose score is of pairs, needs a whole number from 2"
            )
    elif not 0 < args.draws < 1 and (args.draws < 1 or args.draws % 1):
        raise UserError(f"--draws {args.draws:g}: need a whole number from 1, or a share between 0 and 1")
    if not 0 <= args.token_loss < float("inf") or (args.token_loss and args.head not in ("energy", "flow")):
        raise UserError(
            f"--token_loss {args.token_loss:g}: need a number from 0, and 0 for the heads of tokens and posteriors, which learn from tokens anyway"
        )
    vae, _, vae_args, config = load_checkpoint(args.vae_checkpoint)
    vae.requires_grad_(False)

    def build(args: argparse.Namespace, data: Data) -> NextVector:
        if not data.tokenizer.same_as(Tokenizer.from_json(config["tokenizer"])):
            raise UserError(f"{args.data_path} has another tokenizer than {args.vae_checkpoint}")
        model = NextVector(config_of(args, vae_args))
        if args.head == "posterior":
            some = [data.train[i] for i in reported(data.train, FITTED)]
            whole = [s[: len(s) // vae_args.chunk_size * vae_args.chunk_size] for s in some]
            model.head.fit(*vectors_of_tokens(vae, torch.cat(whole).view(-1, vae_args.chunk_size)))
        return model

    language_model.run(
        f"next vector, {args.head}{' and tokens' if args.token_loss else ''}", args, build, partial(loss, vae=vae), partial(costs, vae=vae), partial(measure, vae=vae),
        likelihood=args.head == "tokens",
    )  # fmt: skip


def config_of(args: argparse.Namespace, vae_args) -> LlamaConfig:
    """The sizes asked for, those of the VAE's vectors, and the head; the token after the last stands before each text."""
    token_loss = 1.0 if args.head == "posterior" else args.token_loss
    return LlamaConfig(
        vocab_size=vae_args.vocab_size + 1, bos_token_id=vae_args.vocab_size, eos_token_id=None, pad_token_id=None,
        chunk_size=vae_args.chunk_size, latent_dim=vae_args.latent_dim, head=args.head, head_layers=args.head_layers, passes=args.passes, draws=args.draws, token_loss=token_loss,
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

    def features(self, x: torch.Tensor, context: torch.Tensor, log_sigma: torch.Tensor | None = None) -> torch.Tensor:
        """What the output is a linear map of (..., D)."""
        if log_sigma is not None:
            context = context + self.noise_embed(log_sigma.flatten()).view(*log_sigma.shape, -1)
        x = self.input(x)
        for project, norm, block in zip(self.context, self.norms, self.blocks):
            x = x + block(norm(x) + project(context))
        return self.norm(x)

    def forward(self, x: torch.Tensor, context: torch.Tensor, log_sigma: torch.Tensor | None = None) -> torch.Tensor:
        return self.output(self.features(x, context, log_sigma)).float()


class PosteriorHead(Head):
    """What tokens (..., K, V) a vector (..., latent_dim) under noise stands for, and what vector was under the noise.

    A noisy vector is taken as a sum of one vector for each token, fitted to the VAE's before training, and what is left of it as normal. So
    its tokens have a posterior: by the context, times a likelihood; with several, what the others are expected to add is taken off first.
    The network corrects both the logits and the estimate; with one token in a chunk nothing is left to correct.
    """

    def __init__(self, dim: int, latent_dim: int, layers: int, chunk_size: int, vocab_size: int):
        super().__init__(dim, latent_dim, layers)
        self.prior = tokens_head(dim, chunk_size, vocab_size)
        self.correction = nn.Linear(dim, chunk_size * dim)
        self.register_buffer("vectors", torch.zeros(chunk_size, vocab_size, latent_dim))
        self.register_buffer("rest", torch.ones(latent_dim))  # variance of what is no such sum

    def fit(self, vectors: torch.Tensor, rest: torch.Tensor) -> None:
        """Take these vectors of tokens (K, V, latent_dim), and this variance (latent_dim) around their sums."""
        self.vectors.copy_(vectors)
        self.rest.copy_(rest)

    def initialize(self) -> None:
        """The network corrects nothing at first."""
        for parameter in (*self.correction.parameters(), *self.output.parameters()):
            nn.init.zeros_(parameter)

    def posterior(
        self, y: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (..., K, V) of the tokens and the estimate (..., latent_dim) of x, given y = x + sigma eps, sigma (..., 1)."""
        features = self.features(y * (1 + sigma**2).rsqrt(), context, sigma[..., 0].log())
        expand, split, norm, output = self.prior
        logits = output(norm(split(expand(context) + self.correction(features)))).float()
        with torch.autocast(y.device.type, enabled=False):  # where the noise is small, bf16 would be too coarse
            prior, precision = logits, 1 / (sigma**2 + self.rest)
            lengths = torch.einsum("...d,kvd->...kv", precision, self.vectors.square()) / 2
            for _ in range(min(len(self.vectors), 2)):
                parts = self.expected(logits)
                left = y[..., None, :] - (parts.sum(-2, keepdim=True) - parts)
                logits = (
                    prior + torch.einsum("...kd,kvd->...kv", left * precision[..., None, :], self.vectors) - lengths
                )
            told = self.expected(logits).sum(-2)
        estimate = (self.rest * y + sigma**2 * told) / (self.rest + sigma**2)
        return logits, estimate + sigma * (1 + sigma**2).rsqrt() * self.output(features).float()

    def expected(self, logits: torch.Tensor) -> torch.Tensor:
        """What each token is expected to add (..., K, latent_dim), without slope."""
        return torch.einsum("...kv,kvd->...kd", logits.detach().softmax(-1), self.vectors)


@torch.no_grad()
def vectors_of_tokens(vae: TokComVAE, chunks: torch.Tensor, sweeps: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (K, V, latent_dim) of the tokens at each place of a chunk whose sums are nearest to the VAE's vectors of `chunks` (n, K), and the
    variance (latent_dim) that is left; beside them stand random chunks, a few of each token, since some tokens are in no chunk."""
    K, V = chunks.shape[1], vae.args.vocab_size
    anything = torch.stack([torch.cat([torch.randperm(V) for _ in range(8)]) for _ in range(K)], 1)
    chunks = torch.cat([chunks, anything])
    found = [vae.posterior(part, torch.ones_like(part, dtype=torch.bool)) for part in chunks.split(4096)]
    rest = torch.cat([(mean - vae.latent_mean) / vae.latent_std for mean, _ in found])
    spread = torch.cat([log_variance.exp() / vae.latent_std**2 for _, log_variance in found]).mean(0)
    vectors = rest.new_zeros(K, V, rest.shape[1])
    counts = [tokens.bincount(minlength=V)[:, None] for tokens in chunks.T]
    for _ in range(sweeps):  # each place in turn takes what the others leave of its tokens, on average
        for place, tokens in enumerate(chunks.T):
            change = torch.zeros_like(vectors[place]).index_add_(0, tokens, rest) / counts[place]
            vectors[place] += change
            rest -= change[tokens]
    return vectors, rest.square().mean(0) + spread


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
        of_vectors, of_tokens = (dim, config.latent_dim, config.head_layers), (dim, K, config.vocab_size - 1)
        if config.head == "posterior":
            self.head = PosteriorHead(*of_vectors, *of_tokens[1:])
        else:
            self.head = tokens_head(*of_tokens) if config.head == "tokens" else Head(*of_vectors)
        self.beside = (
            tokens_head(*of_tokens) if getattr(config, "token_loss", 0) and config.head != "posterior" else None
        )
        self.post_init()
        for part in filter(None, (self.read, self.head, self.beside)):
            initialize(part)
        if config.head == "posterior":
            self.head.initialize()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            super()._init_weights(module)
        elif isinstance(module, NoiseEmbedding):  # from_pretrained calls this for what is not in the file
            module.reset_frequencies()

    def get_output_embeddings(self) -> nn.Module | None:
        """The layer to the vocabulary, where there is one."""
        return self.of_tokens and self.of_tokens[-1]

    @property
    def of_tokens(self) -> nn.Sequential | None:
        """What tells the tokens of a chunk from its context, each by itself, where something does."""
        if self.config.head == "posterior":
            return self.head.prior
        return self.head if self.config.head == "tokens" else self.beside

    def contexts(self, tokens: torch.Tensor) -> torch.Tensor:
        """The context (B, C, D) of each chunk of tokens (B, C, K): of those before it."""
        return self.read_on(F.pad(tokens[:, :-1], (0, 0, 1, 0), value=self.config.bos_token_id))

    def read_on(self, tokens: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """The contexts (B, C, D) after each chunk of tokens (B, C, K), and after those that `cache` remembers, which grows by them."""
        chunks = self.read(self.model.embed_tokens(tokens).flatten(2))
        return self.model(inputs_embeds=chunks, past_key_values=cache, use_cache=cache is not None).last_hidden_state

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
        if self.config.head == "posterior":
            return self.head.posterior(y, s, context)[1]
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
    training with what the transformer learns from tokens."""
    real, vae = mask.any(-1), vae.to(tokens.device)
    tokens, mask, context = tokens[real], mask[real], model.contexts(tokens)[real]
    config, n = model.config, len(context)
    if config.head == "tokens":
        return token_nats(model.head(context), tokens, mask)
    weight = getattr(config, "token_loss", 0)
    beside = weight * token_nats(model.of_tokens(context), tokens, mask) if model.training and weight else 0
    if config.head == "posterior":  # squared error would teach the transformer less than tokens do
        context = context.detach()
    draws, scale = getattr(config, "draws", 8), 1.0
    drawn = slice(None)  # the chunks that have vectors drawn for them
    if draws < 1:
        if model.training:
            drawn = torch.randperm(n, device=context.device)[: max(1, round(draws * n))]
            scale = n / len(drawn)
        draws = 1
    with torch.no_grad():
        mean, log_variance = vae.posterior(tokens[drawn], mask[drawn])
        mean, spread = (mean - vae.latent_mean) / vae.latent_std, (log_variance / 2).exp() / vae.latent_std
        truth = mean + spread * torch.randn(int(draws), *mean.shape, device=mean.device)
    found = torch.zeros(n, device=context.device)
    found[drawn] = scale * vector_costs(
        model, truth, context[drawn].expand(len(truth), -1, -1), tokens[drawn], mask[drawn]
    )
    return found + beside


def vector_costs(model: NextVector, truth: torch.Tensor, context: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """What the head's own loss is (n,) for true vectors (M, n, latent_dim) from contexts (M, n, D), of tokens and mask (n, K)."""
    if model.config.head == "energy":
        return energy_score(model.draw(context), truth)
    log_sigma = np.log(LEAST_SIGMA) + torch.rand(truth.shape[:-1], device=truth.device) * np.log(
        MOST_SIGMA / LEAST_SIGMA
    )
    sigma = log_sigma.exp()
    y = truth + sigma[..., None] * torch.randn_like(truth)
    nats = 0
    if model.config.head == "posterior":
        logits, found = model.head.posterior(y, sigma[..., None], context)
        each = [part.repeat(len(y), 1) for part in (tokens, mask)]
        nats = token_nats(logits.flatten(0, 1), *each).view(len(y), -1).mean(0)
    else:
        found = model.denoised(y, sigma, context)
    return ((1 + sigma**-2) * (found - truth).square().mean(-1)).mean(0) + nats


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
    given = F.pad(prompts.unflatten(1, (-1, K)), (0, 0, 1, 0), value=model.config.bos_token_id)
    cache, written = DynamicCache(config=model.config), []
    for _ in range(-(-num_tokens // K)):
        context = model.read_on(given, cache)[:, -1]
        if model.config.head == "tokens":
            chances = model.head(context).float().softmax(-1).flatten(0, 1)
            drawn = torch.multinomial(chances.to(generator.device), 1, generator=generator).view(-1, K)
        else:
            drawn = vae.decode(model.draw(context, generator)[:, None]).argmax(-1)
        written.append(drawn.to(prompts.device))
        given = written[-1][:, None]
    return torch.cat(written, 1)[:, :num_tokens]


def measure(model: NextVector, data: Data, args: argparse.Namespace, runtime: Runtime, vae: TokComVAE) -> dict:
    """BrierLM of the 4 tokens after each prompt, as many samples of each as asked for, and what training cost."""
    K = model.config.chunk_size
    rows = prompts_of(data.test, args.num_prompts, args.max_length).to(runtime.device)
    prompts, truth, samples = rows[:, : (rows.shape[1] - NGRAMS) // K * K], rows[:, -NGRAMS:], []
    with runtime.autocast():
        for salt in range(1, args.continuations + 1):
            generator = torch.Generator(runtime.device).manual_seed(args.seed * 1000 + salt)
            parts = [
                generate(model, vae, part, rows.shape[1] - prompts.shape[1], generator) for part in prompts.split(64)
            ]
            samples.append(torch.cat(parts)[:, -NGRAMS:])
    some = [data.train[i] for i in range(min(args.batch_size, len(data.train)))]
    flops = training_flops(model, some, runtime, vae) / sum(map(len, some))
    return {**brier_lm(samples, truth), "nfe_per_token": 1 / K, "chunk_size": K, "training_flops_per_token": flops}


@torch.enable_grad()
def training_flops(model: NextVector, sequences: list[torch.Tensor], runtime: Runtime, vae: TokComVAE) -> int:
    """Floating-point operations of a step of training on these sequences, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter, runtime.autocast():
        loss(model.train(), sequences, runtime, vae).backward()
    model.eval().zero_grad()
    return counter.get_total_flops()


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
