"""Make a checkpoint small enough to ship: averaged weights in 7 bits, n-gram counts, tokenizer and palette in one safetensors file.

    python release.py --checkpoint RUN/best_model.pth --output_file checkpoints/english.safetensors

Every program that takes a checkpoint takes the file, too; training does not go on from it.
"""

from pathlib import Path

import torch

from kit import errors
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.released import SUFFIX, save_released
from pretrained import load_pretrained


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of train.py")
    parser.add_argument("--output_file", required=True, help=f"where to write, *{SUFFIX}")
    parser.add_argument("--max_megabytes", type=float, default=12.0, help="refuse to write more")
    add_common(parser, "overwrite")
    args = parser.parse_args()
    output = Path(args.output_file)
    if output.suffix != SUFFIX:
        raise UserError(f"--output_file {output}: its name has to end with {SUFFIX}")
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} exists: pass --overwrite")
    state = load_pretrained(args.checkpoint, torch.device("cpu")).state()
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    size = save_released(partial, state) / 1e6
    if size > args.max_megabytes:
        partial.unlink()
        raise UserError(f"the file would have {size:.1f} MB, more than --max_megabytes {args.max_megabytes:g}")
    partial.replace(output)
    print(f"wrote {output}, {size:.1f} MB, step {state['step']:,}")


if __name__ == "__main__":
    errors.run(main)
