"""The method on one page: path, what the network predicts, its loss, and the samplers.

Path        x_t = (1 - t) x0 + t x1, x0 ~ N(0, noise_std^2), x1 a sequence of normalized latents; t = 1 is clean. Divided by t
            it is y = x1 + sigma eps with sigma = noise_std (1 - t) / t, which is all the network sees of t.
Tokens      The frozen decoder hears something in each noisy vector by itself; the network, which sees all of them, adds what
            context says before the decoder's head turns it into logits. Loss: cross-entropy of the tokens, as in the seed.
Vectors     x1_pred = c_skip y + c_out (...), preconditioned as in EDM (Karras et al., arXiv 2206.00364) for latents of unit
            spread. Its loss is squared error alone, so it is E[x1 | x_t] and the flow may be integrated along it.
Times       are fitted to the cross-entropy. Padding enters neither attention nor loss. Positions that are `known` (a prompt)
            are given clean and carry no loss.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from kit.sampling import integrate
from kit.times import sigma_of
from tokcom.model import DenoisedModel, TokComVAE


@dataclass
class Prediction:
    """`x1` (B, C, latent_dim) the conditional mean, `logits` (B, C K, vocab_size) of the tokens."""

    x1: torch.Tensor
    logits: torch.Tensor


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

    def add_noise(self, x1: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x_t (B, C, latent_dim) at times t (B,)."""
        t = t.view(-1, 1, 1)
        return (1 - t) * self.noise_std * noise + t * x1

    def predict(self, y, sigma, mask, known=None, x_prev=None) -> Prediction:
        """One look at y = x_t / t (B, C, latent_dim) with noise sigma (B,); known positions of y hold clean latents."""
        known = torch.zeros_like(mask) if known is None else known
        x_prev = torch.zeros_like(y) if x_prev is None else x_prev
        sigma = sigma.float()
        s = torch.where(known, 0.0, sigma[:, None]).unsqueeze(-1)
        skip, out, scale = 1 / (1 + s**2), s / (1 + s**2).sqrt(), (1 + s**2).rsqrt()
        vae, K = self.vae, self.vae.args.chunk_size
        table = vae.embed.weight[: vae.args.vocab_size]
        table = table * table.square().mean().rsqrt()  # unit spread, as the noisy vectors beside which it is read

        def embeddings(logits):
            return logits.float().softmax(-1).to(table.dtype) @ table

        with torch.no_grad():
            alone = vae.hidden((skip * y).flatten(0, 1) * vae.latent_std + vae.latent_mean).view(*y.shape[:2], K, -1)
        alone = torch.where(known, 1.0, self.denoiser.trusted(sigma.log()))[:, :, None, None] * alone
        with torch.no_grad():
            heard = embeddings(vae.head(alone))
        features, said = self.denoiser(y * scale * mask.unsqueeze(-1), heard, sigma.log(), mask, known, x_prev)
        logits = vae.head(alone + said)
        believed = embeddings(logits.detach()).flatten(2)
        x1 = skip * y + out * (self.denoiser.mean(features) + self.denoiser.expect(believed)).float()
        return Prediction(x1, logits.flatten(1, 2))

    def forward(self, tokens, mask, t, noise, known, self_condition: bool):
        """Loss, and per sequence (B,) cross-entropy in nats per token and squared error per number.

        tokens, mask (B, C K); t (B,); noise (B, C, latent_dim); known (B, C).
        """
        K = self.vae.args.chunk_size
        with torch.no_grad():
            x1 = self.vae.encode(tokens, mask)
        chunk_mask = real_chunks(mask, K)
        sigma = self.noise_std * sigma_of(t)
        y = x1 + torch.where(known, 0.0, sigma[:, None]).unsqueeze(-1) * noise
        x_prev = None
        if self_condition:
            with torch.no_grad():
                x_prev = self.predict(y, sigma, chunk_mask, known).x1
        guess = self.predict(y, sigma, chunk_mask, known, x_prev)
        open_chunks = (chunk_mask & ~known).float()
        counts = open_chunks.sum(1).clamp_min(1)
        error = (guess.x1 - x1).square().mean(-1)
        mse = (error * open_chunks).sum(1) / counts
        nll = token_nll(guess.logits, tokens)
        open_tokens = (mask & ~known.repeat_interleave(K, 1)).float()
        ce = (nll * open_tokens).sum(1) / open_tokens.sum(1).clamp_min(1)
        # the error is divided by c_out^2, its size for a network that knows nothing: every noise level weighs alike
        weight = 1 + sigma**-2
        loss = (ce + self.mse_weight * weight * mse).mean()
        return loss, ce.detach(), mse.detach()

    # ------------------------------------------------------------------------------------------------------------------
    # Sampling

    @torch.no_grad()
    def sample(
        self, mask, times, sampler="euler", x=None, known=None, clean=None, guidance=1.0, generator=None
    ) -> Prediction:
        """Integrate from times[0] to times[-1] by a sampler of kit/sampling.py; a last forward pass decides, and is returned.

        mask (B, C); `times` (S,) ascending; x (B, C, latent_dim) the state at times[0], or None for pure noise. Known
        positions (B, C) hold `clean` throughout. `guidance` above 1 extrapolates away from what the model predicts without
        the known positions (classifier-free guidance, Ho & Salimans, arXiv 2207.12598).
        """
        sigmas = (self.noise_std * sigma_of(times)).tolist()
        shape = (*mask.shape, self.vae.args.latent_dim)
        found, previous = None, (None, None)  # the estimates of the pass before, with the prompt and without

        def fresh_noise():
            place = generator.device if generator else mask.device
            return torch.randn(shape, device=place, generator=generator).to(mask.device)

        def denoise(y, sigma):
            nonlocal found, previous
            if known is not None:
                y = torch.where(known.unsqueeze(-1), clean, y)
            level = torch.full((len(y),), sigma, device=y.device)
            found = conditional = self.predict(y, level, mask, known, previous[0])
            unconditional = None
            if guidance != 1 and known is not None:
                unconditional = self.predict(y, level, mask & ~known, None, previous[1])
                x1, logits = (
                    u + guidance * (c - u)
                    for u, c in ((unconditional.x1, conditional.x1), (unconditional.logits, conditional.logits))
                )
                found = Prediction(torch.where(known.unsqueeze(-1), clean, x1), logits)
            previous = conditional.x1, unconditional and unconditional.x1
            return found.x1

        y = sigmas[0] * fresh_noise() if x is None else x / times[0].to(x.device)
        denoise(integrate(denoise, y, sigmas, sampler, fresh_noise), sigmas[-1])
        return found


def real_chunks(mask: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Which chunks (B, C) hold a real token, from a mask (B, C K) of real tokens."""
    return mask.unflatten(1, (-1, chunk_size)).any(-1)


def token_nll(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (B, N) in nats of tokens (B, N) under logits (B, N, vocab_size)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten(), reduction="none").view(tokens.shape)
