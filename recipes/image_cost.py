"""What a text costs a reader as text, as images and as vectors: results/image_context/cost.json.

    python -m recipes.image_cost                                        # `small`, random weights, one CPU thread; about ten minutes
    python -m recipes.image_cost --lengths 4096 16384 --device cuda --precision bf16
    python -m recipes.image_cost --processor qwen2-vl --tokenizer qwen2.5 --text english=book.txt chinese=novel.txt   # tokens alone

Times do not depend on what a model has learned, so its weights are random. `prefill`: the whole prompt, images through the vision tower
included, up to the first token of the answer; `decode`: each further token; `cache`: keys and values of the prompt. Medians and ranges
over turns in which the carriers come one after another. With --processor the tokens of real texts are counted in the output of a real
processor (a folder with preprocessor_config.json and chat_template.json) instead.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from image_context.codecs import build_codec
from image_context.config import ModelConfig
from image_context.dataset import costs, prepare
from image_context.model import VLM, add_compressors, answer, embed_pools, spare_pages
from image_context.tasks import Sample, make_sample
from image_context.vlm import open_vlm
from kit import device, errors
from kit.arguments import add_common, program
from kit.runlog import environment, make_folder, progress_bar, write_json

OUTPUT = Path("results/image_context/cost.json")
DECODED = 32  # tokens
CARRIERS = {
    "plain text": ("text", {}),
    "color code, 3 tokens to a block": ("codebook", {"module": 7, "symbols_per_block": 3}),
    "color code, 10 tokens to a block": ("codebook", {"module": 4, "symbols_per_block": 10}),
    "color code, 20 tokens to a block": ("codebook", {"module": 2, "symbols_per_block": 20}),
    "learned convolution, 10 tokens to a vector": ("conv", {"ratio": 10}),
    "rendered page": ("render", {}),
    "QR": ("qr", {}),
}
IN_TOKENS = {
    "payload": "tokens",
    "colors": 8,
    "frame": "none",
    "columns": 1,
    "max_side": 200,
}  # of the color codes above
LEDGER = {  # of real texts, which are carried as bytes
    "plain text": ("text", {}),
    "color code, 8 colors, 4 px": ("codebook", {"colors": 8, "module": 4}),
    "color code, 8 colors, 2 px": ("codebook", {"colors": 8, "module": 2}),
    "color code, 64 colors, 2 px": ("codebook", {"colors": 64, "module": 2}),
    "rendered page": ("render", {}),
    "QR v40-M, 3 px": ("qr", {"version": 40, "level": "M", "module": 3}),
}
CHARACTERS = 20_000  # of each real text


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--model", default="small", help="of image_context/model.py's, or a Qwen2-VL by name or folder")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], help="tokens of a text")
    parser.add_argument("--turns", type=int, default=3, help="that medians are taken of")
    parser.add_argument("--processor", help="folder of a real processor, to count tokens alone")
    parser.add_argument("--tokenizer", help="folder of its tokenizer")
    parser.add_argument("--text", nargs="*", default=[], metavar="NAME=FILE", help="real texts to count")
    parser.add_argument("--font", action="append", default=[], help="font of rendered pages beside DejaVu Sans Mono")
    parser.add_argument("--work", default="checkpoints/image_cost", help="folder of the tokenizer that is trained")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    add_common(parser, "device", "precision", "seed")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    runtime = device.start(args.device, args.seed, args.precision)
    report = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    if args.processor:
        texts = dict(given.split("=", 1) for given in args.text)
        part = "ledger"
        report[part] = ledger(real(args.processor, args.tokenizer), texts, ("DejaVuSansMono.ttf", *args.font))
    else:
        vlm = open_vlm(ModelConfig(name=args.model), runtime, make_folder(args.work))
        part = "times"
        with runtime.autocast():
            report[part] = times(vlm, args, runtime.device)
        report |= {"model": args.model, "turns": args.turns}
    report.setdefault("environment", {})[part] = environment(runtime)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, report)
    print(f"wrote {args.output}")


def times(vlm: VLM, args: argparse.Namespace, where: torch.device) -> list[dict]:
    """A row for each length and carrier: tokens, seconds, multiplications and bytes."""
    vlm.model.eval()
    add_compressors(vlm.model, [10])
    rows, ready = [], []
    for length in args.lengths:
        sample = make_sample("random", length, "eval", args.seed, vlm.vocabulary)
        for name, (codec_name, options) in CARRIERS.items():
            if codec_name in ("codebook", "conv"):
                options = options | {"tokenizer": vlm.vocabulary}
            codec = build_codec(codec_name, **options, **(IN_TOKENS if codec_name == "codebook" else {}))
            encoded = codec.encode(sample.document)
            batch = prepare(vlm, [encoded], [sample.question])
            row = {"carrier": name, "length": length, **costs(vlm, batch, 0, encoded, sample)}
            rows.append(row)
            ready.append((row, {key: value.to(where) for key, value in batch.items()}))
    found: dict[int, list] = {at: [] for at in range(len(rows))}
    with progress_bar(len(rows) * (args.turns + 1), "cost", unit="turn") as bar:
        for turn in range(args.turns + 1):  # the first warms up
            for at, (row, batch) in enumerate(ready):
                if turn == 0:
                    row |= work(vlm, batch)
                else:
                    found[at].append(seconds(vlm, batch))
                bar.update()
    for at, row in enumerate(rows):
        for name, values in zip(("prefill_seconds", "decode_seconds"), zip(*found[at])):
            row[name], row[f"{name}_range"] = statistics.median(values), [min(values), max(values)]
        print(
            f"{row['length']:6} {row['carrier']:44} reads {row['total_tokens']:5}  prefill {row['prefill_seconds']:.2f} s"
        )
    return rows


def work(vlm: VLM, batch: dict) -> dict:
    """Multiply-adds of the prefill, of which in the vision tower, and bytes of the cache it leaves."""
    with FlopCounterMode(display=False) as counter:
        cache = vlm.model(**embed_pools(vlm.model, dict(batch)), use_cache=True, logits_to_keep=1).past_key_values
    vision = 0
    if "pixel_values" in batch:
        with FlopCounterMode(display=False) as tower:
            vlm.model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
        vision = tower.get_total_flops()
    held = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    return {"flops": counter.get_total_flops(), "flops_of_vision": vision, "cache_bytes": held}


def seconds(vlm: VLM, batch: dict) -> tuple[float, float]:
    """Of the prefill with one token of answer, and of each further token."""
    spent = []
    for tokens in (1, 1 + DECODED):
        start = time.perf_counter()
        answer(vlm, dict(batch), tokens, tokens)
        spent.append(time.perf_counter() - start)
    return spent[0], (spent[1] - spent[0]) / DECODED


# ----------------------------------------------------------------------------------------------------------------------
# The ledger of a real processor


def real(folder: str, tokenizer: str) -> VLM:
    """A processor without its model."""
    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    template = json.loads((Path(folder) / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    images, words = Qwen2VLImageProcessor.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(tokenizer)
    spare_pages(images)
    return VLM(None, Qwen2VLProcessor(images, words, Qwen2VLVideoProcessor(), chat_template=template), folder)


def ledger(vlm: VLM, texts: dict[str, str], fonts: tuple[str, ...]) -> list[dict]:
    """Tokens that each carrier of each text costs."""
    rows = []
    for name, path in texts.items():
        text = Path(path).read_text(encoding="utf-8-sig")[:CHARACTERS]
        sample = Sample("random", vlm.count(text), text, "Restore the text.", text, 0)
        for carrier, (codec_name, options) in LEDGER.items():
            codec = build_codec(codec_name, **options, **({"fonts": fonts} if codec_name == "render" else {}))
            encoded = codec.encode(text)
            batch = prepare(vlm, [encoded], [sample.question])
            found = costs(vlm, batch, 0, encoded, sample)
            rows.append(
                {"text": name, "carrier": carrier, "characters": len(text), "bytes": len(text.encode()), **found}
            )
            print(f"{name:10} {carrier:30} {found['total_tokens']:6} tokens, ratio {found['ratio_context']:.2f}")
    return rows


if __name__ == "__main__":
    errors.run(main)
