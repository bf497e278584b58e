"""The two networks: a VAE between chunks of tokens and vectors, and a transformer that denoises sequences of vectors.

Leaf to root: attention with grouped keys and values, SwiGLU, block, TokComVAE, DenoisedModel.
"""

import torch
import torch.nn.functional as F
from torch import nn

from tokcom.config import ModelArgs
from tokcom.ngram_decoder import NGramDecoder

REACH = 2  # neighbors on either side in the local layer

# ----------------------------------------------------------------------------------------------------------------------
# Leaves


def rope_angles(length: int, head_dim: int) -> torch.Tensor:
    """Rotation angles (length, head_dim / 2) of rotary position embedding (arXiv 2104.09864)."""
    return torch.arange(length)[:, None] * 10000.0 ** -(torch.arange(head_dim // 2) / (head_dim // 2))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, H, N, head_dim) turned by angles (N, head_dim / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    """RMS normalization in the dtype of its input, under autocast too, which would make it float32 on a GPU."""

    def __init__(self, dim: int, affine: bool = True):
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, (self.dim,), None if self.weight is None else self.weight.to(x.dtype), eps=1e-6)


class Attention(nn.Module):
    """Attention of `heads` query heads over fewer key and value heads (arXiv 2305.13245), queries and keys normalized."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        dim, self.heads, self.kv_heads = args.hidden_size, args.num_attention_heads, args.num_key_value_heads
        self.head_dim = dim // self.heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * self.kv_heads * self.head_dim, bias=False)
        self.q_norm = RMSNorm(self.head_dim)
        self.k_norm = RMSNorm(self.head_dim)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: torch.Tensor, rope: tuple, attend: torch.Tensor | None) -> torch.Tensor:
        B, N, D = x.shape
        q = self.q(x).view(B, N, self.heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(x).view(B, N, 2, self.kv_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), *rope).to(v.dtype), rotate(self.k_norm(k), *rope).to(v.dtype)
        if x.is_cuda:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, enable_gqa=True)
        else:  # on CPUs the bf16 kernel's backward is several times slower than the fp32 one
            with torch.autocast("cpu", enabled=False):
                q, k, v = q.float(), k.float(), v.float()
                x = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, enable_gqa=True)
        return self.out(x.transpose(1, 2).reshape(B, N, D))


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202)."""

    def __init__(self, dim_in: int, hidden: int, dim_out: int):
        super().__init__()
        self.gate_up = nn.Linear(dim_in, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim_out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm transformer block. With `conditioned`, adaLN-zero: shift, scale and gate come from a vector c (B, D)."""

    def __init__(self, args: ModelArgs, conditioned: bool):
        super().__init__()
        self.norm1 = RMSNorm(args.hidden_size, affine=not conditioned)
        self.attention = Attention(args)
        self.norm2 = RMSNorm(args.hidden_size, affine=not conditioned)
        self.mlp = SwiGLU(args.hidden_size, args.intermediate_size, args.hidden_size)
        self.modulation = nn.Linear(args.hidden_size, 6 * args.hidden_size) if conditioned else None

    def forward(self, x, rope, attend=None, c=None):
        if self.modulation is None:
            x = x + self.attention(self.norm1(x), rope, attend)
            return x + self.mlp(self.norm2(x))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, rope, attend)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def initialize(model: nn.Module) -> None:
    """Xavier uniform for matrices, zero for biases and modulations, so that every conditioned block starts as the identity."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block) and module.modulation is not None:
            nn.init.zeros_(module.modulation.weight)


# ----------------------------------------------------------------------------------------------------------------------
# Chunks <-> vectors


class TokComVAE(nn.Module):
    """A chunk of `chunk_size` tokens <-> one vector of `latent_dim` numbers.

    The vector is a linear map of the encoder's output at all positions; the decoder reads one mask token for each position,
    to which that position's own projection of the vector is added, and predicts all tokens at once. (The reference recipe
    takes the encoder's last position, and its decoder reads the vector as one more token: then everything must pass through
    attention weights, which few layers cannot do.) `latent_mean` and `latent_std` (latent_dim,) are those of the posterior means over
    the training set, once `set_statistics` was called; `encode` and `decode` work in units of them.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        dim, K = args.hidden_size, args.chunk_size
        encoder_layers = args.vae_num_hidden_layers // 2
        decoder_layers = args.vae_num_hidden_layers - encoder_layers
        self.embed = nn.Embedding(args.vocab_size + 2, dim)  # the vocabulary, the mask token, the dropped token
        self.encoder = nn.ModuleList(Block(args, conditioned=False) for _ in range(encoder_layers))
        self.encoder_norm = RMSNorm(dim)
        self.to_latent = nn.Linear(K * dim, 2 * args.latent_dim)
        self.from_latent = nn.Linear(args.latent_dim, K * dim)
        self.decoder = nn.ModuleList(Block(args, conditioned=False) for _ in range(decoder_layers))
        self.decoder_norm = RMSNorm(dim)
        self.head = nn.Linear(dim, args.vocab_size)
        self.register_buffer("latent_mean", torch.zeros(args.latent_dim))
        self.register_buffer("latent_std", torch.ones(args.latent_dim))
        angles = rope_angles(K, dim // args.num_attention_heads)
        self.register_buffer("rope_cos", angles.cos(), persistent=False)
        self.register_buffer("rope_sin", angles.sin(), persistent=False)
        initialize(self)
        nn.init.normal_(self.embed.weight, std=dim**-0.5)

    def posterior(
        self, tokens: torch.Tensor, mask: torch.Tensor, dropout: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance (N, latent_dim), float32, of chunks (N, K) with mask (N, K) True = real token.

        `dropout`: probability with which a token is hidden from the encoder.
        """
        if dropout:
            tokens = tokens.masked_fill(
                torch.rand(tokens.shape, device=tokens.device) < dropout, self.args.vocab_size + 1
            )
        x = self.embed(tokens) * mask.unsqueeze(-1)
        attend = (mask | ~mask.any(1, keepdim=True))[
            :, None, None
        ]  # a chunk of padding attends to itself, not to nothing
        for block in self.encoder:
            x = block(x, (self.rope_cos, self.rope_sin), attend)
        x = self.encoder_norm(x) * mask.unsqueeze(-1)
        mean, log_variance = self.to_latent(x.flatten(1)).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-12, 4)

    def hidden(self, latents: torch.Tensor) -> torch.Tensor:
        """The decoder's hidden states, input of its head, (N, K, D), of vectors (N, latent_dim) as the encoder gives them, not normalized."""
        projected = self.from_latent(latents).view(len(latents), self.args.chunk_size, -1)
        x = self.embed.weight[self.args.mask_token_id] + projected
        for block in self.decoder:
            x = block(x, (self.rope_cos, self.rope_sin))
        return self.decoder_norm(x)

    def decode_raw(self, latents: torch.Tensor) -> torch.Tensor:
        """Logits (N, K, vocab_size) of vectors (N, latent_dim) as the encoder gives them, not normalized."""
        return self.head(self.hidden(latents))

    def encode(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Normalized vectors (B, C, latent_dim) of sequences (B, C K): zero mean, unit spread over the training set."""
        shape = -1, self.args.chunk_size
        mean, _ = self.posterior(tokens.reshape(shape), mask.reshape(shape))
        return ((mean - self.latent_mean) / self.latent_std).view(len(tokens), -1, self.args.latent_dim)

    def decode_hidden(self, latents: torch.Tensor) -> torch.Tensor:
        """The decoder's hidden states (B, C, K, D), input of its head, of normalized vectors (B, C, latent_dim), each by itself."""
        raw = latents.flatten(0, 1) * self.latent_std + self.latent_mean
        return self.hidden(raw).view(*latents.shape[:2], self.args.chunk_size, -1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Logits (B, C K, vocab_size) of normalized vectors (B, C, latent_dim)."""
        return self.head(self.decode_hidden(latents).flatten(1, 2))

    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Set what `encode` and `decode` normalize by."""
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)


# ----------------------------------------------------------------------------------------------------------------------
# Sequences of vectors


class NoiseEmbedding(nn.Module):
    """log sigma (B,) to a vector (B, D)."""

    def __init__(self, dim: int, features: int = 128):
        super().__init__()
        self.register_buffer("frequencies", torch.empty(features // 2), persistent=False)
        self.reset_frequencies()
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def reset_frequencies(self) -> None:
        """Set what no file holds, after a loader that leaves it undefined."""
        self.frequencies.copy_(torch.logspace(-1, 1, len(self.frequencies)))

    def forward(self, log_sigma: torch.Tensor) -> torch.Tensor:
        angle = log_sigma.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


def neighborhood(x: torch.Tensor) -> torch.Tensor:
    """Each of the positions of x (B, N, D) with the `REACH` before and after it, zeros beyond the ends: (B, N, (2 REACH + 1) D)."""
    padded = F.pad(x, (0, 0, REACH, REACH))
    return torch.cat([padded[:, i : i + x.shape[1]] for i in range(2 * REACH + 1)], dim=-1)


class DenoisedModel(nn.Module):
    """An hourglass over a noisy sequence of vectors: tokens, chunks, tokens.

    In: the noisy vectors, an earlier estimate, and for each token the mean embedding of what the decoder finds in its noisy
    vector alone. A local layer mixes each token with its neighbors, the trunk attends over whole chunks. Out: an addition to
    the decoder's hidden states, the sum of `output` (of the trunk), `local_output` (of the local layer) and `joint_output` (of
    both), while `scale`, a function of the noise level, weighs the decoder's own; and features, from which `mean`, together
    with `embed_mean` of the predicted tokens' embeddings, makes the conditional mean of the vector. All of these start at zero,
    so that an untrained network is the decoder alone. With n-grams (`args.ngram`, their tables in `ngrams`), tokens also enter with their mean
    embeddings under these, whose log-probabilities join the logits under `gate`.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.args = args
        dim, K = args.hidden_size, args.chunk_size
        self.ngrams: NGramDecoder | None = None  # counted or loaded by whoever builds the network
        self.embed = nn.Linear(2 * args.latent_dim + 1, dim)  # noisy vector, earlier estimate, "is given clean"
        self.local = SwiGLU((2 * REACH + 1) * dim, dim, dim)
        self.chunk_proj = nn.Linear(K * dim, dim)
        self.noise_embed = NoiseEmbedding(dim)
        self.blocks = nn.ModuleList(Block(args, conditioned=True) for _ in range(args.num_hidden_layers))
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, K * dim)
        self.local_norm = RMSNorm(dim)
        self.local_output = nn.Linear(dim, dim)
        self.joint_norm = RMSNorm(dim)
        self.joint_output = SwiGLU(dim, dim, dim)
        if args.ngram:
            self.ngram_proj = nn.Linear((args.ngram - 1) * dim, dim, bias=False)
            self.gate = nn.Linear(dim, args.ngram - 1)  # of the log-probabilities of each order of n-grams
        self.scale = nn.Linear(dim, 1)
        self.mean = nn.Linear(dim, args.latent_dim)
        self.embed_mean = nn.Linear(K * dim, args.latent_dim)
        angles = rope_angles(args.max_chunks, dim // args.num_attention_heads)
        self.register_buffer("rope_cos", angles.cos(), persistent=False)
        self.register_buffer("rope_sin", angles.sin(), persistent=False)
        initialize(self)
        for head in (self.output, self.local_output, self.joint_output.down, self.scale, self.mean, self.embed_mean):
            nn.init.zeros_(head.weight)
        if args.ngram:
            nn.init.zeros_(self.ngram_proj.weight)
            nn.init.zeros_(self.gate.weight)
            self.gate.bias.data[-1] = 0.5  # when n-grams join, what the network has learned of contexts counts as much

    def decoder_scale(self, log_sigma: torch.Tensor) -> torch.Tensor:
        """Weight (B, 1) of the decoder's own hidden states at noise log_sigma (B,)."""
        return self.scale(self.noise_embed(log_sigma)).exp()

    def forward(self, x, embeddings, log_sigma, mask, cond_mask, x_prev, by_ngrams=None) -> tuple:
        """Features (B, C, D), an addition to the decoder's hidden states (B, C, K, D), and gates (B, C, K, orders) or None.

        x and x_prev (B, C, latent_dim) of unit spread, token embeddings (B, C, K, D), log_sigma (B,), mask and cond_mask (B, C);
        by_ngrams: the embeddings under each order of the n-grams, (B, C, K, orders D).
        """
        if by_ngrams is not None:
            embeddings = embeddings + self.ngram_proj(by_ngrams)
        tokens = (embeddings * mask[:, :, None, None]).flatten(1, 2)
        tokens = tokens + self.local(neighborhood(tokens))
        chunks = tokens.view(*x.shape[:2], -1)
        x = self.embed(torch.cat([x, x_prev, cond_mask.unsqueeze(-1).to(x.dtype)], dim=-1)) + self.chunk_proj(chunks)
        c = self.noise_embed(log_sigma)
        rope = self.rope_cos[: x.shape[1]], self.rope_sin[: x.shape[1]]
        attend = mask[:, None, None]
        for block in self.blocks:
            x = block(x, rope, attend, c)
        x = self.norm(x)
        tokens, output = tokens.view(embeddings.shape), self.output(x).view(embeddings.shape)
        joint = self.joint_norm(tokens + output)
        added = output + self.local_output(self.local_norm(tokens)) + self.joint_output(joint)
        return x, added, self.gate(joint) if by_ngrams is not None else None
