"""The two stages of training, each with its loss, its validation on fixed noise and its samples."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from corpus.loader import collate
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer
from kit.cross_entropy import cross_entropy
from kit.device import Runtime, autocast_dtype
from kit.times import TimeSampler
from tokcom.config import TrainConfig
from tokcom.dataset import chosen_batches, in_order
from tokcom.flow import Flow, Prediction, real_chunks
from tokcom.model import DenoisedModel, TokComVAE
from tokcom.ngram_decoder import NGramDecoder

VAL_SEQUENCES = 128
TUNED_SEQUENCES = 32
TUNED_SIGMAS = (0.25, 0.5, 0.7, 1.0, 1.5, 2.3, 4.0, 9.0)
STATISTICS_SEQUENCES = 2000  # training sequences from which the latents' mean and spread are taken
VAL_SIGMAS = (0.1, 0.2, 0.35, 0.6, 1.0, 1.8, 3.0, 6.0)


class VAELoss(nn.Module):
    """The VAE's training loss, so that DDP can wrap it."""

    def __init__(self, vae: TokComVAE, config: TrainConfig):
        super().__init__()
        self.vae, self.config = vae, config

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """Cross-entropy in nats per real token of chunks (N, K), none of them empty, plus the KL term; and both apart.

        The vector that is decoded carries the posterior's noise and, on top, `latent_noise` of the batch's own spread, so
        that scaling the vectors up does not outrun it. Dimensions whose KL is below `kl_floor` are not pressed further.
        """
        mean, log_variance = self.vae.posterior(tokens, mask, self.config.token_dropout)
        spread = mean.detach().std(0, correction=0)
        noise = (log_variance.exp() + (self.config.latent_noise * spread).square()).sqrt()
        hidden, head = self.vae.hidden(mean + noise * torch.randn_like(mean)).flatten(0, 1), self.vae.head
        weight = (mask / mask.sum()).flatten()
        ce, _ = cross_entropy(hidden, head.weight, head.bias, tokens.flatten(), weight, autocast_dtype(mask.device))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(0)
        loss = ce + self.config.kl_weight * kl.clamp_min(self.config.kl_floor).sum()
        return loss, {"ce": ce.detach(), "kl": kl.detach().sum()}


