"""The method on one page: noising, likelihood, posterior, the two losses, samplers. All in reading order, (B, N, ...).

Noising      z = t * x + (1 - t) * noise, t = 1 clean, as in JiT; the noise level on the scale of colors is sigma = (1 - t) / t.
token        The network gives context logits for every token; the color adds its exact Gaussian log-likelihood:
             logit_v = context_v - |z - t c_v|^2 / (2 (1 - t)^2), softmax over the palette, loss = cross-entropy on the
             token, x_pred = sum_v p_v c_v. Still x-prediction: the network learns only the context.
             Beside an n-gram model, its context log-probabilities join the network's, weighed by gates.
pixel        The reference recipe: the network predicts the clean image (or the velocity), loss = JiT's v-loss.
Padding enters no loss and no statistic. Positions in `cond_mask` are given clean: no loss falls on them.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from corpus.ngram import DENSE_VOCAB, Context, NGram, unigram_context
from kit import sampling
from kit.compiling import compile_blocks
from kit.cross_entropy import cross_entropy, row_slices, rows_at_once
from kit.device import autocast_dtype
from kit.errors import UserError
from kit.sampling import integrate
from kit.times import MIN_SIGMA, sigma_of
from model import JiT
from palette import Layout, Palette

OBJECTIVES = ("token", "pixel")
SAMPLERS = ("posterior", *sampling.SAMPLERS)
V_LOSS_EPS = 0.05  # JiT's floor under 1 - t
NGRAM_CANDIDATES, NGRAM_SEGMENT = (8, 24), 64  # of the n-gram model beside the network, see NGram.contexts
GAP_CANDIDATES = (64,)  # where gaps get their likeliest tokens: there nothing is seen, and many are likely
SPARSE_CANDIDATES = 32  # of each position, for vocabularies above DENSE_VOCAB


@dataclass
class Observation:
    """The network's input, computed from noisy colors z (B, N, 3) at times t (B, N).

    soft (B, N, S * D): the mean embeddings of each token's posteriors, under the unigrams and every order of the n-gram
    model, None without a vocabulary; contexts: those of each order of the n-gram model.
    """

    z: torch.Tensor
    t: torch.Tensor
    soft: torch.Tensor | None = None
    contexts: tuple[Context, ...] = ()


@dataclass
class Prediction:
    """One forward pass: x_pred (B, N, 3), tokens (B, N) long, nll (B, N) of the truth in nats, `prev`, and `confidence` (B, N).

    `nll` is None without the truth or in the pixel objective, which gives no likelihood. `prev` is what the next pass is
    conditioned on, `confidence` the probability of each token (pixel objective: 1). Padding holds zeros.
    """

    x_pred: torch.Tensor
    tokens: torch.Tensor
    nll: torch.Tensor | None
    prev: torch.Tensor
    confidence: torch.Tensor


class Diffusion(nn.Module):
    """A network, a palette and a layout under one objective. `forward` is the training loss, so that DDP can wrap it."""

    def __init__(
        self,
        network: JiT,
        palette: Palette,
        layout: Layout,
        objective: str = "token",
        log_unigram: torch.Tensor | None = None,
        ngram: NGram | None = None,
    ):
        super().__init__()
        if objective not in OBJECTIVES:
            raise UserError(f"unknown objective {objective!r}; choose from {', '.join(OBJECTIVES)}")
        if (objective == "token") != (network.vocab_size is not None):
            raise UserError("the token objective needs a network with a vocab_size, the pixel objective one without")
        if network.vocab_size not in (None, palette.vocab_size):
            raise UserError(f"the network has {network.vocab_size} tokens, the palette {palette.vocab_size}")
        if bool(network.ngram) != (ngram is not None) or (ngram is not None and network.ngram > ngram.order):
            raise UserError(
                f"a network for n-grams of order {network.ngram} (0 = none) does not go with an n-gram model of order "
                f"{ngram.order if ngram else 0}"
            )
        self.network, self.palette, self.layout, self.objective, self.ngram = network, palette, layout, objective, ngram
        if log_unigram is None:
            log_unigram = torch.full((palette.vocab_size,), 1 / palette.vocab_size).log()
        self.register_buffer("log_unigram", log_unigram, persistent=False)
        colors = palette.colors
        self.register_buffer(
            "keys", torch.cat([colors, colors.square().sum(-1, keepdim=True) / -2], -1), persistent=False
        )
        self.ngram_candidates = NGRAM_CANDIDATES
        self.joined = ngram is not None  # while False, the network is trained and used alone
        self.compiled = False

    def compile(self) -> None:
        """torch.compile the network's blocks and the chain of operations on every logit of the training loss."""
        self.compiled = True
        compile_blocks(self.network, dynamic=True)

    # ------------------------------------------------------------------------------------------------------------------
    # Noising, likelihood, posterior

    def add_noise(self, tokens, t, noise, cond_mask=None):
        """Tokens (B, N) to noisy colors z (B, N, 3) at times t (B,); positions in cond_mask (B, N) stay clean."""
        x = self.palette.colors[tokens]
        t = t[:, None, None]
        z = t * x + (1 - t) * noise
        return z if cond_mask is None else torch.where(cond_mask[..., None], x, z)

    def log_likelihood(self, z: torch.Tensor, t: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """log p(z | token) up to a constant: noisy colors z (..., 3) at times t (...) to (..., V), in float32.

        -|z - t c|^2 / (2 (1-t)^2) without its |z|^2 term, in a form that stays finite at t = 0: an inner product of (z, t)
        and (c, -|c|^2 / 2). `bias` (V,) is added.
        """
        t = t.float().clamp(max=1 / (1 + MIN_SIGMA))[..., None]
        query = torch.cat([z.float(), t], dim=-1) * (t / (1 - t).square())
        with torch.autocast(z.device.type, enabled=False):  # differences of large numbers: bf16 would lose them
            return F.linear(query, self.keys, bias)

    def observe(self, z, t, mask, cond_mask=None, fold=None, candidates=None) -> Observation:
        """Likelihoods, n-gram contexts and mean embeddings of z (B, N, 3) at times t (B,); fold (B,) and candidates as in NGram."""
        t = t[:, None].expand(mask.shape)
        if cond_mask is not None:  # what is given clean counts as seen at almost no noise
            t = torch.where(cond_mask, 1 / (1 + self.palette.spacing / 8), t)
        observation = Observation(z, t)
        if self.objective == "pixel":
            return observation
        dtype = autocast_dtype(z.device)
        if not self.joined and self.palette.vocab_size <= DENSE_VOCAB:
            observation.soft = self._unigram_embedding(z, t, dtype)
            return observation
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            seen = self.likelihoods(z, t)
            if self.joined:
                observation.contexts = tuple(self.ngram.contexts(
                    seen, mask, fold, self.network.ngram, candidates or self.ngram_candidates, NGRAM_SEGMENT, dtype
                ))  # fmt: skip
            contexts = (unigram_context(seen, self.log_unigram), *observation.contexts)
            posteriors = [context.posterior(seen) for context in contexts]
        observation.soft = torch.cat([self._mean_embedding(posterior) for posterior in posteriors], dim=-1)
        return observation

    def likelihoods(self, z, t):
        """What `NGram.contexts` reads: log-likelihoods (B, N, V), or with a vocabulary above DENSE_VOCAB the likeliest tokens
        (B, N, K), their log-likelihoods (B, N, K), and the log of the unigram-weighted likelihood of all others (B, N).

        Candidates are found by lattice arithmetic around z / t. The others' total is the likelihood of all tokens, a sum of
        products over the channels, less the candidates' part, times their mean unigram probability: exact where color and
        frequency have nothing to do with each other.
        """
        if self.palette.vocab_size <= DENSE_VOCAB:
            return self.log_likelihood(z, t)
        t = t.float().clamp(1e-4, 1 / (1 + MIN_SIGMA))[..., None]
        y, precision = z.float() / t, (t / (1 - t)).square() / 2
        ids, exists = self.palette.around(y)
        distance = (self.palette.colors[ids] - y[..., None, :]).square().sum(-1)
        log_likelihood = torch.where(exists, -distance * precision, -torch.inf)
        _, top = (log_likelihood + self.log_unigram[ids]).topk(min(SPARSE_CANDIDATES, ids.shape[-1]), dim=-1)
        ids, exists = ids.gather(-1, top), exists.gather(-1, top)
        log_likelihood = log_likelihood.gather(-1, top).clamp_min(-1e4)
        levels = torch.linspace(-1, 1, self.palette.levels, device=z.device)
        whole = self.palette.total((-(y[..., None] - levels).square() * precision[..., None]).exp())
        others = (whole - log_likelihood.exp().sum(-1)).clamp_min(1e-30) / (self.palette.vocab_size - exists.sum(-1))
        unseen = (1 - (self.log_unigram[ids].exp() * exists).sum(-1)).clamp_min(1e-9)
        return ids, log_likelihood, others.log() + unseen.log()

    def _unigram_embedding(self, z, t, dtype) -> torch.Tensor:
        """Mean embeddings (B, N, D) under the posterior of each color by itself."""
        found, size = [], rows_at_once(self.palette.vocab_size, z.device)
        for each_z, each_t in zip(z.flatten(0, 1).split(size), t.flatten().split(size)):
            with torch.no_grad():
                posterior = self.log_likelihood(each_z, each_t, self.log_unigram).softmax(-1).to(dtype)
            found.append(posterior @ self.network.embedding)
        return torch.cat(found).view(*t.shape, -1)

    def _mean_embedding(self, posterior) -> torch.Tensor:
        """sum_v q_v E_v (B, N, D) of a posterior q: (B, N, V), or ids and q (B, N, K) and the rest's q (B, N)."""
        if torch.is_tensor(posterior):
            return posterior @ self.network.embedding
        ids, q, rest = posterior
        mean = F.embedding_bag(
            ids.flatten(0, 1), self.network.embedding, per_sample_weights=q.flatten(0, 1), mode="sum"
        )
        return mean.view(*ids.shape[:2], -1) + rest[..., None] * self.network.rest_embedding

    # ------------------------------------------------------------------------------------------------------------------
    # Forward pass

    def run_network(self, observation: Observation, t, mask, cond_mask=None, prev=None) -> torch.Tensor:
        """The network's output (B, N, D or 3) in reading order."""
        o, to_patches = observation, self.layout.to_patches
        optional = (None if each is None else to_patches(each) for each in (cond_mask, o.soft, prev))
        out = self.network(to_patches(o.z), t, to_patches(mask), *optional)
        return self.layout.from_patches(out)

    def logits(self, features, z, t, contexts: tuple[Context, ...] = (), temperature: float = 1.0) -> torch.Tensor:
        """Logits (..., V) float32 of features (..., D): context logits, divided by the temperature, plus log-likelihood.

        The context logits are the network's own plus the n-grams' context log-probabilities, each under its gate: a
        log-linear pool whose weights follow from the features. `cross_entropy` makes the same of them in training.
        """
        logits = self.network.head(features).float()
        if contexts:
            gates = self.network.gate(features).float().unsqueeze(-1)
            logits = logits * gates[..., 0, :]
            for order, context in enumerate(contexts, 1):
                logits = torch.addcmul(logits, gates[..., order, :], context.full(self.log_unigram))
        if temperature != 1:
            logits = logits / temperature
        return self.log_likelihood(z, t).add_(logits)

    def forward(
        self,
        tokens,
        mask,
        t,
        noise,
        cond_mask=None,
        fold=None,
        self_condition: bool = False,
        predicted=None,
        count=None,
    ):
        """Training loss of a batch.

        tokens (B, N), mask (B, N), t (B,), noise (B, N, 3), cond_mask (B, N) or None, fold (B,) or None (see NGram);
        `self_condition` makes a first pass whose result the second is given. `predicted` (R,): which of the B * N positions
        enter the loss (default: those in the mask and not given). Returns the sum of their losses divided by `count`
        (default: their mean), and the mean of each sample (B,), detached, for the adaptive noise schedule (NaN where
        nothing is predicted).
        """
        if predicted is None:
            predicted = (mask if cond_mask is None else mask & ~cond_mask).flatten().nonzero()[:, 0]
        weight = 1 / (count or max(1, len(predicted)))
        z = self.add_noise(tokens, t, noise, cond_mask)
        observation = self.observe(z, t, mask, cond_mask, fold)
        prev = None
        if self_condition:
            with torch.no_grad():
                prev = self._condition(observation, t, mask, cond_mask)
        out = self.run_network(observation, t, mask, cond_mask, prev)
        if self.objective == "token":
            loss, each = self._token_loss(out, observation, tokens, predicted, weight)
        else:
            each = self._velocity_loss(out, z, t, tokens, noise).flatten()[predicted]
            loss = each.sum() * weight
        sample = predicted // tokens.shape[1]
        sums = torch.zeros(2, len(tokens), device=tokens.device)
        sums.index_add_(1, sample, torch.stack([each.detach(), torch.ones_like(each)]))
        return loss, sums[0] / sums[1]

    def _token_loss(self, out, observation: Observation, tokens, predicted, weight: float):
        """The cross-entropies at the flat positions `predicted` (R,) added up with a weight, and each one's (R,)."""
        features, z, t = (each.flatten(0, 1)[predicted] for each in (out, observation.z, observation.t))
        contexts = [context.flatten(0, 1) for context in observation.contexts]
        return cross_entropy(
            features, self.network.head.weight, self.network.head.bias, tokens.flatten()[predicted],
            weight, autocast_dtype(z.device),
            prior=lambda rows: self.log_likelihood(z[rows], t[rows]),
            gates=self.network.gate(features) if contexts else None,
            contexts=lambda rows: [context[predicted[rows]].full(self.log_unigram) for context in contexts],
            compiled=self.compiled,
        )  # fmt: skip

    def _logits(self, out, observation: Observation, temperature: float = 1.0):
        """Rows, and their logits (r, V), of all B * N positions in a row, some at a time."""
        features, z, t = (each.flatten(0, 1) for each in (out, observation.z, observation.t))
        contexts = [context.flatten(0, 1) for context in observation.contexts]
        for rows in row_slices(len(features), self.palette.vocab_size, out.device):
            parts = tuple(context[rows] for context in contexts)
            yield rows, self.logits(features[rows], z[rows], t[rows], parts, temperature)

    def _velocity_loss(self, out, z, t, tokens, noise):
        """JiT's v-loss (B, N): squared error of (x - z) / (1 - t), averaged over the channels."""
        x, t = self.palette.colors[tokens], t[:, None, None]
        if self.network.predict_clean:
            return ((out.float() - x) / (1 - t).clamp_min(V_LOSS_EPS)).square().mean(-1)
        return (out.float() - (x - noise)).square().mean(-1)

    # ------------------------------------------------------------------------------------------------------------------
    # Prediction

    def denoise(self, z, t, mask, cond_mask=None, tokens=None, prev=None, temperature=1.0) -> Prediction:
        """Estimate the clean colors and their tokens from z (B, N, 3) at time t (B,), in one forward pass.

        mask (B, N), cond_mask (B, N) or None (there z is clean). With the truth `tokens` (B, N) the prediction carries their
        negative log-likelihood.
        """
        observation = self.observe(z, t, mask, cond_mask, candidates=None if cond_mask is None else GAP_CANDIDATES)
        return self.predict(observation, t, mask, cond_mask, tokens, prev, temperature)

    def recover(self, z, t, mask, cond_mask=None, tokens=None, passes: int = 1, callback=None) -> Prediction:
        """The likeliest token of each position: `passes` forward passes at the same noise, each given the one before.

        `callback(x_pred)` is called after each pass.
        """
        candidates = None if cond_mask is None else GAP_CANDIDATES
        observation, found = self.observe(z, t, mask, cond_mask, candidates=candidates), None
        for _ in range(passes):
            found = self.predict(observation, t, mask, cond_mask, tokens, found and found.prev)
            if callback:
                callback(found.x_pred)
        return found

    def predict(
        self, observation: Observation, t, mask, cond_mask=None, tokens=None, prev=None, temperature=1.0, guide=None
    ) -> Prediction:
        """`denoise`, from what was observed. `guide`: another, weaker network's Guide, which the logits move away from."""
        out = self.run_network(observation, t, mask, cond_mask, prev)
        z = observation.z
        if self.objective == "pixel":
            x = out.float() if self.network.predict_clean else z + (1 - t)[:, None, None] * out.float()
            x = x if cond_mask is None else torch.where(cond_mask[..., None], z, x)
            x = x * mask[..., None]
            return Prediction(x, self.palette.decode(x) * mask, None, x, mask.float())
        embedding, count = self.network.embedding.detach(), mask.numel()
        x, nll, confidence = (torch.empty(count, *shape, device=z.device) for shape in ((3,), (), ()))
        found = torch.empty(count, dtype=torch.long, device=z.device)
        prev = torch.empty(count, embedding.shape[1], dtype=autocast_dtype(z.device), device=z.device)
        weaker = guide.logits(self, t, mask, cond_mask, observation, temperature) if guide else None
        for rows, logits in self._logits(out, observation, temperature):
            if guide:
                logits = logits + guide.weight * (logits - next(weaker))
            if tokens is not None:
                nll[rows] = F.cross_entropy(logits, tokens.flatten()[rows], reduction="none")
            found[rows] = logits.argmax(-1)
            p = logits.softmax(-1)
            confidence[rows] = p.gather(-1, found[rows, None])[:, 0]
            prev[rows] = p @ embedding
            with torch.autocast(z.device.type, enabled=False):
                x[rows] = p @ self.palette.colors
        x, found, prev, nll, confidence = (
            each.view(*mask.shape, *each.shape[1:]) for each in (x, found, prev, nll, confidence)
        )
        if cond_mask is not None:
            x = torch.where(cond_mask[..., None], z, x)
            found = torch.where(cond_mask, self.palette.decode(z), found)
        scored = mask if cond_mask is None else mask & ~cond_mask
        nll = None if tokens is None else nll * scored
        return Prediction(x * mask[..., None], found * mask, nll, prev, confidence * mask)

    def _condition(self, observation: Observation, t, mask, cond_mask) -> torch.Tensor:
        """`prev` of a first pass, without the rest of a Prediction."""
        if self.objective == "pixel":
            return self.predict(observation, t, mask, cond_mask).prev
        out, embedding = self.run_network(observation, t, mask, cond_mask), self.network.embedding
        prev = torch.empty(mask.numel(), embedding.shape[1], dtype=autocast_dtype(mask.device), device=mask.device)
        for rows, logits in self._logits(out, observation):
            prev[rows] = logits.softmax(-1) @ embedding
        return prev.view(*mask.shape, -1)

    # ------------------------------------------------------------------------------------------------------------------
    # Sampling

    @torch.no_grad()
    def sample(
        self,
        mask,
        grid,
        sampler="euler",
        z=None,
        cond_mask=None,
        cond_tokens=None,
        temperature=1.0,
        generator=None,
        callback=None,
        churn=0.0,
        noise_scale=1.0,
        guide=None,
    ) -> torch.Tensor:
        """Tokens (B, N) by integrating from grid[0] to grid[-1], then one last pass that decides.

        mask (B, N); `grid` (S,) ascending times; z (B, N, 3) the noisy colors at grid[0], or None for pure noise. Positions in
        cond_mask (B, N) hold cond_tokens (B, N) throughout. The samplers of kit/sampling.py draw a text; `posterior`, and any
        of them at temperature 0, stays at grid[0] and takes each position's likeliest
        token after S passes (`recover`). `callback(x_pred)` is called after each forward pass. `churn` and `noise_scale` are
        those of kit/sampling.py, `guide` a Guide.
        """
        if sampler not in SAMPLERS:
            raise UserError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
        device, sigmas = mask.device, sigma_of(grid).tolist()
        clean = None if cond_mask is None else self.palette.colors[cond_tokens]

        def noise():
            return torch.randn(*mask.shape, 3, device=device, generator=generator)

        def clamp(z):
            return z if clean is None else torch.where(cond_mask[..., None], clean, z)

        if z is None:
            z = noise() * (1 - grid[0])
        if sampler == "posterior" or temperature == 0:
            times = torch.full((len(mask),), float(grid[0]), device=device)
            found = self.recover(clamp(z), times, mask, cond_mask, passes=len(grid), callback=callback)
        else:
            found = None

            def denoise(y, sigma):
                nonlocal found
                t = torch.full((len(mask),), 1 / (1 + sigma), device=device)
                observation = self.observe(clamp(y / (1 + sigma)), t, mask, cond_mask)
                prev = found and found.prev
                found = self.predict(observation, t, mask, cond_mask, None, prev, temperature, guide)
                if callback:
                    callback(found.x_pred)
                return found.x_pred

            y = integrate(denoise, z / grid[0].clamp_min(1e-6), sigmas, sampler, noise, churn, noise_scale)
            denoise(y, sigmas[-1])
        return found.tokens if cond_mask is None else torch.where(cond_mask, cond_tokens, found.tokens)


class Guide:
    """Autoguidance (Karras et al., arXiv 2406.02507): a worse version of a network, such as an early checkpoint or itself without
    its n-grams, from whose logits those of the better one are moved away, `weight` times their difference.

    It sees the same noisy colors, but no earlier pass. Raises UserError if it has another palette.
    """

    def __init__(self, diffusion: Diffusion, weight: float):
        self.diffusion, self.weight = diffusion, weight

    @classmethod
    def without_ngrams(cls, diffusion: Diffusion, weight: float) -> "Guide":
        """The network itself, its n-grams left out. Raises UserError where it has none."""
        if not diffusion.joined:
            raise UserError("a network without n-grams is guided by a weaker checkpoint only: name one")
        weaker = copy.copy(diffusion)  # the same weights
        weaker.joined = False
        return cls(weaker, weight)

    def logits(self, guided: Diffusion, t, mask, cond_mask, observation: Observation, temperature: float):
        """Logits (r, V) of the same rows, one slice after another, that `guided` computes from what it observed."""
        own = self.diffusion
        if not torch.equal(own.palette.slots, guided.palette.slots):
            raise UserError("the guide has another palette than the network it is to guide")
        observation = own.observe(observation.z, t, mask, cond_mask)
        out = own.run_network(observation, t, mask, cond_mask)
        for _, logits in own._logits(out, observation, temperature):
            yield logits
