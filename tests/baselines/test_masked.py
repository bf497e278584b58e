"""The masked baseline learns, its bound is right where it is known, and what is given stays."""

import json
import math

import numpy as np
import pytest
import torch

from baselines import masked
from kit import device
from tests.runs import rows

SMALL = (
    "--hidden_size", "32", "--num_hidden_layers", "2", "--intermediate_size", "64", "--max_length", "64", "--batch_size", "8",
    "--lr", "5e-3", "--device", "cpu", "--precision", "fp32",
)  # fmt: skip


def test_it_learns_and_reports(data, call, tmp_path):
    assert (
        call(
            masked,
            "--data_path",
            data,
            "--output_dir",
            tmp_path,
            *SMALL,
            "--epochs",
            3,
            "--dropout",
            0.1,
            "--levels",
            4,
        )
        == 0
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nll"] < 0.8 * math.log(300) and report["levels"] == 4
    assert report["nll"] == pytest.approx(min(rows(tmp_path, "val_loss").values()), rel=0.1)
    assert report["bits_per_byte"] == pytest.approx(
        report["nll"] / math.log(2) * report["num_tokens"] / report["num_bytes"]
    )


class Fixed(torch.nn.Module):
    """A network whose answer does not depend on the text: each token's log-probability, and the mask's."""

    def __init__(self, log_probability):
        super().__init__()
        self.answer = torch.cat([log_probability, torch.tensor([50.0])])  # the mask would be the likeliest
        self.config = type(
            "Config", (), {"mask_token_id": len(log_probability), "vocab_size": len(log_probability) + 1}
        )

    def forward(self, input_ids, attention_mask):
        return type("Output", (), {"logits": self.answer.expand(*input_ids.shape, -1)})


@pytest.fixture
def source():
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    return p, [torch.multinomial(p, n, replacement=True) for n in (7, 30, 30, 1, 12) * 40]


def test_independent_tokens_cost_their_own_likelihood(source):
    p, texts = source
    exact = np.array([-p.log()[text].sum().item() for text in texts])
    found = masked.nats_per_sequence(Fixed(p.log()), texts, device.start("cpu", 0, "fp32"), levels=8)
    assert found.mean() == pytest.approx(exact.mean(), rel=0.02)
    only = [i for i, text in enumerate(texts) if len(text) == 1]
    assert np.allclose(found[only], exact[only], atol=1e-5)


def test_the_training_loss_has_the_bound_as_its_mean(source):
    p, texts = source
    runtime = device.start("cpu", 0, "fp32")
    losses = [masked.loss(Fixed(p.log()), texts, runtime).item() for _ in range(60)]
    exact = sum(-p.log()[text].sum().item() for text in texts) / sum(map(len, texts))
    assert np.mean(losses) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("passes", [1, 5])
def test_samples_follow_the_network_and_keep_what_is_given(passes):
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    tokens, given = torch.full((50, 40), 3), torch.arange(40).expand(50, 40) < 4
    found = masked.generate(Fixed(p.log()), tokens, given, passes, torch.Generator().manual_seed(0))
    assert (found[:, :4] == 3).all()
    share = torch.bincount(found[:, 4:].flatten(), minlength=4) / found[:, 4:].numel()
    assert torch.allclose(share, p, atol=0.04)


def test_what_cannot_be_used_is_refused(refused, data, tmp_path):
    given = ("--data_path", data, "--output_dir", tmp_path, *SMALL)
    assert "does not give" in refused(masked, *given, "--num_attention_heads", 5)
    assert "--dropout" in refused(masked, *given, "--dropout", 1)
    assert "--levels 0" in refused(masked, *given, "--levels", 0)
