"""Ask a VLM every question of a config, through every codec and augmentation, and score its answers.

    python -m image_context.run_exp --config image_context/configs/exp_sweep.yaml                          # as it comes
    python -m image_context.run_exp --config image_context/configs/exp_sweep.yaml --lora_path RUN/final    # as trained

Writes <output_dir>/results/results.jsonl, one record for each question, with prediction, answer, metrics, token costs, config hash
and the paths of images and prompt. Run again, it goes on where it stopped; a question that fails is recorded with its error and
counts as wrong. Decoding is greedy, documents are of the evaluation split.
"""

import argparse
import json
import math
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path

import torch

from corpus.tokenizer import Tokenizer
from image_context.augment import augment
from image_context.codecs import Encoded
from image_context.config import Config, load_config
from image_context.dataset import costs, prepare, prompt_text
from image_context.metrics import score
from image_context.model import VLM, answer
from image_context.tasks import Sample, make_sample
from image_context.vlm import open_vlm
from kit import device, errors
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.interrupt import Interrupt
from kit.runlog import environment, make_folder, progress_bar, write_json
from kit.textfile import replace_text
from kit.whole import whole

# tokens that a VLM may answer beyond the answer's length
SLACK = {"json": 8, "random": 8, "needle": 48, "codes": 8}


@dataclass(frozen=True)
class Question:
    """One point of the experiment's grid."""

    codec: str
    augmentation: str
    task: str
    length: int
    language: str
    index: int

    @property
    def id(self) -> str:
        return f"{self.codec}-{self.augmentation}-{self.task}-{self.length}-{self.language}-{self.index}"


LESS_MEMORY = "lower evaluation.batch_size or model.max_pixels"
KEYS = {"seed": "seed"}  # from the config


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--config", required=True, help="YAML file, such as image_context/configs/exp_sweep.yaml")
    parser.add_argument("--lora_path", help="what train_lora wrote: an adapter's folder, or a whole model's")
    parser.add_argument("--output_dir", help="run folder (default: the config's)")
    add_common(parser, "device", "precision")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = load_config(args.config)
    local = config.evaluation.backend == "transformers"  # vLLM needs the memory of the GPU for itself
    runtime = device.start(args.device if local else "cpu", config.seed, args.precision)
    output = make_folder(args.output_dir or config.output_dir)
    folder = make_folder(output / "results")
    vlm_name = str(args.lora_path or config.model.name)
    done = finished_ids(folder / "results.jsonl", config.hash, vlm_name)
    vlm = open_vlm(config.model, runtime, output, args.lora_path, languages=config.data.languages)
    if not local:
        from image_context.backend_vllm import VLLM

        answer_batch = VLLM(config, vlm, args.lora_path).answer
    else:

        def answer_batch(encoded, samples, inputs, length):
            with runtime.autocast():
                return answer(vlm, {name: value.to(runtime.device) for name, value in inputs.items()}, length)

    vlm.model.eval()
    write_json(folder / "config.json", {"hash": config.hash, "vlm": vlm_name, **config.model_dump()})
    write_json(folder / "env.json", environment(runtime))

    # ask
    codecs, vocabulary, interrupt = config.codecs(vlm.vocabulary), vlm.vocabulary, Interrupt()
    todo = [question for question in questions(config) if question.id not in done]
    bar = progress_bar(len(done) + len(todo), "questions", initial=len(done), unit="question")
    with open(folder / "results.jsonl", "a", encoding="utf-8", buffering=1) as file:
        for _, group in groupby(todo, key=lambda q: (q.codec, q.augmentation, q.task, q.length)):
            group = list(group)
            for at in range(0, len(group), config.evaluation.batch_size):
                if interrupt.received:
                    break
                batch = group[at : at + config.evaluation.batch_size]
                for record in ask(batch, config, codecs, vocabulary, vlm, folder, answer_batch):
                    record = {**record, "config_hash": config.hash, "vlm": vlm_name}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                bar.update(len(batch))
    bar.close()
    if interrupt.received:
        print("stopped early; run the same command to go on")
        return
    failed = [r for r in read_results(folder / "results.jsonl") if r["error"]]
    if failed:
        print(f"{len(failed)} questions failed and count as wrong; the first: {failed[0]['id']}: {failed[0]['error']}")
    print(f"results  {folder / 'results.jsonl'}")


def questions(config: Config) -> list[Question]:
    """The grid, so ordered that neighbors can share a batch."""
    data = config.data
    grid = product(data.codecs, data.augmentations, data.tasks, data.lengths, data.languages, range(data.samples))
    return [
        Question(*point) for point in grid if point[2] == "needle" or point[4] == data.languages[0]
    ]  # only needles lie in hay that has a language


