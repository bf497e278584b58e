"""What a step of JiT-B/4 asks of a GPU, counted without one: results/gpu_dry_run.json.

    python -m recipes.gpu_dry_run

Runs train.py on a pretended device (tests/gpu_dry_run) with 32 texts of 2,176 tokens, half of a 64x64 picture, of a vocabulary
of 4,096: launches, bytes read or written by all kernels, and the places where the host waits for the device.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from kit.runlog import write_json

ROOT = Path(__file__).parent.parent
TOKENS, VOCAB = 2176, 4096
OPTIMIZER = (
    "train.py",
    "kit/ema.py",
)  # lines of clipping, AdamW and averaging, whose traffic does not depend on the batch


def main() -> None:
    result = {"model": "JiT-B/4", "img_size": 64, "batch_size": 32, "tokens_per_text": TOKENS, "vocab_size": VOCAB}
    with tempfile.TemporaryDirectory() as folder:
        lengths = ["--min_tokens", str(TOKENS), "--max_tokens", str(TOKENS), "--vocab_size", str(VOCAB)]
        run([sys.executable, "build_pretrain_data.py", "--output_dir", f"{folder}/data", *lengths])
        for name, probability in (("plain", 0), ("self_conditioned", 1)):
            command = [sys.executable, "-m", "tests.gpu_dry_run.run", "train", "--data_path", f"{folder}/data"]
            command += [
                "--model",
                "JiT-B/4",
                "--img_size",
                "64",
                "--batch_size",
                "32",
                "--max_steps",
                "3",
                "--ngram",
                "0",
            ]
            command += ["--val_interval", "100", "--val_samples", "8", "--log_interval", "100", "--device", "cuda"]
            command += ["--self_cond_prob", str(probability), "--output_dir", f"{folder}/{name}"]
            step = json.loads(run(command).splitlines()[-1])["steps"][-1]
            rest = sum(count for line, count in step["lines"].items() if line.startswith(OPTIMIZER))
            result[name] = {
                "launches": step["launches"],
                "waits": step["waits"],
                "gigabytes": round(step["bytes"] / 1e9, 1),
                "gigabytes_forward_backward": round((step["bytes"] - rest) / 1e9, 1),
            }
    write_json(ROOT / "results" / "gpu_dry_run.json", result)
    print(json.dumps(result, indent=2))


def run(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
