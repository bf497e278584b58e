"""Where a preset computes: parameters and FLOPs per token of trunk, token path and vocabulary. Writes results/model_sizes.json.

    python -m recipes.model_sizes          # counts on shapes alone; no GPU, no memory

One forward pass over full 64x64 images, multiplications and additions counted apart, as torch's FlopCounterMode does.
"""

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from kit.arguments import program
from kit.errors import run
from kit.runlog import write_json
from model import SIZES, build_jit_model

TOKEN_PATH = ("color_embed", "soft_proj", "prev_proj", "token_in", "token_out")


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--vocab_size", type=int, default=4096, help="tokens of the palette (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results/model_sizes.json"), help="JSON file to write")
    args = parser.parse_args()
    rows = [measure(size, args.vocab_size) for size in SIZES]
    write_json(args.output, {"vocab_size": args.vocab_size, "img_size": 64, "patch_size": 4, "rows": rows})
    print("| preset | parameters | MFLOPs a token | trunk | token path | vocabulary |\n|---|---|---|---|---|---|")
    for row in rows:
        parts = " | ".join(
            f"{row[part] / row['flops_per_token']:.0%}" for part in ("trunk", "token_path", "vocabulary")
        )
        print(
            f"| JiT-{row['size']}/4 | {row['parameters'] / 1e6:.1f} M | {row['flops_per_token'] / 1e6:.1f} | {parts} |"
        )


def measure(size: str, vocab_size: int) -> dict:
    """FLOPs per token of one preset, by part; the vocabulary's are the head and the mean embedding of the posterior."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = build_jit_model(f"JiT-{size}/4", 64, vocab_size=vocab_size)
        z, t, mask = torch.zeros(1, 4096, 3), torch.zeros(1), torch.ones(1, 4096, dtype=torch.bool)
        soft = torch.zeros(1, 4096, vocab_size) @ model.embedding
        model.head(model(z, t, mask, soft=soft, prev=soft))
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    path = sum(counts.get(f"JiT.{name}", 0) for name in TOKEN_PATH)
    path += sum(flops for name, flops in counts.items() if name.rsplit(".", 1)[0] in ("JiT.token_in", "JiT.token_out"))
    total = counter.get_total_flops()
    vocabulary = 4 * 4096 * vocab_size * model.token_dim
    parts = {"trunk": total - path - vocabulary, "token_path": path, "vocabulary": vocabulary}
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "size": size,
        "parameters": parameters,
        "flops_per_token": total / 4096,
        **{k: v / 4096 for k, v in parts.items()},
    }


if __name__ == "__main__":
    run(main)
