"""The vision transformer (Dosovitskiy et al., arXiv 2010.11929). Leaf to root: attention, block, network.

Parameters carry timm's names, so that the weights of its plain ViTs load as they are.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head self-attention over N tokens."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values, (3, B, heads, N, D / heads), of tokens (B, N, D)."""
        B, N, D = x.shape
        return self.qkv(x).view(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x)
        # on CPUs bf16 matrix products beat the fused kernel
        x = F.scaled_dot_product_attention(q, k, v) if x.is_cuda else attend(q, k).to(v.dtype) @ v
        x = self.proj(x.transpose(1, 2).flatten(2))
        return F.dropout(x, self.dropout, self.training)

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Attention of each token to each other, (B, heads, N, N) float32, rows summing to 1; for pictures."""
        q, k, _ = self.project(x)
        return attend(q, k).float()


def attend(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / √d): (B, heads, N, d) twice -> (B, heads, N, N)."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.fc2(F.gelu(self.fc1(x))), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm residual block. `drop_path` is the chance that a sample skips a branch (stochastic depth)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, dropout: float, drop_path: float):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._drop(self.attn(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, branch: torch.Tensor) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * keep / (1 - self.drop_path)


class PatchEmbed(nn.Module):
    """Images (B, 3, H, W) -> one token per patch (B, N, D): a convolution whose stride is its kernel, as one product."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        p = self.patch_size
        B, C, H, W = images.shape
        patches = images.view(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * p * p)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """Images (B, 3, img_size, img_size), normalized -> logits (B, num_classes).

    `pool`: "cls" reads the answer off a class token, "mean" off the average of all patches.
    """

    def __init__(
        self, img_size: int = 224, patch_size: int = 16, num_classes: int = 10, embed_dim: int = 384, depth: int = 6,
        num_heads: int = 6, pool: str = "cls", mlp_ratio: float = 4.0, dropout: float = 0.0, drop_path: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.grid = img_size // patch_size
        self.prefix = 1 if pool == "cls" else 0  # tokens before the patches
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if self.prefix else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + self.grid**2, embed_dim))
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes)
        self.dropout = dropout
        self.apply(_init)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.prefix:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images)
        if self.prefix:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = F.dropout(x + self.pos_embed, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.prefix else x.mean(1))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def resize_pos_embed(pos_embed: torch.Tensor, grid: int, prefix: int) -> torch.Tensor:
    """Position embeddings (1, prefix + g^2, D) for a grid of another side: (1, prefix + grid^2, D), bicubic."""
    kept, patches = pos_embed[:, :prefix], pos_embed[:, prefix:]
    side = int(patches.shape[1] ** 0.5)
    patches = patches.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat([kept.float(), patches.flatten(2).transpose(1, 2)], dim=1)
