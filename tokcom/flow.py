"""The method on one page: path, what the network predicts, its loss, and the samplers.

Path        z = t x + (1 - t) noise, noise ~ N(0, noise_std^2), x a sequence of normalized latents; t = 1 is clean. Divided by t
            it is y = x + sigma eps with sigma = noise_std (1 - t) / t, which is all the network sees of t.
Tokens      The frozen decoder turns each noisy vector by itself into hidden states; the network, which sees all vectors, adds
            to them before the decoder's head makes logits. Loss: cross-entropy of the tokens, as in the reference recipe. With
            n-grams, forward-backward on what the decoder finds is an input, and joins the logits (tokcom/ngram_decoder.py).
Vectors     x_pred = c_skip y + c_out (...), preconditioned as in EDM (Karras et al., arXiv 2206.00364) for latents of unit
            spread. Its loss is squared error alone, so it is E[x | z] and the flow may be integrated along it.
Times       follow an adaptive noise schedule, by the cross-entropy. Padding enters neither attention nor loss. Positions in
            `cond_mask` (a prompt) are given clean and carry no loss.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from kit.cross_entropy import cross_entropy, row_slices
from kit.device import autocast_dtype
from kit.sampling import integrate
from kit.times import sigma_of
from tokcom.model import DenoisedModel, TokComVAE

NGRAM_CANDIDATES = (8, 24)  # of the trigrams inside, see NGram.contexts


@dataclass
class Prediction:
    """`x_pred` (B, C, latent_dim) the conditional mean; the tokens' distribution as the decoder's `head` on hidden (B, C K, D), with n-grams
    plus their `contexts`, n of (B, C K, vocab_size), each times its gate, `gates` (B, C K, n)."""

    x_pred: torch.Tensor | None
    hidden: torch.Tensor
    head: nn.Module
    gates: torch.Tensor | None = None
    contexts: tuple[torch.Tensor, ...] = ()

    @property
    def logits(self) -> torch.Tensor:
        """Logits (B, C K, vocab_size) of all tokens at once, float32."""
        return torch.cat([logits for _, logits in self._parts()]).view(*self.hidden.shape[:-1], -1)

    def tokens(self) -> torch.Tensor:
        """The likeliest tokens (B, C K)."""
        found = torch.empty(self.hidden.shape[:-1].numel(), dtype=torch.long, device=self.hidden.device)
        for rows, logits in self._parts():
            found[rows] = logits.argmax(-1)
        return found.view(self.hidden.shape[:-1])

    def nll(self, tokens: torch.Tensor) -> torch.Tensor:
        """Cross-entropy (B, C K) of tokens (B, C K), in nats."""
        found = torch.empty(tokens.numel(), device=tokens.device)
        for rows, logits in self._parts():
            found[rows] = F.cross_entropy(logits, tokens.flatten()[rows], reduction="none")
        return found.view(tokens.shape)

    def mean_rows(self, table: torch.Tensor) -> torch.Tensor:
        """The mean (B, C K, E) of the rows of `table` (vocab_size, E) under the tokens' distribution."""
        found = table.new_empty(self.hidden.shape[:-1].numel(), table.shape[1])
        for rows, logits in self._parts():
            found[rows] = logits.softmax(-1).to(table.dtype) @ table
        return found.view(*self.hidden.shape[:-1], -1)

    def extrapolated(self, other: "Prediction", weight: float) -> "Prediction":
        """This prediction moved away from `other`, for weight 1 itself; logits are linear in all that is mixed."""
        mixed = [b + weight * (a - b) for a, b in ((self.x_pred, other.x_pred), (self.hidden, other.hidden))]
        gates = None if self.gates is None else torch.cat([weight * self.gates, (1 - weight) * other.gates], -1)
        return Prediction(*mixed, self.head, gates, self.contexts + other.contexts)

    def _parts(self):
        """Rows of all positions and their logits (r, vocab_size), some at a time."""
        hidden = self.hidden.flatten(0, 1)
        for rows in row_slices(len(hidden), self.head.out_features, hidden.device):
            logits = self.head(hidden[rows]).float()
            for order, context in enumerate(self.contexts):
                logits = torch.addcmul(
                    logits, self.gates.flatten(0, 1)[rows, order, None].float(), context.flatten(0, 1)[rows]
                )
            yield rows, logits


