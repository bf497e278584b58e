"""Cross-entropy of a softmax over a vocabulary, and its gradient, without the logits of all positions at once.

A batch of long texts has hundreds of millions of logits. As a chain of operations each of them goes through memory some
twenty times. Their gradient is known as soon as they are, so both are computed here in one go, for as many rows at a time
as fit a core's cache or a fixed part of a GPU's memory.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

LOGITS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 27}
LEAST_ROWS = 32


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Rows whose logits are computed together: also of a large vocabulary enough for a product of matrices."""
    return max(LEAST_ROWS, LOGITS_AT_ONCE.get(device.type, LOGITS_AT_ONCE["cuda"]) // vocab_size)


def row_slices(count: int, vocab_size: int, device: torch.device) -> list[slice]:
    """`count` rows in parts whose logits are computed together.

    What is kept of them belongs into tensors made before: small ones made in between would lie in the memory that the logits
    leave, and the next logits would not fit there.
    """
    size = rows_at_once(vocab_size, device)
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def cross_entropy(
    features: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | float,
    dtype: torch.dtype = torch.float32,
    prior: Callable[[slice], torch.Tensor] | None = None,
    gates: torch.Tensor | None = None,
    contexts: Callable[[slice], list[torch.Tensor]] | None = None,
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_i weight_i nll_i, with a gradient, and nll (R,) in nats, without.

    The logits of row i are features (R, D) @ matrix (V, D).T + bias (V,), with the products in `dtype`. `prior(rows)` gives
    float32 logits (r, V) to add to those of a slice of rows. With `gates` (R, 1 + n) they are the first gate times that
    product, plus the other gates times the n logits (r, V) that `contexts(rows)` lists. target (R,) long; weight (R,) float32,
    or one number for all. `compiled`: what happens to every logit in between the products is one compiled kernel.
    """
    elementwise = _compiled_elementwise() if compiled else _elementwise
    return _CrossEntropy.apply(features, matrix, bias, gates, target, weight, dtype, prior, contexts, elementwise)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, matrix, bias, gates, target, weight, dtype, prior, contexts, elementwise):
        wanted = zip((features, matrix, bias, gates), ctx.needs_input_grad)
        gradients = [torch.zeros_like(each) if needed else None for each, needed in wanted]
        nll = torch.empty(len(features), device=features.device)
        weights = weight if torch.is_tensor(weight) else None  # a number is multiplied in at the end
        with torch.autocast(features.device.type, enabled=False):
            W, b = matrix.to(dtype), bias.to(dtype)
            for rows in row_slices(len(features), len(matrix), features.device):
                nll[rows] = _rows(
                    features[rows].to(dtype), W, b, target[rows, None], None if weights is None else weights[rows, None],
                    prior and prior(rows), None if gates is None else gates[rows].float(), contexts(rows) if contexts else [],
                    gradients, rows, elementwise,
                )  # fmt: skip
        ctx.scale = 1 if weights is not None else weight
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(nll)
        return (nll * weight).sum(), nll

    @staticmethod
    def backward(ctx, d_loss, _):
        d_loss = d_loss * ctx.scale
        return *(None if part is None else part * d_loss for part in ctx.saved_tensors), *[None] * 6


def _rows(f, W, b, target, weight, prior, gates, contexts, gradients, rows, elementwise):
    """nll (r,) of some rows; adds to the gradients."""
    d_features, d_matrix, d_bias, d_gates = gradients
    wanted = any(gradient is not None for gradient in gradients)
    nll, d, by_gate = elementwise(F.linear(f, W, b), target, weight, prior, gates, contexts, wanted)
    if not wanted:
        return nll
    if d_gates is not None:
        d_gates[rows] = by_gate.to(d_gates.dtype)
    if d_bias is not None:
        d_bias += d.sum(0, dtype=d_bias.dtype)
    if d_features is not None:
        d_features[rows] = d @ W
    if d_matrix is not None:
        d_matrix += d.T @ f
    return nll


def _elementwise(own, target, weight, prior, gates, contexts, wanted: bool):
    """What happens to every logit: nll (r,) and, if wanted, the gradients of `own` (r, V) and of the gates (r, 1 + n)."""
    if gates is None:
        logits = own.float() if prior is None else prior.add_(own)
    else:
        logits = gates[:, :1] * own.float() if prior is None else prior.addcmul_(gates[:, :1], own.float())
        for order, context in enumerate(contexts, 1):
            logits.addcmul_(gates[:, order : order + 1], context)
    logits = logits.log_softmax(-1)
    nll = -logits.gather(1, target)[:, 0]
    if not wanted:
        return nll, None, None
    d = logits.exp_().scatter_add_(1, target, logits.new_full((1, 1), -1.0).expand_as(target))
    if weight is not None:
        d.mul_(weight)
    if gates is None:
        return nll, d.to(own.dtype), None
    by_gate = torch.stack([(d * each).sum(-1) for each in (own, *contexts)], -1)
    return nll, d.mul_(gates[:, :1]).to(own.dtype), by_gate


@cache
def _compiled_elementwise():
    return torch.compile(_elementwise, dynamic=True)
