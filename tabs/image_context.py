"""Image context: one text through every codec, damage, reading back by algorithm and by a trained VLM."""

import json
from dataclasses import dataclass
from pathlib import Path

import gradio
import torch

from corpus.tokenizer import Tokenizer
from image_context.augment import AUGMENTATIONS, augment
from image_context.codecs import DamagedCode, build_codec
from image_context.config import Config
from image_context.dataset import prepare
from image_context.metrics import token_accuracy
from image_context.model import VLM, answer
from image_context.tasks import make_sample
from image_context.vlm import open_vlm
from kit.device import Runtime
from kit.errors import UserError
from kit.page import escape
from tabs import show

CODECS = {
    "rendered page": ("render", {}),
    "QR code": ("qr", {"version": 20, "level": "M", "module": 4}),
    "color code, clean": ("codebook", {"colors": 64, "module": 2}),
    "color code, robust": ("codebook", {"colors": 8, "module": 4, "frame": "fiducials", "parity": 48}),
}  # fmt: skip
EXAMPLE = "Long text can travel as an image. A model that reads images then spends a visual token on each block of pixels, whatever the block holds."
QUESTION = "Restore the text."
READ_TOKENS = 64  # at most, that the VLM restores


def carry(text: str, name: str, damage: str, seed: int, tokenizer: Tokenizer) -> tuple[str, str]:
    """The images of a text as they arrive, and what is read of them, with their costs."""
    text = show.checked(text)
    codec_name, options = CODECS[name]
    codec = build_codec(codec_name, **options)
    encoded = codec.encode(text)
    arrived = [augment(image, damage, int(seed or 0) + page) for page, image in enumerate(encoded.images)]
    visual, size, tokens = codec.visual_tokens(encoded), len(text.encode()), len(tokenizer.encode(text))
    costs = {
        "visual tokens": f"{visual:,}", "bytes per visual token": f"{size / visual:.1f}",
        "text tokens per visual token": f"{tokens / visual:.2f}", "images": str(len(arrived)),
    }  # fmt: skip
    shown = [
        show.picture(image, f"image {page + 1}, {image.width}×{image.height}") for page, image in enumerate(arrived[:4])
    ]
    return show.row(shown), _table(costs) + _read(codec, codec_name, arrived, text)


def _read(codec, name: str, images: list, text: str) -> str:
    if name == "render":
        return show.note("A rendered page is for a model to read: no algorithm here does.")
    try:
        found = codec.decode(images)
    except DamagedCode as error:
        return show.note(f"Damaged: {error.lost:,} symbols are lost. What is whole:") + show.plain_text(
            [(error.text, False)]
        )
    except UserError as error:
        return show.note(f"Not readable: {error}")
    same = show.note("Read back to the letter." if found == text else "Read back, with differences.")
    return same + show.plain_text([(found, False)])


def _table(values: dict[str, str]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td><b>{escape(value)}</b></td></tr>" for name, value in values.items())
    return f"<table class='tc-table'>{rows}</table>"


@dataclass
class Reader:
    """A VLM that train_lora trained, and its codecs."""

    vlm: VLM
    codecs: dict
    config: Config
    runtime: Runtime


def load(folder: str | Path, runtime: Runtime) -> Reader:
    """The VLM of a run of train_lora. Raises UserError if the folder holds none."""
    folder = Path(folder)
    try:
        config = Config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is no run of image_context.train_lora: {type(error).__name__} at config.json"
        ) from error
    vlm = open_vlm(config.model, runtime, folder, str(folder / "final"))
    vlm.model.eval()
    return Reader(vlm, config.codecs(vlm.vocabulary), config, runtime)


@torch.no_grad()
def ask(reader: Reader, name: str, text: str, damage: str, seed: int) -> tuple[str, str]:
    """The image of a text, and the text that the VLM restores from it."""
    text, vocabulary = show.checked(text), reader.vlm.vocabulary
    ids = vocabulary.encode(text).tolist()
    if len(ids) > READ_TOKENS:
        raise UserError(f"{len(ids)} tokens: this page has the model restore {READ_TOKENS}; shorten the text")
    codec = reader.codecs[name]
    encoded = codec.encode(text)
    encoded.images = [augment(image, damage, int(seed or 0)) for image in encoded.images]
    inputs = prepare(reader.vlm, [encoded], [QUESTION])
    with reader.runtime.autocast():
        batch = {key: value.to(reader.runtime.device) for key, value in inputs.items()}
        found = answer(reader.vlm, batch, len(ids) + 2)[0]
    shown = show.row(
        show.picture(i, f"{i.width}×{i.height}, {codec.visual_tokens(encoded)} visual tokens") for i in encoded.images
    )
    share = token_accuracy(vocabulary.encode(found).tolist(), ids)
    result = show.bars({"tokens restored": share}, "tokens restored") + show.plain_text([(found, False)])
    return shown if encoded.images else show.note("This codec sends no image."), result


def build(path: str | None, runtime: Runtime, tokenizer: Tokenizer) -> None:
    """The controls. `tokenizer` counts text tokens."""
    gradio.Markdown("One text through each codec: what it costs, what the way does to it, what can still be read.")
    text = gradio.Textbox(EXAMPLE, label="Text", lines=4)
    with gradio.Row():
        codec = gradio.Radio(list(CODECS), value="color code, robust", label="Codec")
        damage = gradio.Radio(
            list(AUGMENTATIONS), value="clean", label="On its way: nothing, a careful scan, a careless photograph"
        )
        seed = gradio.Number(0, precision=0, label="Seed")
    go = gradio.Button("Encode, send, read back", variant="primary")
    result, images = gradio.HTML(elem_id="carried"), gradio.HTML()

    @show.guarded
    def on_carry(*values):
        return carry(*values, tokenizer)

    go.click(on_carry, [text, codec, damage, seed], [images, result])
    gradio.Markdown("### A vision-language model reads it")
    if path is None:
        gradio.Markdown(
            "This part needs a trained reader, which takes about ten minutes of a CPU:\n\n```bash\n"
            "./image_context/smoke_test.sh\npython demo.py --image_context checkpoints/image_context_smoke\n```"
        )
        return
    reader = load(path, runtime)
    sample = make_sample("random", min(32, *reader.config.data.lengths), "eval", 0, reader.vlm.vocabulary)
    document = gradio.Textbox(sample.document, label="Text to restore (random tokens: no language helps)", lines=2)
    with gradio.Row():
        its_codec = gradio.Radio(list(reader.codecs), value=next(iter(reader.codecs)), label="Codec of the run")
        its_damage = gradio.Radio(list(AUGMENTATIONS), value="clean", label="On its way")
    read = gradio.Button("Let the model read")
    said, seen = gradio.HTML(elem_id="restored"), gradio.HTML()

    @show.guarded
    def on_ask(*values):
        return ask(reader, *values)

    read.click(on_ask, [its_codec, document, its_damage, seed], [seen, said])
