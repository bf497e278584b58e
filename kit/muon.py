"""Muon with the matrices of a shape in one batch: a GPU then gets a hundred launches a step instead of a thousand."""

from collections import defaultdict

import torch
from torch import nn

from kit.device import multiplies_bf16

OPTIMIZERS = ("adamw", "muon")
COEFFICIENTS, ROUNDS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7  # of the Newton-Schulz iteration


@torch.no_grad()
def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """(n, rows, columns) to the nearest semi-orthogonal matrices, roughly: singular values end near 1. In bfloat16, which is precise enough, but on processors that do not multiply in it."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if matrices.is_cpu and not multiplies_bf16() else matrices.bfloat16()
    x = x if wide else x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(EPS)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Muon):
    """torch.optim.Muon (Jordan et al. 2024, Nesterov momentum, steps of AdamW's size) to rounding, and with its state."""

    def __init__(self, matrices, lr: float, weight_decay: float):
        super().__init__(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
                    if not self.state[matrix]:
                        self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
            for shape, matrices in alike.items():
                gradients = [matrix.grad for matrix in matrices]
                momentum = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
                torch._foreach_lerp_(momentum, gradients, 1 - group["momentum"])
                updates = torch.stack(torch._foreach_lerp(gradients, momentum, group["momentum"]))
                steps = orthogonalize(updates).to(matrices[0].dtype).mul_(group["lr"] * 0.2 * max(shape) ** 0.5)
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(matrices, steps.unbind())


def build_optimizers(
    name: str,
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    ends: list[nn.Parameter] | None = None,
) -> list[torch.optim.Optimizer]:
    """Those of what is trained of a model: AdamW; or "muon", for the matrices but the `ends`, and AdamW for the rest.

    `ends`: what stands beside input and output (default: embeddings and output layer of a transformers model).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if ends is None:
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        ends = [layer.weight for layer in layers if layer is not None]
    hidden = []
    if name == "muon":
        hidden = [p for p in trained if p.ndim == 2 and all(p is not end for end in ends)]
    rest = [p for p in trained if all(p is not h for h in hidden)]
    adamw = torch.optim.AdamW(rest, lr, betas=betas, weight_decay=weight_decay, fused=True)
    return [Muon(hidden, lr, weight_decay), adamw] if hidden else [adamw]
