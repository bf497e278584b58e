"""How long README's first commands take from their start to their end, and what they write: the released checkpoint on a CPU.

python -m recipes.first_minute          # writes results/released/seconds.json
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from kit import device
from kit.arguments import program
from kit.errors import UserError, run
from kit.runlog import environment, write_json

ROOT = Path(__file__).parent.parent
COMMANDS = (
    ("--mode", "reconstruct", "--input_text", "It was a cold evening, and the old man sat by the fire."),
    ("--mode", "generate"),
    ("--checkpoint", "chinese", "--mode", "generate"),
    ("--mode", "infill", "--input_text", "“I am glad to see you,” said [[6]], and he [[24]] the door."),
)


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--turns", type=int, default=3, help="how often each is started")
    args = parser.parse_args()
    if args.turns < 1:
        raise UserError(f"--turns {args.turns}: need at least 1")
    rows = [{"arguments": given, "turns": []} for given in COMMANDS]
    for _ in range(args.turns):
        with TemporaryDirectory() as folder:  # one after the other in one folder, as a reader would
            for row in rows:
                start = time.monotonic()
                command = [sys.executable, str(ROOT / "inference.py"), *row["arguments"]]
                done = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
                )
                row["turns"].append(time.monotonic() - start)
                if done.returncode:
                    raise UserError(f"inference.py {' '.join(row['arguments'])} failed: {done.stderr.strip()}")
                row["output"] = done.stdout
    for row in rows:
        row["seconds"] = statistics.median(row["turns"])
        print(f"{row['seconds']:5.1f} s  inference.py {' '.join(row['arguments'])}", flush=True)
    report = {"rows": rows, "environment": environment(device.start("cpu", 0, "fp32"))}
    write_json(ROOT / "results" / "released" / "seconds.json", report)
    print("wrote results/released/seconds.json")


if __name__ == "__main__":
    run(main)
