"""The JiT network: a plain vision transformer that maps a noisy picture to what is needed to clean it.

Trunk as in JiT (Li & He, arXiv 2511.13720): bottleneck patch embedding, 2-D RoPE beside a position embedding, RMSNorm on
queries and keys, SwiGLU, adaLN-zero with gates, SDPA, dropout in the middle half. Around it stand two thin per-pixel
parts, because here one patch holds p^2 tokens and one vector cannot speak for all of them: an embedding of every pixel
before the trunk, and a decoder after it that adds the pixel's own features back to what the trunk says of its patch.
"""

import re

import torch
import torch.nn.functional as F
from torch import nn

from kit.checkpoint import load_checkpoint, load_weights
from kit.errors import UserError

# ----------------------------------------------------------------------------------------------------------------------
# Leaves


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class RMSNorm(nn.Module):
    """nn.RMSNorm whose weight follows the dtype of its input, which keeps the fused kernel under autocast."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), eps=1e-6)


class TimeEmbedding(nn.Module):
    """Time t in [0, 1] (B,) to a vector (B, D): sines of log(t / (1-t)) = -log sigma, so that small noise is resolved."""

    def __init__(self, dim: int, features: int = 128):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-1, 1, features // 2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angle = torch.logit(t.float(), eps=1e-4)[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class SwiGLU(nn.Module):
    def __init__(self, dim: int, ratio: float = 4.0):
        super().__init__()
        hidden = int(dim * ratio * 2 / 3 + 7) // 8 * 8
        self.gate_up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def rope_angles(grid: int, head_dim: int) -> torch.Tensor:
    """Rotation angles (grid^2, head_dim / 2): half of the pairs turn with the row, half with the column."""
    frequencies = 10000.0 ** -(torch.arange(head_dim // 4) / (head_dim // 4))
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([row.reshape(-1, 1) * frequencies, column.reshape(-1, 1) * frequencies], dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, H, L, head_dim) by cos, sin (L, head_dim / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


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
        q, k = rotate(self.q_norm(q), *rope).to(v.dtype), rotate(self.k_norm(k), *rope).to(v.dtype)
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
        self.norm1 = nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attention = Attention(dim, num_heads)
        self.norm2 = nn.RMSNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = SwiGLU(dim)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(dim, 6 * dim)

    def forward(self, x, c, rope, attend):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        x = x + gate1.unsqueeze(1) * self.dropout(self.attention(modulate(self.norm1(x), shift1, scale1), rope, attend))
        return x + gate2.unsqueeze(1) * self.dropout(self.mlp(modulate(self.norm2(x), shift2, scale2)))


# ----------------------------------------------------------------------------------------------------------------------
# The network

PICTURE_CHANNELS = 7  # noisy picture (3), earlier estimate of the clean one (3), "this pixel is given clean" (1)


class JiT(nn.Module):
    """Noisy picture in; out come per-pixel features for a palette softmax, or a picture.

    `vocab_size`: an int puts a head on the pixel features that turns them into logits (`head`, applied by the caller to
    the pixels it needs); None makes the network return pictures. `predict_clean` says what those pictures are, the
    clean image or the velocity; it changes nothing in here.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        bottleneck_dim: int = 128,
        pixel_dim: int = 64,
        vocab_size: int | None = None,
        predict_clean: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        if img_size < patch_size or img_size % patch_size:
            raise UserError(f"--img_size {img_size} is not a multiple of the patch size {patch_size}")
        self.img_size, self.patch_size, self.pixel_dim = img_size, patch_size, pixel_dim
        self.vocab_size, self.predict_clean = vocab_size, predict_clean
        grid, area = img_size // patch_size, patch_size**2
        self.pixel_embed = nn.Linear(PICTURE_CHANNELS, pixel_dim)
        self.patch_embed = nn.Sequential(
            nn.Linear(area * pixel_dim, bottleneck_dim), nn.Linear(bottleneck_dim, embed_dim)
        )
        self.pos_embed = nn.Parameter(torch.empty(1, grid * grid, embed_dim))
        angles = rope_angles(grid, embed_dim // num_heads)
        self.register_buffer("rope_cos", angles.cos(), persistent=False)
        self.register_buffer("rope_sin", angles.sin(), persistent=False)
        self.time_embed = TimeEmbedding(embed_dim)
        middle = range(depth // 4, depth - depth // 4)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, dropout if i in middle else 0.0) for i in range(depth))
        self.norm = RMSNorm(embed_dim)
        self.unpatch = nn.Linear(embed_dim, area * pixel_dim)
        self.pixel_norm = RMSNorm(pixel_dim)
        self.pixel_mlp = SwiGLU(pixel_dim)
        self.final_norm = RMSNorm(pixel_dim)
        self.head = nn.Linear(pixel_dim, vocab_size or 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier uniform as in JiT (std 0.02 starves the narrow layers), zero where the network starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pixel_embed.weight, std=0.5)  # seven inputs of unit size: 0.02 would drown them
        nn.init.normal_(self.pos_embed, std=0.02)
        for module in [*(block.modulation for block in self.blocks), self.head]:
            nn.init.zeros_(module.weight)

    def patchify(self, image: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to (B, L, p^2, C), patches and pixels in them row by row."""
        B, H, W, C = image.shape
        p = self.patch_size
        return image.view(B, H // p, p, W // p, p, C).transpose(2, 3).reshape(B, -1, p * p, C)

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, L, p^2, C) back to (B, H, W, C); patches that are missing at the end become zeros."""
        p, grid = self.patch_size, self.img_size // self.patch_size
        patches = F.pad(patches, (0, 0, 0, 0, 0, grid * grid - patches.shape[1]))
        return (
            patches.view(-1, grid, grid, p, p, patches.shape[-1])
            .transpose(2, 3)
            .reshape(-1, grid * p, grid * p, patches.shape[-1])
        )

    def forward(self, z, t, mask, known=None, x_prev=None, num_patches=None):
        """One look at a batch of noisy pictures.

        z (B, 3, H, W) noisy, t (B,) with 1 = clean, mask (B, H, W) True = real token, known (B, H, W) True = given clean,
        x_prev (B, 3, H, W) an earlier estimate of the clean picture, `num_patches` how many leading patches to compute
        (None = all; the rest must be padding). Returns features (B, H, W, pixel_dim), or a picture (B, 3, H, W).
        """
        if z.shape[-2:] != (self.img_size, self.img_size):
            raise UserError(f"this model reads {self.img_size}x{self.img_size} images, not {z.shape[-1]}x{z.shape[-2]}")
        known = torch.zeros_like(mask) if known is None else known
        x_prev = torch.zeros_like(z) if x_prev is None else x_prev
        picture = torch.cat([z, x_prev, known.unsqueeze(1).to(z.dtype)], dim=1).permute(0, 2, 3, 1)
        real = self.patchify(mask.unsqueeze(-1))[:, :num_patches]
        pixels = self.pixel_embed(self.patchify(picture)[:, :num_patches]) * real
        B, L = pixels.shape[:2]
        x = self.patch_embed(pixels.flatten(2)) + self.pos_embed[:, :L]
        c = F.silu(self.time_embed(t))
        rope = self.rope_cos[:L], self.rope_sin[:L]
        attend = real.any(dim=2).view(B, 1, 1, L)
        for block in self.blocks:
            x = block(x, c, rope, attend)
        pixels = pixels + self.unpatch(self.norm(x)).view(B, L, -1, self.pixel_dim)
        pixels = pixels + self.pixel_mlp(self.pixel_norm(pixels))
        features = self.unpatchify(self.final_norm(pixels))
        return features if self.vocab_size else self.head(features).permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------------------------------------------
# Presets

SIZES = {
    "Ti": dict(embed_dim=256, depth=6, num_heads=4, pixel_dim=64),
    "S": dict(embed_dim=384, depth=12, num_heads=6, pixel_dim=128),
    "B": dict(embed_dim=768, depth=12, num_heads=12, pixel_dim=256),
    "L": dict(embed_dim=1024, depth=24, num_heads=16, pixel_dim=384),
    "H": dict(embed_dim=1280, depth=32, num_heads=16, pixel_dim=512, bottleneck_dim=256),
}


def build_jit_model(
    model_name: str = "JiT-B/4",
    img_size: int = 64,
    predict_clean: bool = True,
    vocab_size: int | None = None,
    dropout: float = 0.0,
) -> JiT:
    """A JiT with random weights. `model_name`: JiT-{Ti,S,B,L,H}/{patch size}, for any patch size that divides img_size.

    `vocab_size` chooses the palette-softmax head; None the picture head. Raises UserError for an unknown name.
    """
    match = re.fullmatch(r"JiT-([A-Za-z]+)/([1-9]\d*)", model_name)
    if not match or match[1] not in SIZES:
        raise UserError(
            f"unknown model {model_name!r}: JiT-SIZE/PATCH with SIZE one of {', '.join(SIZES)}, as in JiT-B/4"
        )
    settings = dict(patch_size=int(match[2]), vocab_size=vocab_size, predict_clean=predict_clean, dropout=dropout)
    return JiT(img_size, **SIZES[match[1]], **settings)


def model_from_checkpoint(checkpoint: dict, origin: str, use_ema: bool = True) -> JiT:
    """The network of a loaded checkpoint of `train.py`, with its averaged weights if `use_ema`."""
    config = checkpoint["config"]
    vocab_size = config["vocab_size"] if config["objective"] == "token" else None
    model = build_jit_model(config["model"], config["img_size"], config["predict_clean"], vocab_size)
    load_weights(model, checkpoint["ema_state_dict" if use_ema else "model_state_dict"], origin)
    return model


def load_pretrained_jit(model_name: str, pretrained_path: str, img_size: int = 64, use_ema: bool = True) -> JiT:
    """A JiT with the weights of a checkpoint.

    Raises UserError if the file is missing or damaged, or holds another model or image size.
    """
    checkpoint = load_checkpoint(pretrained_path, ("model_state_dict", "ema_state_dict", "config", "palette"))
    config = checkpoint["config"]
    for name, wanted in (("model", model_name), ("img_size", img_size)):
        if config[name] != wanted:
            raise UserError(f"{pretrained_path} holds --{name} {config[name]}, not {wanted}")
    return model_from_checkpoint(checkpoint, pretrained_path, use_ema)
