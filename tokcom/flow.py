"""The method on one page: path, what the network predicts, its loss, and the samplers.

Path        z = t x + (1 - t) noise, noise ~ N(0, noise_std^2), x a sequence of normalized latents; t = 1 is clean. Divided by t
            it is y = x + sigma eps with sigma = noise_std (1 - t) / t, which is all the network sees of t.
Tokens      The frozen decoder turns each noisy vector by itself into hidden states; the network, which sees all vectors, adds
            to them before the decoder's head makes logits. Loss: cross-entropy of the tokens, as in the reference recipe.
Vectors     x_pred = c_skip y + c_out (...), preconditioned as in EDM (Karras et al., arXiv 2206.00364) for latents of unit
            spread. Its loss is squared error alone, so it is E[x | z] and the flow may be integrated along it.
Times       follow an adaptive noise schedule, by the cross-entropy. Padding enters neither attention nor loss. Positions in
            `cond_mask` (a prompt) are given clean and carry no loss.
"""

from dataclasses import dataclass

import torch
from torch import nn

from kit.cross_entropy import cross_entropy, expected_rows, row_slices
from kit.device import autocast_dtype
from kit.sampling import integrate
from kit.times import sigma_of
from tokcom.model import DenoisedModel, TokComVAE


@dataclass
class Prediction:
    """`x_pred` (B, C, latent_dim) the conditional mean; the tokens' distribution as the decoder's `head` on hidden (B, C K, D)."""

    x_pred: torch.Tensor
    hidden: torch.Tensor
    head: nn.Module

    @property
    def logits(self) -> torch.Tensor:
        """Logits (B, C K, vocab_size) of all tokens at once."""
        return self.head(self.hidden)

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
            found[rows] = nn.functional.cross_entropy(logits, tokens.flatten()[rows], reduction="none")
        return found.view(tokens.shape)

    def _parts(self):
        """Rows of all positions and their logits (r, vocab_size), some at a time."""
        hidden = self.hidden.flatten(0, 1)
        for rows in row_slices(len(hidden), self.head.out_features, hidden.device):
            yield rows, self.head(hidden[rows]).float()


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

    def predict(self, y, sigma, mask, cond_mask=None, x_prev=None) -> Prediction:
        """One forward pass on y = z / t (B, C, latent_dim) with noise sigma (B,); positions in cond_mask hold clean latents."""
        cond_mask = torch.zeros_like(mask) if cond_mask is None else cond_mask
        x_prev = torch.zeros_like(y) if x_prev is None else x_prev
        sigma = sigma.float()
        s = torch.where(cond_mask, 0.0, sigma[:, None]).unsqueeze(-1)
        skip, out, scale = 1 / (1 + s**2), s / (1 + s**2).sqrt(), (1 + s**2).rsqrt()
        vae, K = self.vae, self.vae.args.chunk_size
        table = vae.embed.weight[: vae.args.vocab_size]
        table = table * table.square().mean().rsqrt()  # unit spread, as the noisy vectors beside which it is read

        def embeddings(hidden):
            return expected_rows(hidden, vae.head.weight, vae.head.bias, table, autocast_dtype(y.device))

        with torch.no_grad():
            hidden = vae.hidden((skip * y).flatten(0, 1) * vae.latent_std + vae.latent_mean).view(*y.shape[:2], K, -1)
        weight = torch.where(cond_mask, 1.0, self.denoiser.decoder_scale(sigma.log()))
        hidden = weight[:, :, None, None] * hidden
        decoded = embeddings(hidden)
        features, added = self.denoiser(y * scale * mask.unsqueeze(-1), decoded, sigma.log(), mask, cond_mask, x_prev)
        hidden = hidden + added
        predicted = embeddings(hidden).flatten(2)
        x_pred = skip * y + out * (self.denoiser.mean(features) + self.denoiser.embed_mean(predicted)).float()
        return Prediction(x_pred, hidden.flatten(1, 2), vae.head)

    def forward(self, tokens, mask, t, noise, cond_mask, self_condition: bool):
        """Loss, and per sequence (B,) cross-entropy in nats per token and squared error per number.

        tokens, mask (B, C K); t (B,); noise (B, C, latent_dim); cond_mask (B, C).
        """
        K = self.vae.args.chunk_size
        with torch.no_grad():
            x = self.vae.encode(tokens, mask)
        chunk_mask = real_chunks(mask, K)
        sigma = self.noise_std * sigma_of(t)
        y = x + torch.where(cond_mask, 0.0, sigma[:, None]).unsqueeze(-1) * noise
        x_prev = None
        if self_condition:
            with torch.no_grad():
                x_prev = self.predict(y, sigma, chunk_mask, cond_mask).x_pred
        guess = self.predict(y, sigma, chunk_mask, cond_mask, x_prev)
        open_chunks = (chunk_mask & ~cond_mask).float()
        counts = open_chunks.sum(1).clamp_min(1)
        error = (guess.x_pred - x).square().mean(-1)
        mse = (error * open_chunks).sum(1) / counts
        open_tokens = (mask & ~cond_mask.repeat_interleave(K, 1, output_size=mask.shape[1])).float()
        weight = open_tokens / open_tokens.sum(1, keepdim=True).clamp_min(1)
        ce_sum, nll = cross_entropy(
            guess.hidden.flatten(0, 1), guess.head.weight, guess.head.bias, tokens.flatten(), weight.flatten(),
            autocast_dtype(tokens.device),
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
                x_pred, hidden = (  # logits are linear in the hidden states
                    u + guidance * (c - u)
                    for u, c in ((unconditional.x_pred, conditional.x_pred), (unconditional.hidden, conditional.hidden))
                )
                found = Prediction(torch.where(cond_mask.unsqueeze(-1), cond_latents, x_pred), hidden, conditional.head)
            previous = conditional.x_pred, unconditional and unconditional.x_pred
            return found.x_pred

        y = sigmas[0] * fresh_noise() if z is None else z / times[0].to(z.device)
        denoise(integrate(denoise, y, sigmas, sampler, fresh_noise), sigmas[-1])
        return found


def real_chunks(mask: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Which chunks (B, C) hold a real token, from a mask (B, C K) of real tokens."""
    return mask.unflatten(1, (-1, chunk_size)).any(-1)
