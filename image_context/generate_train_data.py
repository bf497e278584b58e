"""Write training pairs (images, question, answer) for every codec of a config.

    python -m image_context.generate_train_data --config image_context/configs/train.yaml --num_samples 500

Writes records.jsonl, images/ and config.json to <output_dir>/train_data. Documents are of the training split: no evaluation
document can be among them, whatever the seed.
"""

import argparse
import io
import random
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from image_context.augment import augment
from image_context.config import Config, load_config
from image_context.dataset import Record, write_record
from image_context.tasks import make_sample
from image_context.vlm import open_vlm
from kit import device, errors
from kit.arguments import add_common, program
from kit.checkpoint import LAST
from kit.errors import UserError
from kit.interrupt import outlive_signals
from kit.runlog import make_folder, progress_bar, write_json
from kit.whole import whole_folder

LESS_MEMORY = "lower data.lengths or generation.lengths"
KEYS = {"seed": "seed"}  # from the config
MOST = 100_000_000  # pairs of a codec, each of which is a file or more


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--config", required=True, help="YAML file, such as image_context/configs/train.yaml")
    parser.add_argument("--num_samples", type=int, help="pairs for each codec (default: the config's)")
    parser.add_argument("--output_dir", help="run folder (default: the config's)")
    add_common(parser, "num_workers")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = load_config(args.config)
    runtime = device.start("cpu", config.seed, "fp32")
    count = config.generation.num_samples_per_codec if args.num_samples is None else args.num_samples
    if not 1 <= count <= MOST:
        raise UserError(f"`num_samples` {count}: need 1 to {MOST:,}")
    output = make_folder(args.output_dir or config.output_dir)
    if (output / LAST).exists():
        raise UserError(f"{output} holds a run that was trained on its data: choose another --output_dir")
    vlm = open_vlm(config.model, runtime, output, languages=config.data.languages)
    write_data(config, vlm, output / "train_data", count, args.num_workers)
    print(f"pairs  {output / 'train_data'}")


class Pairs(Dataset):
    """The pairs one by one: a Record and its images as PNG files. What a pair holds follows from the seed and its number."""

    def __init__(self, config: Config, codecs: dict, counts: dict[str, int], vocabulary, lengths: list, levels: list):
        self.config, self.codecs, self.vocabulary, self.lengths, self.levels = (
            config,
            codecs,
            vocabulary,
            lengths,
            levels,
        )
        self.names, self.ends = list(counts), list(accumulate(counts.values()))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, number: int) -> tuple[Record, list[bytes]]:
        codec = bisect_right(self.ends, number)
        name, index = self.names[codec], number - (self.ends[codec - 1] if codec else 0)
        data, seed = self.config.data, self.config.seed * 1_000_000 + index
        rng = random.Random(f"{name}/{seed}")
        sample = make_sample(
            rng.choice(data.tasks), rng.choice(self.lengths), "train", seed, self.vocabulary, rng.choice(data.languages)
        )
        encoded, level = self.codecs[name].encode(sample.document), rng.choice(self.levels)
        images = []
        for image in encoded.images:
            file = io.BytesIO()
            augment(image, level, seed, data.geometry).save(file, "png", compress_level=1)
            images.append(file.getvalue())
        paths = [f"images/{name}_{index}_{page}.png" for page in range(len(images))]
        return Record(
            f"{name}_{index}", name, level, sample, paths, encoded.text, encoded.pool, encoded.learned
        ), images


def write_data(config: Config, vlm, folder: Path, count: int, num_workers: int = 0) -> None:
    """`count` records for each codec that trains in full, beside each other and only then in place, so that no half of them is ever taken."""
    vocabulary, data = vlm.vocabulary, config.data
    lengths = config.generation.lengths or data.lengths
    levels = config.generation.augmentations or data.augmentations
    codecs = config.codecs(vocabulary)
    counts = {name: round(count * data.codecs[name].train) for name in codecs}
    if not any(counts.values()):
        raise UserError("no codec of this config is to be trained: set train above 0 on one")
    pairs = Pairs(config, codecs, counts, vocabulary, lengths, levels)
    loader = DataLoader(pairs, batch_size=None, num_workers=num_workers, worker_init_fn=outlive_signals)
    bar = progress_bar(len(pairs), "pairs", unit="pair")
    with whole_folder(folder) as partial:
        (partial / "images").mkdir()
        with open(partial / "records.jsonl", "w", encoding="utf-8") as file:
            for record, images in loader:
                for path, image in zip(record.images, images):
                    (partial / path).write_bytes(image)
                write_record(file, record)
                bar.update()
        write_json(partial / "config.json", {"hash": config.hash, **config.model_dump()})
    bar.close()


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY, KEYS)
