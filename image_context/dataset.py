"""Samples and images -> what a VLM is given: token ids, pixels, and labels on the answer alone."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from image_context.codecs import PAGE_PIXELS, Encoded
from image_context.model import IGNORED, POOLED, VLM
from image_context.tasks import Sample
from kit.errors import UserError
from kit.images import open_image


@dataclass
class Record:
    """A sample as a codec hands it over. `images`: paths relative to the records' file."""

    id: str
    codec: str
    augmentation: str
    sample: Sample
    images: list
    text: str = ""
    pool: int = 0
    learned: bool = False


def write_record(file, record: Record) -> None:
    """Append a record to an open JSONL file."""
    file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")


def read_records(path: str | Path) -> list[Record]:
    """The records of a JSONL file. Raises UserError for a missing or damaged file."""
    path = Path(path)
    try:
        rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        return [Record(**{**row, "sample": Sample(**row["sample"])}) for row in rows]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; write it with generate_train_data") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} holds no training records ({error}); write it again with generate_train_data"
        ) from error


def open_images(record: Record, folder: Path) -> list[Image.Image]:
    """The record's images, RGB. Raises UserError for one that is missing or no image."""
    return [open_image(folder / name, "RGB", PAGE_PIXELS) for name in record.images]


def messages(encoded: Encoded, question: str) -> list[dict]:
    """The conversation: images, text or a place for vectors made of embeddings, then the question."""
    content = [{"type": "image"} for _ in encoded.images]
    if encoded.pool or encoded.text:
        content.append({"type": "text", "text": (POOLED if encoded.pool else encoded.text) + "\n"})
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def prompt_text(vlm: VLM, encoded: Encoded, question: str) -> str:
    """The conversation as the VLM's chat template writes it, up to where the answer begins."""
    return vlm.processor.apply_chat_template(
        messages(encoded, question), tokenize=False, add_generation_prompt=True
    )  # fmt: skip


def prepare(vlm: VLM, encoded: list[Encoded], questions: list[str], answers: list[str] | None = None) -> dict:
    """A batch of tensors. With `answers` padded at the right and labeled, for training; without, at the left, to generate.

    input_ids, attention_mask, mm_token_type_ids (B, N); pixel_values and image_grid_thw where there are images; labels (B, N),
    -100 everywhere but on the answer and the end of the turn; pool_ids (P, k), -1 = none, for the places of vectors
    made of embeddings, and pool_learned (P,), the ratio of the convolution that makes them or 0 for means. Nothing is ever cut
    off: a sequence that is too long for the model is the model's error to raise.
    """
    processor, tokenizer = vlm.processor, vlm.tokenizer
    prompts = [prompt_text(vlm, e, question) for e, question in zip(encoded, questions)]
    pools, learned = [], []
    for i, e in enumerate(encoded):
        if e.pool:
            ids = torch.tensor(tokenizer(e.text, add_special_tokens=False)["input_ids"])
            groups = torch.full((-(-len(ids) // e.pool) * e.pool,), -1)
            groups[: len(ids)] = ids
            pools.append(groups.view(-1, e.pool))
            learned.append(torch.full((len(pools[-1]),), e.pool if e.learned else 0))
            prompts[i] = prompts[i].replace(POOLED, POOLED * len(pools[-1]), 1)
    images = [image for e in encoded for image in e.images]
    batch = dict(processor(text=prompts, images=images or None, padding=False, return_mm_token_type_ids=True))
    for name in ("pixel_values", "image_grid_thw"):
        if name in batch:
            batch[name] = torch.as_tensor(batch[name])
    rows = [list(ids) for ids in batch["input_ids"]]
    types = [list(t) for t in batch["mm_token_type_ids"]]
    starts = [len(row) for row in rows]
    if answers is not None:
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        for row, kinds, answer in zip(rows, types, answers):
            ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], end]
            row += ids
            kinds += [0] * len(ids)
    longest = max(map(len, rows))

    def pad(values: list[list[int]], value: int) -> torch.Tensor:
        filler = [[value] * (longest - len(v)) for v in values]
        return torch.tensor([v + f if answers is not None else f + v for v, f in zip(values, filler)])

    batch["input_ids"], batch["mm_token_type_ids"] = pad(rows, tokenizer.pad_token_id), pad(types, 0)
    batch["attention_mask"] = pad([[1] * len(row) for row in rows], 0)
    if answers is not None:
        batch["labels"] = pad([[IGNORED] * start + row[start:] for row, start in zip(rows, starts)], IGNORED)
    if pools:
        width = max(p.shape[1] for p in pools)
        batch["pool_ids"] = torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1]), value=-1) for p in pools])
        batch["pool_learned"] = torch.cat(learned)
    return batch


def batches(records: list[Record], folder: Path, vlm: VLM, batch_size: int, order: list[int]) -> Iterator[dict]:
    """Training batches of `records` in `order`, the last one shorter."""
    for at in range(0, len(order), batch_size):
        chosen = [records[i] for i in order[at : at + batch_size]]
        encoded = [Encoded(open_images(r, folder), r.text, r.pool, r.learned) for r in chosen]
        yield prepare(
            vlm, encoded, [r.sample.question for r in chosen], [r.sample.reply or r.sample.answer for r in chosen]
        )


def ahead(items: Iterator) -> Iterator:
    """The items of an iterator, the next one being made in a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, items, None)
        while (item := future.result()) is not None:
            future = thread.submit(next, items, None)
            yield item


def costs(vlm: VLM, batch: dict, row: int, encoded: Encoded, sample: Sample) -> dict:
    """Tokens of one row of a batch that is ready to generate, as the processor counted them.

    `context_tokens`: the document as plain text; `visual_tokens`: what stands for images or means; `text_tokens`: all others;
    `total_tokens`: everything the model reads. `ratio_context` is the document's tokens over those that carry it (visual, or text
    where it goes as text), `ratio_total` over all.
    """
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    marks = [vlm.tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", POOLED)]
    visual = int(sum((ids == mark).sum() for mark in marks))
    context = vlm.count(sample.document)
    carried = visual + (0 if encoded.pool else vlm.count(encoded.text))
    return {
        "context_tokens": context, "visual_tokens": visual, "text_tokens": len(ids) - visual, "total_tokens": len(ids),
        "ratio_context": context / max(1, carried), "ratio_total": context / len(ids),
    }  # fmt: skip
