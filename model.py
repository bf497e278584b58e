"""The JiT network: a plain vision transformer on patches, and around it a path at the resolution of tokens.

Trunk as in JiT (Li & He, arXiv 2511.13720): bottleneck patch embedding, RoPE beside a position embedding, RMSNorm on
queries and keys, SwiGLU, adaLN-zero with gates, SDPA, dropout in the middle half. It is what makes 4,096 tokens affordable,
but one of its vectors stands for p^2 tokens, and what a token owes to its neighbors is lost on the way. So every token
enters with the mean embedding of its own posterior, and residual blocks over a window of three tokens stand before and
after the trunk (an hourglass: tokens, patches, tokens).
"""

import re

import torch
import torch.nn.functional as F
from torch import nn

from kit.checkpoint import build_fitting, load_checkpoint, load_weights
from kit.errors import UserError

# ----------------------------------------------------------------------------------------------------------------------
# Leaves


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


class RMSNorm(nn.Module):
    """nn.RMSNorm in the dtype of its input, under autocast too, which would make it float32 on a GPU."""

    def __init__(self, dim: int, affine: bool = True):
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):  # the meta device has none
            return F.rms_norm(x, (self.dim,), None if self.weight is None else self.weight.to(x.dtype), eps=1e-6)


class TimeEmbedding(nn.Module):
    """Time t in [0, 1] (B,) to a vector (B, D): sines of log(t / (1-t)) = -log sigma, so that small noise is resolved."""

    def __init__(self, dim: int, features: int = 128):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 1, features // 2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angle = torch.logit(t.float(), eps=1e-4)[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class GatedSiLU(torch.autograd.Function):
    """silu(a) * b of the halves a and b of x (..., 2 H). Their gradients are written side by side: torch would concatenate them."""

    @staticmethod
    def forward(ctx, x):
        a, b = x.chunk(2, dim=-1)
        gate = F.silu(a)
        ctx.save_for_backward(x, gate)
        return gate * b

    @staticmethod
    def backward(ctx, gradient):
        x, gate = ctx.saved_tensors
        a, b = x.chunk(2, dim=-1)
        result = torch.empty_like(x)
        d_a, d_b = result.chunk(2, dim=-1)
        torch.mul(gradient, gate, out=d_b)
        torch.ops.aten.silu_backward.grad_input(gradient * b, a, grad_input=d_a)
        return result


def gated_silu(x: torch.Tensor) -> torch.Tensor:
    """silu(a) * b of x = (a, b). A compiler fuses the plain form by itself, and breaks off at the other one's backward."""
    if not torch.compiler.is_compiling():
        return GatedSiLU.apply(x)
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


class SwiGLU(nn.Module):
    def __init__(self, dim: int, ratio: float = 4.0):
        super().__init__()
        hidden = int(dim * ratio * 2 / 3 + 7) // 8 * 8
        self.gate_up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(gated_silu(self.gate_up(x)))


