"""Models go to a folder and come back the same; a name without a network is told in a line."""

import json

import pytest
import torch
from huggingface_hub import constants

from kit.errors import UserError
from pretrained import Pretrained, load_pretrained
from tests.runs import same_tensors
from tokcom import pretrained as tokcom
from vit_cifar10 import pretrained as vit


def saved(model, folder, report=None) -> str:
    """Write a folder, see that it holds what one should; returns the card."""
    model.save_pretrained(folder, model_card_kwargs={"report": report})
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    json.loads((folder / "config.json").read_text())
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_root_system_comes_back_bit_for_bit(trained, data, tmp_path):
    loaded = load_pretrained(trained / "best_model.pth", torch.device("cpu"))
    report = {"at_nearest_50": {"nearest": 0.5, "model": 0.9}, "likelihood": {"bits_per_byte": 1.5}, "num_tokens": 1000}
    card = saved(loaded, tmp_path / "model", report)
    assert "library_name: tokencolor" in card and "90.0% are recovered" in card and "| lr | 0.003 |" in card
    assert str(data) not in card + (tmp_path / "model" / "config.json").read_text()
    again = Pretrained.from_pretrained(tmp_path / "model")
    assert same_tensors(again.diffusion.network.state_dict(), loaded.diffusion.network.state_dict())
    assert again.fingerprint == loaded.fingerprint and again.step == loaded.step
    tokens = torch.arange(32)[None] % 7
    mask, t = torch.ones_like(tokens, dtype=torch.bool), torch.tensor([0.8])
    z = loaded.diffusion.add_noise(tokens, t, torch.randn(1, 32, 3, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        first, second = (model.diffusion.denoise(z, t, mask, tokens=tokens).nll for model in (loaded, again))
    assert torch.equal(first, second)
    assert Pretrained.from_pretrained(trained / "best_model.pth").step == loaded.step


def test_tokcom_and_vit_come_back_bit_for_bit(tokcom_checkpoint, vit_checkpoint, tmp_path):
    cpu = torch.device("cpu")
    for kind, path, parts in (
        (tokcom.Pretrained, tokcom_checkpoint, ("vae", "denoiser")), (vit.Pretrained, vit_checkpoint, ("model",)),
    ):  # fmt: skip
        loaded = kind.load(path, cpu)
        card = saved(loaded, tmp_path / path.stem)
        assert "Not measured yet" in card
        written = (tmp_path / path.stem / "model.safetensors").read_bytes()[:100_000].decode("latin-1")
        assert str(path.parent) not in card + written + (tmp_path / path.stem / "config.json").read_text()
        again = kind.from_pretrained(tmp_path / path.stem)
        for part in parts:
            assert same_tensors(getattr(again, part).state_dict(), getattr(loaded, part).state_dict())


def test_a_name_without_a_network_is_told_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no model at someone/something") as error:
        Pretrained.from_pretrained("someone/something", cache_dir=tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint at"):
        Pretrained.from_pretrained(tmp_path / "empty")


def test_what_is_pushed_is_what_is_saved(monkeypatch, trained):
    """`push_to_hub` hands the same three files to the hub's client."""
    from huggingface_hub import HfApi, hub_mixin

    seen = {}

    class Hub(HfApi):
        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path, repo_id, **_):
            seen[repo_id] = sorted(p.name for p in folder_path.iterdir())
            return "https://hub/commit"

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    loaded = load_pretrained(trained / "best_model.pth", torch.device("cpu"))
    assert loaded.push_to_hub("me/model") == "https://hub/commit"
    assert seen == {"me/model": ["README.md", "config.json", "model.safetensors"]}
