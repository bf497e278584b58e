"""The data builder's steps as a pipeline of datatrove, for text beyond one machine: on local processes, on Slurm or on Ray.

Task r of n tokenizes every n-th file into a spool of its own; a last task joins the spools in the files' order, leaving out
documents seen before, and cuts the chunks. The result is that of corpus/builder.py, whatever the number of tasks. The
output folder must be one that all tasks see. Needs `pip install datatrove`.
"""

import os
import shutil
from pathlib import Path

import numpy as np

from corpus.builder import BuildSettings, Corpus, begin, choose_tokenizer, finish
from corpus.spool import Seen, Spool
from corpus.tokenizer import load_tokenizer
from kit.errors import UserError

EXECUTORS = ("local", "slurm", "ray")
BLOCK = 1 << 22  # tokens copied at once


def build_in_tasks(
    settings: BuildSettings,
    output_dir: str | Path,
    tasks: int,
    executor: str = "local",
    overwrite: bool = False,
    **options,
) -> None:
    """`corpus.builder.build` in `tasks` tasks. `options`: of datatrove's executor, such as partition and time for Slurm.

    Returns when the build is there; with Slurm, when its jobs are queued. Raises UserError for bad input, for a dataset (one
    process streams it) and where a task failed.
    """
    try:
        from datatrove import executor as engines
    except ImportError as error:
        raise UserError("building in several tasks needs datatrove: pip install datatrove==0.10.1") from error
    if executor not in EXECUTORS:
        raise UserError(f"unknown executor {executor!r}; choose from {', '.join(EXECUTORS)}")
    if tasks < 1 or settings.dataset_name:
        raise UserError("`tasks` needs 1 or more; a dataset is streamed by one process: leave `tasks` out for it")
    kind = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}[executor]
    engine, output = getattr(engines, kind), Path(output_dir).resolve()
    corpus, partial = begin(settings, output, overwrite)
    queued = False
    if executor == "local":
        options.setdefault("workers", min(tasks, os.cpu_count() or 1))
    try:
        choose_tokenizer(settings, corpus).save(partial / "tokenizer.json")
        logs = partial / "logs"
        first = engine([TokenizePart(settings, partial)], tasks=tasks, logging_dir=str(logs / "tokenize"), **options)
        last = engine(
            [Join(settings, partial, output, tasks)], tasks=1, logging_dir=str(logs / "join"), depends=first, **options
        )
        if executor == "ray":  # its executors do not start what they depend on
            first.run()
        last.run()
        queued = executor == "slurm"
    except UserError:
        raise
    except Exception as error:  # whatever a task raised, as its executor passes it on
        raise UserError(f"a task of the build failed: {error}") from error
    finally:
        if not queued:
            shutil.rmtree(partial, ignore_errors=True)


class TokenizePart:
    """The step of the first stage."""

    def __init__(self, settings: BuildSettings, partial: Path):
        self.settings, self.partial = settings, partial

    def __call__(self, data, rank: int = 0, world_size: int = 1) -> None:
        folder = self.partial / f"part-{rank:05d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a task that was stopped
        folder.mkdir()
        corpus = Corpus(self.settings, rank, world_size)
        corpus.tokenize(load_tokenizer(self.partial / "tokenizer.json"), folder).save()


class Join:
    """The step of the last stage."""

    def __init__(self, settings: BuildSettings, partial: Path, output: Path, tasks: int):
        self.settings, self.partial, self.output, self.tasks = settings, partial, output, tasks

    def __call__(self, data, rank: int = 0, world_size: int = 1) -> None:
        parts = [Spool.load(self.partial / f"part-{part:05d}") for part in range(self.tasks)]
        spool = join(parts, self.partial)
        tokenizer = load_tokenizer(self.partial / "tokenizer.json")
        finish(spool, tokenizer, Corpus(self.settings), self.partial, self.output)
        shutil.rmtree(self.partial, ignore_errors=True)


def join(parts: list[Spool], folder: Path) -> Spool:
    """One spool in `folder` of those of all parts, in the order of their sources, each document once."""
    spool, seen = Spool(folder), Seen(folder)
    spool.duplicates = sum(part.duplicates for part in parts)
    tokens = [np.memmap(part.path, np.uint32, "r") if sum(part.lengths) else np.empty(0, np.uint32) for part in parts]
    at, place = [0] * len(parts), [0] * len(parts)  # the next document and the next token of each part
    with open(spool.path, "wb") as file:
        for source in range(sum(len(part.source_ends) for part in parts)):
            number = source % len(parts)
            part = parts[number]
            while at[number] < part.source_ends[source // len(parts)]:
                document, begin_at = at[number], place[number]
                digest, length = bytes(part.digests[16 * document : 16 * document + 16]), part.lengths[document]
                at[number], place[number] = document + 1, begin_at + length
                if not seen.is_new(digest):
                    spool.duplicates += 1
                    continue
                spool.add(digest, part.keys[document])
                spool.lengths[-1], spool.sizes[-1] = length, part.sizes[document]
                for block in range(begin_at, begin_at + length, BLOCK):
                    file.write(tokens[number][block : min(block + BLOCK, begin_at + length)].tobytes())
            spool.source_ends.append(len(spool.lengths))
    seen.close()
    return spool