class VAEStage:
    """Stage one: chunks to vectors and back."""

    name, ngrams = "vae", None

    def __init__(self, vae: TokComVAE, config: TrainConfig, runtime: Runtime):
        self.vae, self.config, self.runtime = vae, config, runtime
        self.trained = vae  # what the optimizer and the average see
        self.module = VAELoss(vae, config)
        self.lr, self.epochs = config.vae_lr, config.vae_epochs

    def step(self, module: nn.Module, batch: dict, self_condition: bool, progress: float) -> tuple[torch.Tensor, dict]:
        """Loss of a batch on the host, and numbers for the log."""
        real = batch["mask"].view(-1, self.vae.args.chunk_size).any(1)
        tokens, mask = (part[real] for part in by_chunk(batch, self.vae.args.chunk_size))
        replaced = torch.rand(len(tokens), 1) < self.config.random_chunks
        tokens = torch.where(replaced, torch.randint(self.vae.args.vocab_size, tokens.shape), tokens)
        loss, parts = module(self.runtime.to(tokens), self.runtime.to(mask))
        return loss, {"vae/batch_loss": parts["ce"], "vae/kl": parts["kl"]}

    def refit(self) -> None:
        """Nothing to fit while it trains."""

    @torch.no_grad()
    def validate(self, val: Chunks) -> dict:
        """Cross-entropy under latent noise (the loss), and fractions of tokens recovered without and with it."""
        self.vae.eval()
        total = torch.zeros(4, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        for batch in validation_batches(val, self.config.batch_size, self.vae.args.chunk_size, self.runtime):
            tokens, mask = by_chunk(batch, self.vae.args.chunk_size)
            with self.runtime.autocast():
                mean, _ = self.vae.posterior(tokens, mask)
                spread = mean[mask.any(1)].std(0, correction=0)
                noise = torch.randn(mean.shape, generator=generator).to(mean.device) * spread * self.config.latent_noise
                clean, noisy = (Prediction(x, self.vae.hidden(x), self.vae.head) for x in (mean, mean + noise))
                ce, right, right_noisy = noisy.nll(tokens), clean.tokens() == tokens, noisy.tokens() == tokens
            total += torch.stack([(part * mask).sum() for part in (ce, right, right_noisy, mask)]).cpu().double()
        self.vae.train()
        ce, right, noisy, count = total.tolist()
        return {"val_loss": ce / count, "val_accuracy": right / count, "val_accuracy_noisy": noisy / count}

    @torch.no_grad()
    def samples(self, val: Chunks, tokenizer: Tokenizer) -> list[dict]:
        """Texts and what the VAE makes of them."""
        rows = []
        for index in range(min(self.config.num_samples, len(val))):
            batch = to_device(collate([val[index]], self.vae.args.chunk_size), self.runtime)
            mean, _ = self.vae.posterior(*by_chunk(batch, self.vae.args.chunk_size))
            found = self.vae.decode_raw(mean).argmax(-1).view(1, -1)[batch["mask"]]
            rows.append(
                {"text": tokenizer.decode(batch["tokens"][batch["mask"]]), "reconstructed": tokenizer.decode(found)}
            )
        return rows


class DiffusionStage:
    """Stage two: sequences of vectors out of noise, through the frozen VAE."""

    name = "diffusion"

    def __init__(
        self,
        vae: TokComVAE,
        denoiser: DenoisedModel,
        times: TimeSampler,
        config: TrainConfig,
        runtime: Runtime,
        ngrams: NGramDecoder | None = None,
    ):
        self.vae, self.denoiser, self.times, self.config, self.runtime = vae, denoiser, times, config, runtime
        self.ngrams = ngrams  # which the denoiser gets after `ngram_start` of the steps
        vae.requires_grad_(False).eval()
        self.trained = denoiser
        self.module = Flow(vae, denoiser, config.noise_std, config.mse_weight)
        self.lr, self.epochs = config.diffusion_lr, config.diffusion_epochs

    def step(self, module: nn.Module, batch: dict, self_condition: bool, progress: float) -> tuple[torch.Tensor, dict]:
        """Loss of a batch on the host, and numbers for the log. Draws times (stratified over the batch), noise and prompts.

        `progress`: the fraction of the stage's steps that are done.
        """
        if progress >= self.config.ngram_start:
            self.denoiser.ngrams = self.ngrams
        counts = real_chunks(batch["mask"], self.vae.args.chunk_size).sum(1)
        tokens, mask = (self.runtime.to(batch[name]) for name in ("tokens", "mask"))
        B, C = len(tokens), tokens.shape[1] // self.vae.args.chunk_size
        t = self.runtime.to(self.times.sample((torch.randperm(B) + torch.rand(B)) / B))
        noise = torch.randn(B, C, self.vae.args.latent_dim, device=tokens.device)
        prompts = (torch.rand(B) < self.config.prompt_prob) * (torch.rand(B) * counts).long()
        cond_mask = self.runtime.to(torch.arange(C) < prompts[:, None])
        ngrams = self.denoiser.ngrams
        fold = self.runtime.to(ngrams.fold_of(batch["index"])) if ngrams else None
        loss, ce, mse = module(tokens, mask, t, noise, cond_mask, self_condition, fold)
        self.times.observe(t, torch.where(cond_mask.any(1), torch.nan, ce))
        return loss, {"diffusion/batch_ce_loss": ce.mean(), "diffusion/batch_mse_loss": mse.mean()}

    def refit(self) -> None:
        """Adapt the noise schedule to the cross-entropy measured so far."""
        self.times.refit(self.runtime)

    @torch.no_grad()
    def validate(self, val: Chunks) -> dict:
        """Mean cross-entropy in nats per token over eight noise levels (the loss), and the fraction of tokens recovered."""
        self.denoiser.eval()
        flow, K = self.module, self.vae.args.chunk_size
        total = torch.zeros(3, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        for number, batch in enumerate(validation_batches(val, self.config.batch_size, K, self.runtime)):
            tokens, mask = batch["tokens"], batch["mask"]
            levels = torch.tensor(VAL_SIGMAS, device=tokens.device).roll(number)
            sigma = levels[torch.arange(len(tokens), device=tokens.device) % len(levels)]
            with self.runtime.autocast():
                x = self.vae.encode(tokens, mask)
                y = x + sigma.view(-1, 1, 1) * torch.randn(x.shape, generator=generator).to(x.device)
                guess = flow.predict(y, sigma, real_chunks(mask, K))
            ce, right = guess.nll(tokens), guess.tokens() == tokens
            total += torch.stack([(part * mask).sum() for part in (ce, right, mask)]).cpu().double()
        self.denoiser.train()
        ce, right, count = total.tolist()
        return {"val_loss": ce / count, "val_accuracy": right / count}

    @torch.no_grad()
    def samples(self, val: Chunks, tokenizer: Tokenizer) -> list[dict]:
        """Texts out of nothing, and texts denoised from half-way."""
        flow, config = self.module, self.config
        self.denoiser.eval()
        rows = []
        for index in range(min(config.num_samples, len(val))):
            batch = to_device(collate([val[index]], self.vae.args.chunk_size), self.runtime)
            mask = real_chunks(batch["mask"], self.vae.args.chunk_size)
            x = self.vae.encode(batch["tokens"], batch["mask"])
            half = flow.add_noise(x, torch.tensor([0.5], device=x.device), torch.randn_like(x))
            again = flow.sample(mask, self.times.grid(config.num_sample_steps, 0.5), z=half)
            fresh = flow.sample(mask, self.times.grid(config.num_sample_steps), sampler="stochastic")
            found, made = (part.tokens()[batch["mask"]] for part in (again, fresh))
            text = tokenizer.decode(batch["tokens"][batch["mask"]])
            rows.append({"text": text, "denoised": tokenizer.decode(found), "generated": tokenizer.decode(made)})
        self.denoiser.train()
        return rows


def to_device(batch: dict, runtime: Runtime) -> dict:
    """A batch on the device that computes."""
    return {name: runtime.to(value) for name, value in batch.items()}


def by_chunk(batch: dict, chunk_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask (B C, K) of a batch of sequences (B, C K)."""
    return batch["tokens"].view(-1, chunk_size), batch["mask"].view(-1, chunk_size)


def validation_batches(val: Chunks, batch_size: int, chunk_size: int, runtime: Runtime) -> Iterator[dict]:
    """The same sequences each time."""
    for batch in in_order(val, VAL_SEQUENCES, batch_size, chunk_size):
        yield to_device(batch, runtime)


@torch.no_grad()
def tune_ngrams(ngrams: NGramDecoder, vae: TokComVAE, config: TrainConfig, runtime: Runtime) -> None:
    """The weights of the decoder's posteriors at each of TUNED_SIGMAS, under which n-grams recover most of some training text."""
    train, K = ngrams.train_chunks, vae.args.chunk_size
    chosen = torch.linspace(0, len(train) - 1, min(TUNED_SEQUENCES, len(train))).round().long()

    def texts(sigma: float):
        generator = torch.Generator().manual_seed(1)
        for index, batch in zip(chosen.split(16), chosen_batches(train, chosen.tolist(), 16, K)):
            tokens, mask = (runtime.to(batch[name]) for name in ("tokens", "mask"))
            x = vae.encode(tokens, mask)
            y = x + sigma * torch.randn(x.shape, generator=generator).to(x.device)
            yield runtime.to(index), vae.decode(y).float().log_softmax(-1), tokens, mask

    with runtime.autocast():
        weights = [ngrams.tune(partial(texts, sigma)) for sigma in TUNED_SIGMAS]
    ngrams.load_weights({"log_sigmas": torch.tensor(TUNED_SIGMAS).log(), "weights": torch.tensor(weights)})


@torch.no_grad()
def measure_latents(
    vae: TokComVAE, train: Chunks, config: TrainConfig, runtime: Runtime
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (latent_dim,) of the posterior means over up to 2000 training sequences."""
    vae.eval()
    total = torch.zeros(3, vae.args.latent_dim, dtype=torch.float64)  # on the CPU, since mps has no float64
    for batch in in_order(train, STATISTICS_SEQUENCES, config.batch_size, vae.args.chunk_size):
        tokens, mask = by_chunk(to_device(batch, runtime), vae.args.chunk_size)
        with runtime.autocast():
            mean, _ = vae.posterior(tokens, mask)
        mean = mean[mask.any(1)].cpu().double()
        total += torch.stack([mean.sum(0), mean.square().sum(0), torch.full_like(mean[0], len(mean))])
    mean = total[0] / total[2]
    return mean.float(), (total[1] / total[2] - mean.square()).clamp_min(1e-12).sqrt().float()
