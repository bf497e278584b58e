import pytest
import torch

from kit import muon
from kit.muon import Muon, orthogonalize


def test_matrices_of_a_shape_together_go_the_way_torch_takes_them_one_by_one():
    torch.manual_seed(0)
    shapes = [(48, 16), (16, 16), (16, 64)] * 2
    first = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    one = torch.optim.Muon(first, 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    other = Muon(second, 0.01, 0.1)
    for _ in range(4):
        for p, q in zip(first, second):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q in zip(first, second):
        assert torch.allclose(p, q, atol=2e-3) and not torch.equal(p, torch.zeros_like(p))
        assert torch.allclose(one.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])
    other.load_state_dict(one.state_dict())  # a run begun with torch's goes on


@pytest.mark.parametrize("fast, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_singular_values_end_near_one_in_the_precision_that_the_processor_is_fast_in(monkeypatch, fast, dtype):
    monkeypatch.setattr(muon, "multiplies_bf16", lambda: fast)
    for shape in ((3, 20, 50), (3, 50, 20)):
        found = orthogonalize(torch.randn(shape))
        values = torch.linalg.svdvals(found.float())
        assert found.dtype == dtype
        assert values.min() > 0.4 and values.max() < 1.4