def rope_angles(grid: int, head_dim: int, rope: str = "grid") -> torch.Tensor:
    """Rotation angles (grid^2, head_dim / 2): half of the pairs turn with the row, half with the column; or all with the place in the order."""
    if rope == "order":
        return torch.arange(grid**2)[:, None] * 10000.0 ** -(torch.arange(head_dim // 2) / (head_dim // 2))
    frequencies = 10000.0 ** -(torch.arange(head_dim // 4) / (head_dim // 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([row.reshape(-1, 1) * frequencies, column.reshape(-1, 1) * frequencies], dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, H, L, head_dim) by cos, sin (L, head_dim / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos)], dim=-1)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(dim // num_heads)
        self.k_norm = RMSNorm(dim // num_heads)
        self.out = nn.Linear(dim, dim)

    def forward(self, x, rope, attend):
        B, L, D = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope)
        if x.is_cuda:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        else:  # on CPUs the bf16 kernel's backward is five times slower than the fp32 one
            with torch.autocast("cpu", enabled=False):
                x = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=attend)
        return self.out(x.transpose(1, 2).reshape(B, L, D))


class Block(nn.Module):
    """Transformer block with adaLN-zero: shift, scale and gate of both branches come from the time."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.norm1 = RMSNorm(dim, affine=False)
        self.attention = Attention(dim, num_heads)
        self.norm2 = RMSNorm(dim, affine=False)
        self.mlp = SwiGLU(dim)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x, c, rope, attend):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        h = self.dropout(self.attention(modulate(self.norm1(x), shift1, scale1), rope, attend))
        x = torch.addcmul(x, gate1.unsqueeze(1), h)
        h = self.dropout(self.mlp(modulate(self.norm2(x), shift2, scale2)))
        return torch.addcmul(x, gate2.unsqueeze(1), h)


# ----------------------------------------------------------------------------------------------------------------------
# The network


class TokenBlock(nn.Module):
    """SwiGLU over each token and its two neighbors, with adaLN-zero; padding counts as zeros."""

    def __init__(self, dim: int, cond_dim: int, dropout: float):
        super().__init__()
        hidden = int(dim * 8 / 3 + 7) // 8 * 8
        self.norm = RMSNorm(dim, affine=False)
        self.gate_up = nn.Linear(3 * dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(cond_dim, 3 * dim)

    def forward(self, x, c, mask):
        """x (B, N, dim), c (B, cond_dim), mask (B, N, 1) of x's dtype."""
        shift, scale, gate = self.modulation(c).chunk(3, dim=-1)
        h = F.pad(modulate(self.norm(x), shift, scale) * mask, (0, 0, 1, 1))
        h = torch.cat([h[:, :-2], h[:, 1:-1], h[:, 2:]], dim=-1)
        h = self.down(gated_silu(self.gate_up(h)))
        return torch.addcmul(x, gate.unsqueeze(1), self.dropout(h))


class JiT(nn.Module):
    """Noisy colors in, features per token out, everything in patch order (B, N, ...), N a multiple of p^2.

    `vocab_size`: an int gives the network token embeddings, through which it reads posteriors (`embed`), and a head that
    turns features into logits (applied by the caller); None makes it return colors (B, N, 3), the clean ones or, without
    `predict_clean`, the velocity. `ngram`: the order of the n-gram model it is combined with (0 = none), whose
    posteriors it reads and whose log-probabilities it weighs (`gate`). Without `soft_input` it reads colors alone. `rope`: patches
    turn by their row and column ("grid", as in JiT), or by their place in reading order ("order").
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        bottleneck_dim: int = 128,
        token_dim: int = 64,
        token_depth: int = 2,
        vocab_size: int | None = None,
        predict_clean: bool = True,
        dropout: float = 0.0,
        ngram: int = 0,
        soft_input: bool = True,
        rope: str = "grid",
    ):
        super().__init__()
        if img_size < patch_size or img_size % patch_size:
            raise UserError(f"--img_size {img_size} is not a multiple of the patch size {patch_size}")
        self.img_size, self.patch_size, self.token_dim = img_size, patch_size, token_dim
        self.vocab_size, self.predict_clean, self.ngram, self.soft_input = vocab_size, predict_clean, ngram, soft_input
        grid, area = img_size // patch_size, patch_size**2
        # z (3), an earlier estimate of x where there is no vocabulary to embed it (3), "given clean" (1)
        self.color_embed = nn.Linear(7, token_dim)
        if vocab_size:
            self.embedding = nn.Parameter(torch.empty(vocab_size, token_dim))
            self.rest_embedding = nn.Parameter(torch.zeros(token_dim))
            self.soft_proj = nn.Linear(max(1, ngram) * token_dim, token_dim)
            self.prev_proj = nn.Linear(token_dim, token_dim, bias=False)  # zeros stand for no earlier pass
        if ngram:
            self.gate = nn.Linear(
                token_dim, ngram
            )  # of the network's own logits, and of each order of n-grams from 2 on
        half = dict(dim=token_dim, cond_dim=embed_dim, dropout=dropout)
        self.token_in = nn.ModuleList(TokenBlock(**half) for _ in range(token_depth))
        self.token_out = nn.ModuleList(TokenBlock(**half) for _ in range(token_depth))
        self.patch_embed = nn.Sequential(
            nn.Linear(area * token_dim, bottleneck_dim), nn.Linear(bottleneck_dim, embed_dim)
        )
        self.pos_embed = nn.Parameter(torch.empty(1, grid * grid, embed_dim))
        angles = rope_angles(grid, embed_dim // num_heads, rope)
        self.register_buffer("rope_cos", angles.cos(), persistent=False)
        self.register_buffer("rope_sin", angles.sin(), persistent=False)
        self.time_embed = TimeEmbedding(embed_dim)
        middle = range(depth // 4, depth - depth // 4)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, dropout if i in middle else 0.0) for i in range(depth))
        self.norm = RMSNorm(embed_dim)
        self.unpatch = nn.Linear(embed_dim, area * token_dim)
        self.final_norm = RMSNorm(token_dim)
        self.head = nn.Linear(token_dim, vocab_size or 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier uniform as in JiT (std 0.02 starves the narrow layers), zero where the network starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.color_embed.weight, std=0.5)  # seven inputs of unit size: 0.02 would drown them
        nn.init.normal_(self.pos_embed, std=0.02)
        zero = [block.modulation for block in [*self.blocks, *self.token_in, *self.token_out]]
        if self.vocab_size:
            nn.init.normal_(self.embedding)
            zero.append(self.prev_proj)
        if self.ngram:
            zero.append(self.gate)
        for module in [*zero, self.head]:
            nn.init.zeros_(module.weight)
        if self.ngram:  # where n-grams join, the network and the highest order begin with equal weight
            self.gate.bias.data[[0, -1]] = 0.5
            if self.vocab_size:
                nn.init.zeros_(self.soft_proj.weight[:, self.token_dim :])

    def ends(self) -> list[nn.Parameter]:
        """The matrices beside colors, tokens and logits, which Muon is not for."""
        found = [self.color_embed.weight, self.head.weight]
        found += [self.embedding] if self.vocab_size else []
        return found + ([self.gate.weight] if self.ngram else [])

    def flops(self, num_positions: int) -> float:
        """Floating-point operations of one forward pass over so many positions of a text, head included; a product and a sum are two."""
        patches = num_positions / self.patch_size**2

        def weights(*modules: nn.Module) -> int:
            return sum(m.weight.numel() for part in modules for m in part.modules() if isinstance(m, nn.Linear))

        modulations = [block.modulation for block in (*self.blocks, *self.token_in, *self.token_out)]
        each_text = weights(self.time_embed, *modulations)
        each_patch = weights(
            self.patch_embed, self.unpatch, *(part for b in self.blocks for part in (b.attention, b.mlp))
        )
        each_position = weights(self.color_embed, self.head, *self.token_in, *self.token_out)
        each_position -= weights(*modulations[len(self.blocks) :])
        if self.vocab_size:  # also the mean embedding, for which each posterior is multiplied with all embeddings
            each_position += self.embedding.numel() + weights(self.soft_proj)
        attention = 2 * len(self.blocks) * patches**2 * self.pos_embed.shape[-1]
        return 2 * (each_text + patches * each_patch + num_positions * each_position + attention)

    def training_flops(self, num_positions: int, self_cond_prob: float) -> float:
        """Of a step over one such text: forward, twice as much backward, and how often a first pass is made. N-grams are not counted."""
        return (3 + self_cond_prob) * self.flops(num_positions)

    @torch.no_grad()
    def start_from(self, state: dict, origin: str) -> None:
        """Take the weights of another run, or of a network alone or beside n-grams of a lower order, which longer ones then join.

        The longest n-grams take the weight of those that were longest. Raises UserError if the weights do not fit.
        """
        state = dict(state)
        if self.ngram and "soft_proj.weight" in state and len(state.get("gate.bias", ())) < self.ngram:
            narrow = state["soft_proj.weight"]
            state["soft_proj.weight"] = F.pad(narrow, (0, self.soft_proj.in_features - narrow.shape[1]))
            for name, fresh in (("gate.weight", self.gate.weight), ("gate.bias", self.gate.bias)):
                old = state.get(name)
                state[name] = fresh.clone() if old is None else torch.zeros_like(fresh)
                if old is not None:
                    state[name][: len(old) - 1], state[name][-1] = old[:-1], old[-1]
        load_weights(self, state, origin)

    def forward(self, z, t, mask, cond_mask=None, soft=None, prev=None):
        """One forward pass.

        z (B, N, 3) noisy colors, t (B,) with 1 = clean, mask (B, N) True = real token, cond_mask (B, N) True = given clean;
        soft (B, N, S * token_dim) mean embeddings of each token under the posteriors that stand at the input (unigrams, then
        each order of the n-gram model, or the first alone), prev (B, N, token_dim) the same under an earlier pass of this network (without a
        vocabulary its colors (B, N, 3)).
        Returns features (B, N, token_dim), or colors (B, N, 3).
        """
        B, N, _ = z.shape
        if N % self.patch_size**2 or self.img_size**2 < N:
            raise UserError(f"this model reads up to {self.img_size}x{self.img_size} tokens in whole patches, not {N}")
        given = torch.zeros_like(z[..., :1]) if cond_mask is None else cond_mask.unsqueeze(-1).to(z.dtype)
        x_prev = torch.zeros_like(z) if prev is None or self.vocab_size else prev
        x = self.color_embed(torch.cat([z, x_prev, given], dim=-1))
        if self.vocab_size:
            if self.soft_input:  # before n-grams join, their places are empty
                x = x + self.soft_proj(F.pad(soft, (0, self.soft_proj.in_features - soft.shape[-1])))
            if prev is not None:
                x = x + self.prev_proj(prev)
        c = F.silu(self.time_embed(t))
        real = mask.unsqueeze(-1).to(x.dtype)
        x = x * real
        for block in self.token_in:
            x = block(x, c, real)
        h = self.patch_embed((x * real).view(B, N // self.patch_size**2, -1))
        L = h.shape[1]
        h = h + self.pos_embed[:, :L].to(h.dtype)
        rope = self.rope_cos[:L].to(h.dtype), self.rope_sin[:L].to(h.dtype)
        attend = mask.view(B, L, -1).any(dim=2).view(B, 1, 1, L)
        for block in self.blocks:
            h = block(h, c, rope, attend)
        x = x + self.unpatch(self.norm(h)).view(B, N, -1)
        for block in self.token_out:
            x = block(x, c, real)
        features = self.final_norm(x)
        return features if self.vocab_size else self.head(features)


# ----------------------------------------------------------------------------------------------------------------------
# Presets

ROPES = ("grid", "order")
SIZE_FLAGS = ("token_dim", "token_depth", "soft_input", "rope")  # arguments of train.py that change a preset
SIZES = {
    "N": dict(embed_dim=128, depth=4, num_heads=4, token_dim=64),
    "Ti": dict(embed_dim=256, depth=6, num_heads=4, token_dim=128),
    "S": dict(embed_dim=384, depth=12, num_heads=6, token_dim=64),
    "B": dict(embed_dim=768, depth=12, num_heads=12, token_dim=128),
    "L": dict(embed_dim=1024, depth=24, num_heads=16, token_dim=256),
    "H": dict(embed_dim=1280, depth=32, num_heads=16, token_dim=384, bottleneck_dim=256),
}


def build_jit_model(
    model_name: str = "JiT-B/4",
    img_size: int = 64,
    predict_clean: bool = True,
    vocab_size: int | None = None,
    dropout: float = 0.0,
    ngram: int = 0,
    **sizes,
) -> JiT:
    """A JiT with random weights. `model_name`: JiT-{N,Ti,S,B,L,H}/{patch size}, for any patch size that divides img_size.

    `vocab_size` chooses the palette-softmax head; None the color head. `ngram`: the order of the n-gram model it is combined with. `sizes`
    replace those of the preset (token_dim, token_depth, ...). Raises UserError for an unknown name.
    """
    match = re.fullmatch(r"JiT-([A-Za-z]+)/([1-9]\d*)", model_name)
    if not match or match[1] not in SIZES:
        raise UserError(
            f"unknown model {model_name!r}: JiT-SIZE/PATCH with SIZE one of {', '.join(SIZES)}, as in JiT-B/4"
        )
    settings = dict(
        patch_size=int(match[2]), vocab_size=vocab_size, predict_clean=predict_clean, dropout=dropout, ngram=ngram
    )
    return JiT(img_size, **{**SIZES[match[1]], **sizes}, **settings)


def model_from_checkpoint(checkpoint: dict, origin: str, use_ema: bool = True) -> JiT:
    """The network of a loaded checkpoint of `train.py`, with its averaged weights if `use_ema`."""
    config = checkpoint["config"]
    vocab_size = config["vocab_size"] if config["objective"] == "token" else None
    if "ngram" not in config:
        raise UserError(f"{origin} is of an older network, without a path at the resolution of tokens: train it again")
    sizes = {name: config[name] for name in SIZE_FLAGS if config.get(name) is not None}

    def build() -> JiT:
        return build_jit_model(
            config["model"], config["img_size"], config["predict_clean"], vocab_size, ngram=config["ngram"], **sizes
        )

    return build_fitting(build, checkpoint["ema_state_dict" if use_ema else "model_state_dict"], origin)


def load_pretrained_jit(
    model_name: str = "JiT-B/4", pretrained_path: str | None = None, img_size: int = 64, use_ema: bool = True
) -> JiT:
    """A JiT with the weights of a checkpoint, or without a path as `build_jit_model` makes it.

    Raises UserError if the file is missing or damaged, or holds another model or image size.
    """
    if pretrained_path is None:
        return build_jit_model(model_name, img_size)
    checkpoint = load_checkpoint(pretrained_path, ("model_state_dict", "ema_state_dict", "config", "palette"))
    config = checkpoint["config"]
    for name, wanted in (("model", model_name), ("img_size", img_size)):
        if config[name] != wanted:
            raise UserError(f"{pretrained_path} holds --{name} {config[name]}, not {wanted}")
    return model_from_checkpoint(checkpoint, pretrained_path, use_ema)
