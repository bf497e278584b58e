"""Chunks of token ids on disk, and which of them make which batch.

`open_chunks` takes what the data builder wrote (corpus/shards.py reads it), or any raw text, which it builds on the spot.
`open_test` opens the set that a report is made on, and `reported` says which of its chunks are measured. `LengthBuckets` says which chunks make which batch, as a pure function of seed and epoch, so that a resumed run goes on where
the killed one stopped.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from corpus.builder import SPLITS, BuildSettings, Corpus, build
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer, load_tokenizer
from kit.errors import UserError, note

# ----------------------------------------------------------------------------------------------------------------------
# From a path to chunks


def is_built(path: Path) -> bool:
    """Whether `path` holds Parquet shards with a `tokens` column."""
    files = [path] if path.suffix == ".parquet" else sorted(path.glob("*.parquet"))
    if not files or not files[0].is_file():
        return False
    from pyarrow import ArrowException, parquet

    try:
        return "tokens" in parquet.read_schema(files[0]).names
    except ArrowException as error:
        raise UserError(f"{files[0]} is no readable Parquet file: {error}") from error


def open_built(path: Path) -> Chunks:
    """Chunks from a folder of shards, or one shard, of the data builder."""
    return Chunks([path] if path.is_file() else sorted(path.glob("*.parquet")), path)


def open_chunks(
    data_path: str, build_dir: Path, tokenizer: Tokenizer | None = None, **settings
) -> tuple[Chunks, Chunks | None, Tokenizer]:
    """Training chunks, validation chunks (None if there are none beside) and the tokenizer of any `data_path`.

    Built data is opened as it is: `data`, `data/train` or a shard. Raw text (.txt, .jsonl, .parquet, folders of them) is
    first built into `build_dir` under `settings` (of BuildSettings), with `tokenizer` if given; a finished build there is
    used again. Raises UserError for a path that is missing or holds no text.
    """
    path = Path(data_path)
    if not path.exists():
        raise UserError(f"no data at {data_path}: run build_pretrain_data.py first, or name a file or folder of text")
    if path.is_dir() and is_built(path / "train"):
        path = path / "train"
    if not is_built(path):
        if path.is_dir() and path.name in SPLITS and not any(path.iterdir()):
            raise UserError(f"{path} is empty: run build_pretrain_data.py")
        tokenizer = build_once(build_dir, BuildSettings(input=[str(path)], **settings), tokenizer)
        path = build_dir / "train"
    elif path.name in SPLITS and not (path.parent / "stats.json").exists():
        raise UserError(f"{path.parent} holds an unfinished build (no stats.json): run build_pretrain_data.py again")
    else:
        beside = (path if path.is_dir() else path.parent).parent / "tokenizer.json"
        tokenizer = tokenizer or load_tokenizer(settings.get("tokenizer_path") or beside)
        if beside.exists() and not tokenizer.same_as(load_tokenizer(beside)):
            raise UserError(f"{path} was tokenized by another tokenizer ({beside}) than the one in use")
    beside = path.parent / "val"
    val = open_built(beside) if path.name == "train" and is_built(beside) else None
    return open_built(path), val, tokenizer


def open_test(data_path: str, build_dir: Path, tokenizer: Tokenizer, **settings) -> Chunks:
    """The chunks that a report is made on.

    Of a folder of the data builder: its test set, or with a note the validation set where it has no test set. A split or a
    shard by its own name, or raw text, which is built whole: as `open_chunks` opens it, whose errors it raises.
    """
    path = Path(data_path)
    if path.is_dir() and is_built(path / "train"):
        split = "test" if is_built(path / "test") else "val"
        if split == "val" and not is_built(path / "val"):
            raise UserError(
                f"{path} has neither a test nor a validation split: rebuild it with `test_fraction` above 0"
            )
        if split == "val":
            note(
                f"{path} has no test split (built before there was one, or with `test_fraction` 0): "
                "reporting on val, which also chose the checkpoint; rebuild with `overwrite`"
            )
        path = path / split
    return open_chunks(str(path), build_dir, tokenizer, val_fraction=0.0, test_fraction=0.0, **settings)[0]


def reported(chunks: Chunks, count: int, min_length: int = 0) -> np.ndarray:
    """Which chunks every report measures, of any system: up to `count` of at least `min_length` tokens, in order on disk.

    They are the first that are long enough in one fixed random order, so that smaller choices lie within larger ones.
    """
    order = np.random.default_rng(0).permutation(len(chunks))
    return np.sort(order[chunks.lengths[order] >= min_length][:count])


def build_once(build_dir: Path, settings: BuildSettings, given: Tokenizer | None = None) -> Tokenizer:
    """Build into `build_dir` unless just that was done already; returns the tokenizer used.

    Raises UserError if the folder holds another build.
    """
    stats = build_dir / "stats.json"
    if not stats.exists():
        build(settings, build_dir, tokenizer=given)
    else:
        before = json.loads(stats.read_text(encoding="utf-8"))
        # older builds are kept, so that their runs go on
        before["settings"].setdefault("test_fraction", settings.test_fraction)
        made_of = before["sources"]
        # a folder of texts may hold more by now, such as this run
        names = {file["name"] for file in made_of["listing"]} if "listing" in made_of else None
        if before["settings"] != asdict(settings) or made_of != Corpus(settings).sources_summary(names):
            raise UserError(
                f"{build_dir} was built from other text or settings: remove it, choose another `output_dir`, or name it "
                "as `data_path` to use it as it is"
            )
    built = load_tokenizer(build_dir / "tokenizer.json")
    if given and not given.same_as(built):
        raise UserError(f"{build_dir} was built with another tokenizer: remove it, or choose another `output_dir`")
    return built


# ----------------------------------------------------------------------------------------------------------------------
# From chunks to batches


class LengthBuckets:
    """Which chunks make which training step: such of similar length, so that little is computed on padding.

    A step is `batch_size` chunks on each of `world_size` devices, `grad_accum` times. Per epoch the chunks are permuted,
    those that fill no step left out, the others sorted by length within windows of 64 steps, cut into steps, and the steps
    permuted. The sorted chunks of a step are dealt out in turn, so that no device waits for another that drew longer ones.
    A pure function of (seed, epoch) and of the chunks in a step, however these are split. Raises UserError if there are
    fewer chunks than one step takes.
    """

    WINDOW = 64

    def __init__(
        self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, grad_accum: int = 1
    ):
        self.lengths, self.batch_size, self.seed, self.rank = lengths, batch_size, seed, rank
        self.world_size, self.parts = world_size, world_size * grad_accum
        self.samples_per_step = batch_size * self.parts
        self.steps_per_epoch = len(lengths) // self.samples_per_step
        if not self.steps_per_epoch:
            raise UserError(
                f"{len(lengths)} chunks are fewer than one step of {self.samples_per_step}: lower `batch_size`"
            )

    def steps(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """The chunks (samples_per_step,) of each step of an epoch, from step `start` of it on."""
        rng = np.random.default_rng([self.seed % 2**63, epoch])
        size, window = self.samples_per_step, self.WINDOW * self.samples_per_step
        order = rng.permutation(len(self.lengths))[: self.steps_per_epoch * size]
        for low in range(0, len(order), window):
            part = order[low : low + window]
            order[low : low + window] = part[np.argsort(self.lengths[part], kind="stable")]
        for index in rng.permutation(self.steps_per_epoch)[start:]:
            yield order[index * size : (index + 1) * size]

    def own(self, micro: int = 0) -> slice:
        """Which of a step's chunks are this device's in its forward pass `micro`."""
        return slice(micro * self.world_size + self.rank, None, self.parts)

    def batches(self, step: int = 0) -> Iterator[list[int]]:
        """This device's batches from training step `step` on, epoch after epoch, without end."""
        for chunks in self.steps_from(step):
            for micro in range(self.parts // self.world_size):
                yield chunks[self.own(micro)].tolist()

    def steps_from(self, step: int) -> Iterator[np.ndarray]:
        """The chunks (samples_per_step,) of each training step from `step` on, without end."""
        while True:
            epoch, inside = divmod(step, self.steps_per_epoch)
            yield from self.steps(epoch, inside)
            step = (epoch + 1) * self.steps_per_epoch
