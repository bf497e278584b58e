"""A released file is small, and works where the checkpoint did."""

import json

import evaluate
import release
import train
from tests.conftest import TINY


def test_a_released_checkpoint_recovers_as_many_tokens(trained, data, call, refused, tmp_path):
    best, small = trained / "best_model.pth", tmp_path / "small.safetensors"
    assert call(release, "--checkpoint", best, "--output_file", small) == 0
    assert small.stat().st_size < 0.4 * best.stat().st_size
    options = (
        "--data_path", data, "--num_samples", 40, "--t", 0.75, "--passes", 1, "--likelihood_levels", 4, "--num_inference_steps", 2,
        "--device", "cpu", "--precision", "fp32",
    )  # fmt: skip
    found = []
    for path in (best, small):
        assert call(evaluate, "--checkpoint", path, "--output_dir", tmp_path / path.stem, *options) == 0
        found.append(json.loads((tmp_path / path.stem / "report.json").read_text()))
    whole, rounded = found
    assert abs(whole["recovery"][0]["model"] - rounded["recovery"][0]["model"]) < 0.02
    assert abs(whole["likelihood"]["nll"] - rounded["likelihood"]["nll"]) < 0.02
    assert str(data) not in small.read_bytes()[:100_000].decode("latin-1")

    assert "--overwrite" in refused(release, "--checkpoint", best, "--output_file", small)
    assert "more than --max_megabytes 1" in refused(
        release, "--checkpoint", best, "--output_file", tmp_path / "b.safetensors", "--max_megabytes", 1
    )
    assert sorted(p.name for p in tmp_path.glob("*.safetensors*")) == ["small.safetensors"]
    assert "has to end with" in refused(release, "--checkpoint", best, "--output_file", tmp_path / "b.bin")
    told = refused(train, "--data_path", data, *TINY, "--resume", small, "--output_dir", tmp_path / "on")
    assert "it lacks optimizer_state_dict" in told or "holds no optimizer" in told
