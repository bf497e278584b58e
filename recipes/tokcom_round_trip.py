"""Whole texts, and strings of random tokens, through TokCom's vectors and back. Writes results/tokcom/round_trip.json.

python -m recipes.tokcom_round_trip --checkpoint checkpoints/tokcom_cpu/best_diffusion.pt --texts jane_eyre.txt honglou_meng.txt
"""

from pathlib import Path

import torch

from corpus.tokenizer import Tokenizer
from kit import device, errors
from kit.arguments import add_common, program
from kit.runlog import environment, write_json
from kit.textfile import read_text
from tokcom.inference import decode, encode, load_checkpoint, read_ids

NOISES = (0.0, 0.3)  # standard deviations
RANDOM = 100_000  # tokens


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", required=True, help="best_diffusion.pt or best_vae.pt of a run")
    parser.add_argument("--texts", nargs="+", required=True, help="text files that the run was not trained on")
    parser.add_argument("--output", default="results/tokcom/round_trip.json", help="JSON file to write")
    add_common(parser, "seed", "device", "precision")
    args = parser.parse_args()
    runtime = device.start(args.device, args.seed, args.precision)
    vae, _, _, config = load_checkpoint(args.checkpoint, runtime.device)
    tokenizer = Tokenizer.from_json(config["tokenizer"])
    texts = {Path(path).stem: read_ids(read_text(path), tokenizer) for path in args.texts}
    texts["random tokens"] = torch.randint(tokenizer.vocab_size, (RANDOM,))
    with torch.no_grad(), runtime.autocast():
        rows = [row(vae, name, ids) for name, ids in texts.items()]
    write_json(args.output, {"rows": rows, "environment": environment(runtime)})


def row(vae, name: str, ids: torch.Tensor) -> dict:
    """Tokens of a text (n,) that come back wrong, at each noise on its vectors."""
    latents, count = encode(vae, ids[None]), len(ids)
    wrong = {}
    for noise in NOISES:
        noisy = latents + noise * torch.randn_like(latents)
        wrong[str(noise)] = int((decode(vae, noisy)[0, :count].cpu() != ids).sum())
    found = {"text": name, "tokens": count, "wrong": wrong}
    print(found, flush=True)
    return found


if __name__ == "__main__":
    errors.run(main)