@dataclass
class Observation:
    """What noisy vectors say by themselves: the decoder's hidden states (B, C, K, D), and with n-grams the mean embeddings
    under each order, (B, C, K, orders D), and its context log-probabilities (B, C K, vocab_size)."""

    hidden: torch.Tensor
    by_ngrams: torch.Tensor | None = None
    contexts: tuple[torch.Tensor, ...] = ()


class Flow(nn.Module):
    """A denoiser with a frozen VAE. `forward` is the training loss, so that DDP can wrap it."""

    def __init__(self, vae: TokComVAE, denoiser: DenoisedModel, noise_std: float = 1.0, mse_weight: float = 1.0):
        super().__init__()
        self.denoiser = denoiser
        self.noise_std, self.mse_weight = noise_std, mse_weight
        self._vae = [vae]  # in a list: no part of what is trained or saved with the denoiser

    @property
    def vae(self) -> TokComVAE:
        return self._vae[0]

    def add_noise(self, x: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """z (B, C, latent_dim) at times t (B,), from latents x and standard normal noise."""
        t = t.view(-1, 1, 1)
        return t * x + (1 - t) * self.noise_std * noise

    @torch.no_grad()
    def observe(self, y, sigma, mask, cond_mask=None, fold=None) -> Observation:
        """What y = z / t says without the network; arguments as of `predict`, fold (B,) as of NGram.contexts."""
        # y as it is, not its conditional mean y / (1 + sigma^2), from which the decoder tells n-grams far less (LOG.md)
        hidden, ngrams = self.vae.decode_hidden(y), self.denoiser.ngrams
        if ngrams is None:
            return Observation(hidden)
        s = sigma.float()[:, None].expand(mask.shape)
        s = s if cond_mask is None else torch.where(cond_mask, 0.0, s)
        vae, K, unigram = self.vae, self.vae.args.chunk_size, ngrams.ngram.log_unigram[0]
        log_q = vae.head(hidden.flatten(1, 2)).float().log_softmax(-1)
        weights, real = (each.repeat_interleave(K, 1) for each in (ngrams.weights_at(s), mask))
        seen, contexts = ngrams.observe(log_q, real, weights, self.vae.args.ngram, fold, NGRAM_CANDIDATES)
        table = self.table()
        means = [context.posterior(seen).to(table.dtype) @ table for context in contexts]
        # log q, which the network's logits begin as, holds the unigrams already
        joined = tuple(context.dense - weights[..., 1:] * unigram for context in contexts)
        return Observation(hidden, torch.cat(means, -1).view(*y.shape[:2], K, -1), joined)

    def table(self) -> torch.Tensor:
        """The tokens' embeddings (vocab_size, D), of unit spread, as the noisy vectors beside which they are read."""
        table = self.vae.embed.weight[: self.vae.args.vocab_size].detach()
        return (table * table.square().mean().rsqrt()).to(autocast_dtype(table.device))

    def predict(
        self, y, sigma, mask, cond_mask=None, x_prev=None, observation: Observation | None = None
    ) -> Prediction:
        """One forward pass on y = z / t (B, C, latent_dim) with noise sigma (B,); positions in cond_mask hold clean latents."""
        o = observation or self.observe(y, sigma, mask, cond_mask)
        cond_mask = torch.zeros_like(mask) if cond_mask is None else cond_mask
        x_prev = torch.zeros_like(y) if x_prev is None else x_prev
        sigma = sigma.float()
        s = torch.where(cond_mask, 0.0, sigma[:, None]).unsqueeze(-1)
        skip, out, scale = 1 / (1 + s**2), s / (1 + s**2).sqrt(), (1 + s**2).rsqrt()
        head, table = self.vae.head, self.table()
        weight = torch.where(cond_mask, 1.0, self.denoiser.decoder_scale(sigma.log()))
        hidden = weight[:, :, None, None] * o.hidden
        with torch.no_grad():
            decoded = Prediction(None, hidden.flatten(1, 2), head).mean_rows(table).view(hidden.shape)
        features, added, gates = self.denoiser(
            y * scale * mask.unsqueeze(-1), decoded, sigma.log(), mask, cond_mask, x_prev, o.by_ngrams
        )
        gates = None if gates is None else gates.flatten(1, 2)
        guess = Prediction(None, (hidden + added).flatten(1, 2), head, gates, o.contexts)
        with torch.no_grad():
            predicted = guess.mean_rows(table).view(*y.shape[:2], -1)
        guess.x_pred = skip * y + out * (self.denoiser.mean(features) + self.denoiser.embed_mean(predicted)).float()
        return guess

    def forward(self, tokens, mask, t, noise, cond_mask, self_condition: bool, fold=None):
        """Loss, and per sequence (B,) cross-entropy in nats per token and squared error per number.

        tokens, mask (B, C K); t (B,); noise (B, C, latent_dim); cond_mask (B, C); fold (B,) or None, see NGram.contexts.
        """
        K = self.vae.args.chunk_size
        with torch.no_grad():
            x = self.vae.encode(tokens, mask)
        chunk_mask = real_chunks(mask, K)
        sigma = self.noise_std * sigma_of(t)
        y = x + torch.where(cond_mask, 0.0, sigma[:, None]).unsqueeze(-1) * noise
        observation, x_prev = self.observe(y, sigma, chunk_mask, cond_mask, fold), None
        if self_condition:
            with torch.no_grad():
                x_prev = self.predict(y, sigma, chunk_mask, cond_mask, None, observation).x_pred
        guess = self.predict(y, sigma, chunk_mask, cond_mask, x_prev, observation)
        open_chunks = (chunk_mask & ~cond_mask).float()
        counts = open_chunks.sum(1).clamp_min(1)
        error = (guess.x_pred - x).square().mean(-1)
        mse = (error * open_chunks).sum(1) / counts
        open_tokens = (mask & ~cond_mask.repeat_interleave(K, 1, output_size=mask.shape[1])).float()
        weight = open_tokens / open_tokens.sum(1, keepdim=True).clamp_min(1)
        ce_sum, nll = cross_entropy(
            guess.hidden.flatten(0, 1), guess.head.weight, guess.head.bias, tokens.flatten(), weight.flatten(),
            autocast_dtype(tokens.device),
            gates=None if guess.gates is None else F.pad(guess.gates.flatten(0, 1), (1, 0), value=1.0),
            contexts=lambda rows: [context.flatten(0, 1)[rows] for context in guess.contexts],
        )  # fmt: skip
        ce = (nll.view(tokens.shape) * weight).sum(1)
        # the error is divided by c_out^2, its size for a network that knows nothing: every noise level weighs alike
        loss = ce_sum / len(tokens) + (self.mse_weight * (1 + sigma**-2) * mse).mean()
        return loss, ce, mse.detach()

    # ------------------------------------------------------------------------------------------------------------------
    # Sampling

    @torch.no_grad()
    def sample(
        self, mask, times, sampler="euler", z=None, cond_mask=None, cond_latents=None, guidance=1.0, generator=None
    ) -> Prediction:
        """Integrate from times[0] to times[-1] by a sampler of kit/sampling.py; a last forward pass decides, and is returned.

        mask (B, C); `times` (S,) ascending; z (B, C, latent_dim) the state at times[0], or None for pure noise. Positions in
        cond_mask (B, C) hold `cond_latents` throughout. `guidance` above 1 extrapolates away from what the model predicts
        without them (classifier-free guidance, Ho & Salimans, arXiv 2207.12598).
        """
        sigmas = (self.noise_std * sigma_of(times)).tolist()
        shape = (*mask.shape, self.vae.args.latent_dim)
        found, previous = None, (None, None)  # the estimates of the pass before, with the prompt and without

        def fresh_noise():
            place = generator.device if generator else mask.device
            return torch.randn(shape, device=place, generator=generator).to(mask.device)

        def denoise(y, sigma):
            nonlocal found, previous
            if cond_mask is not None:
                y = torch.where(cond_mask.unsqueeze(-1), cond_latents, y)
            level = torch.full((len(y),), sigma, device=y.device)
            found = conditional = self.predict(y, level, mask, cond_mask, previous[0])
            unconditional = None
            if guidance != 1 and cond_mask is not None:
                unconditional = self.predict(y, level, mask & ~cond_mask, None, previous[1])
                found = conditional.extrapolated(unconditional, guidance)
                found.x_pred = torch.where(cond_mask.unsqueeze(-1), cond_latents, found.x_pred)
            previous = conditional.x_pred, unconditional and unconditional.x_pred
            return found.x_pred

        y = sigmas[0] * fresh_noise() if z is None else z / times[0].to(z.device)
        denoise(integrate(denoise, y, sigmas, sampler, fresh_noise), sigmas[-1])
        return found


def real_chunks(mask: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Which chunks (B, C) hold a real token, from a mask (B, C K) of real tokens."""
    return mask.unflatten(1, (-1, chunk_size)).any(-1)