def ask(
    batch: list[Question],
    config: Config,
    codecs: dict,
    vocabulary,
    vlm: VLM,
    folder: Path,
    answer_batch,
) -> list[dict]:
    """Records of a batch of questions; what goes wrong with one is in its record's `error`."""
    records, ready = [], []
    for question in batch:
        record = {
            "id": question.id, "codec": question.codec, "augmentation": question.augmentation, "task": question.task,
            "length": question.length, "language": question.language, "error": None,
            "capacity_bits": getattr(codecs[question.codec], "capacity_bits", None), "token_bits": math.log2(vocabulary.vocab_size),
        }  # fmt: skip
        records.append(record)
        try:
            seed = config.seed * 1_000_000 + question.index
            sample = eval_sample(question.task, question.length, seed, vocabulary, question.language)
            record |= {"seed": seed, "position": sample.position, "answer": sample.answer, "question": sample.question}
            encoded = codecs[question.codec].encode(sample.document)
            encoded.images = [augment(i, question.augmentation, seed, config.data.geometry) for i in encoded.images]
            record |= save_inputs(folder, question, encoded, sample, vlm)
            ready.append((record, encoded, sample))
        except UserError as error:
            record["error"] = str(error)
    if not ready:
        return records
    try:
        start = time.perf_counter()
        inputs = prepare(vlm, [e for _, e, _ in ready], [s.question for _, _, s in ready])
        length = (
            config.evaluation.max_new_tokens or max(vlm.count(s.answer) for _, _, s in ready) + SLACK[ready[0][2].task]
        )
        predictions = answer_batch([e for _, e, _ in ready], [s for _, _, s in ready], inputs, length)
        seconds = (time.perf_counter() - start) / len(ready)
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory: lower evaluation.batch_size, {config.evaluation.batch_size} now") from error
    except (RuntimeError, ValueError) as error:
        if re.search("DefaultCPUAllocator|CUDA error|CUBLAS", str(error)):  # of the machine, not of the question
            raise
        for record, _, _ in ready:
            record["error"] = (
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            )
        return records
    for row, ((record, encoded, sample), prediction) in enumerate(zip(ready, predictions)):
        record |= {"prediction": prediction, "seconds": seconds, "costs": costs(vlm, inputs, row, encoded, sample)}
        record["metrics"] = score(
            sample.task, prediction, sample.answer, sample.distractors, lambda text: vocabulary.encode(text).tolist()
        )  # fmt: skip
    return records


@lru_cache(maxsize=4096)
def eval_sample(task: str, length: int, seed: int, vocabulary: Tokenizer, language: str) -> Sample:
    """The evaluation sample of a point: the same for every codec and augmentation, so made once."""
    return make_sample(task, length, "eval", seed, vocabulary, language)


def save_inputs(folder: Path, question: Question, encoded: Encoded, sample: Sample, vlm: VLM) -> dict:
    """Write what the VLM is about to see; returns where it lies, relative to `folder`."""
    for name in ("images", "prompts"):
        (folder / name).mkdir(exist_ok=True)
    paths = [f"images/{question.id}-{page}.png" for page in range(len(encoded.images))]
    for path, image in zip(paths, encoded.images):
        with whole(folder / path) as partial:
            image.save(partial, compress_level=1)
    prompt = f"prompts/{question.id}.txt"
    replace_text(folder / prompt, prompt_text(vlm, encoded, sample.question))
    return {"images": paths, "prompt": prompt}


def read_results(path: Path) -> list[dict]:
    """The records of a results.jsonl, each id once, without a last line that a killed run left half-written.

    Raises UserError for a missing file.
    """
    try:
        lines = path.read_bytes().split(b"\n")  # and at no other character that a prediction may hold
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; write it with run_exp") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found[record["id"]] = record
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            if any(rest.strip() for rest in lines[number:]):
                raise UserError(f"{path} line {number} is no result of run_exp") from error
    return list(found.values())


def finished_ids(path: Path, config_hash: str, vlm: str) -> set[str]:
    """Ids that need not be asked again. Raises UserError if the file holds results of another config or vlm."""
    if not path.exists():
        return set()
    records = read_results(path)
    for record in records:
        if (record["config_hash"], record["vlm"]) != (config_hash, vlm):
            raise UserError(
                f"{path} holds results of another config or vlm ({record['vlm']}): choose another --output_dir"
            )
    replace_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    return {record["id"] for record in records}


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY, KEYS)
