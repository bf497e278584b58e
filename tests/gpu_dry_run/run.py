"""Run one of the programs on a pretended GPU and print, as the last line, JSON with what reached the device.

    python -m tests.gpu_dry_run.run train --data_path data --max_steps 4 --output_dir /tmp/run

`steps`: for each optimizer step but the first, launches, bytes and the places that waited for the device; `total`: all of it.
Nothing is learned and no checkpoint is written.
"""

import importlib
import json
import sys
from itertools import pairwise

from tests.gpu_dry_run.pretend import CUDA, pretend  # before torch

import torch  # isort: skip

import kit.checkpoint
import kit.device
import kit.ema
from kit.errors import UserError


def main() -> None:
    program, sys.argv = sys.argv[1], sys.argv[1:]
    snapshots, update = [], kit.ema.EMA.update

    def counted_update(self, module):
        update(self, module)
        snapshots.append(seen.snapshot())

    kit.ema.EMA.update = counted_update
    kit.device.start = lambda *args: kit.device.Runtime(CUDA, torch.bfloat16, 0, 1)
    kit.checkpoint.save_checkpoint = lambda *args: None
    kit.checkpoint.BackgroundWriter.save = lambda *args: None
    torch.cuda.get_device_name = lambda *args: "pretended"
    with pretend() as seen:
        try:
            importlib.import_module(program).main()
        except UserError as error:
            if "no checkpoint at" not in str(error):  # TokCom's first stage reads its best one again
                raise
        snapshots.append(seen.snapshot())
    steps = [difference(a, b) for a, b in pairwise(snapshots[:-1])]
    print(json.dumps({"steps": steps, "total": snapshots[-1]}))


def difference(before: dict, after: dict) -> dict:
    def less(a: dict, b: dict) -> dict:
        return {key: count - a.get(key, 0) for key, count in b.items() if count > a.get(key, 0)}

    numbers = {key: after[key] - before[key] for key in ("launches", "bytes", "copies")}
    return numbers | {key: less(before[key], after[key]) for key in ("waits", "lines")}


if __name__ == "__main__":
    main()
