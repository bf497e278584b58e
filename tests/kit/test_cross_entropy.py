"""The cross-entropy that keeps no logits is the one that does, loss and gradients."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from kit import cross_entropy as module
from kit.cross_entropy import cross_entropy

R, D, V = 50, 8, 30


def given(gated, with_prior):
    generator = torch.Generator().manual_seed(0)

    def make(*shape):
        return torch.randn(shape, generator=generator)

    leaves = {"features": make(R, D), "matrix": make(V, D), "bias": make(V)}
    if gated:
        leaves["gates"] = make(R, 3)
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    constants = {"prior": make(R, V) if with_prior else None, "contexts": [make(R, V), make(R, V)]}
    return leaves, constants, torch.randint(V, (R,), generator=generator), torch.rand(R, generator=generator)


def plain(leaves, constants, target, weight):
    logits = leaves["features"] @ leaves["matrix"].T + leaves["bias"]
    if "gates" in leaves:
        gates = leaves["gates"]
        logits = gates[:, :1] * logits + sum(gates[:, i : i + 1] * c for i, c in enumerate(constants["contexts"], 1))
    logits = logits if constants["prior"] is None else logits + constants["prior"]
    nll = F.cross_entropy(logits, target, reduction="none")
    return (nll * weight).sum(), nll


NO_COMPILER = not shutil.which("g++") and not shutil.which("clang++")


@pytest.mark.parametrize("at_once", [1 << 18, 7 * V])
@pytest.mark.parametrize(
    "gated, with_prior, compiled",
    [
        (False, False, False),
        (False, True, False),
        (True, True, False),
        pytest.param(
            True, True, True, marks=[pytest.mark.slow, pytest.mark.skipif(NO_COMPILER, reason="needs a C++ compiler")]
        ),
    ],
)
def test_loss_and_gradients_are_those_of_all_logits(gated, with_prior, compiled, at_once, monkeypatch):
    monkeypatch.setitem(module.LOGITS_AT_ONCE, "cpu", at_once)
    leaves, constants, target, weight = given(gated, with_prior)
    expected, expected_nll = plain(leaves, constants, target, weight)
    gradients = torch.autograd.grad(3 * expected, list(leaves.values()))
    prior, contexts = constants["prior"], constants["contexts"]
    loss, nll = cross_entropy(
        *(leaves[name] for name in ("features", "matrix", "bias")), target, weight,
        prior=None if prior is None else lambda rows: prior[rows].clone(),
        gates=leaves.get("gates"), contexts=(lambda rows: [c[rows] for c in contexts]) if gated else None,
        compiled=compiled,
    )  # fmt: skip
    assert torch.allclose(loss, expected, rtol=1e-5) and torch.allclose(nll, expected_nll, atol=1e-5)
    assert not nll.requires_grad
    for name, found, wanted in zip(leaves, torch.autograd.grad(3 * loss, list(leaves.values())), gradients):
        assert torch.allclose(found, wanted, atol=1e-5), name


def test_bf16_products_stay_near_and_frozen_parts_get_no_gradient():
    leaves, constants, target, weight = given(False, False)
    leaves["matrix"].requires_grad_(False)
    expected, _ = plain(leaves, constants, target, weight)
    loss, _ = cross_entropy(leaves["features"], leaves["matrix"], leaves["bias"], target, weight, dtype=torch.bfloat16)
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    loss.backward()
    assert leaves["matrix"].grad is None and leaves["features"].grad is not None
