"""The VLM that a config names: loaded, or built here with a tokenizer trained on the text every Python carries, or on what the tasks say
where the config names other languages than English."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from corpus.documents import documents, python_sources
from corpus.tokenizer import load_tokenizer, train_bpe
from image_context.config import ModelConfig
from image_context.model import BUILT, MAX_PIXELS, VLM, adapter_base, build_vlm, load_vlm
from image_context.tasks import tokenizer_text
from kit.device import Runtime
from kit.errors import UserError

SAMPLE_CHARACTERS = 2_000_000  # that the tokenizer is trained on


def open_vlm(
    config: ModelConfig,
    runtime: Runtime,
    folder: Path,
    lora_path: str | None = None,
    languages: Sequence[str] = ("en",),
) -> VLM:
    """The VLM of a run in `folder`, on the runtime's device.

    `lora_path`: a folder that train_lora wrote, an adapter's or a whole model's. Without one, a model that is built here has
    random weights and keeps its tokenizer, trained for `languages`, in `folder`/tokenizer.json, where the next call finds it.
    Raises UserError for an adapter of another base than the config's, and for a `row_step` or `start` of a model that is not built here.
    """
    if config.name not in BUILT:
        built = " and ".join(BUILT)
        if config.row_step > 1:
            raise UserError(
                f"model.row_step {config.row_step}: {config.name} has its own positions; only {built} can stretch them"
            )
        if config.start:
            raise UserError(f"model.start {config.start}: only {built} are trained on; name the folder as model.name")
    dtype = runtime.dtype if runtime.device.type == "cuda" else torch.float32
    options = {"device": runtime.device, "dtype": dtype, "qlora": config.qlora, "max_pixels": config.max_pixels}
    if lora_path is not None:
        check_base(Path(lora_path), config.name)
        return load_vlm(lora_path, **options)
    if config.name not in BUILT:
        return load_vlm(config.name, **options)
    if config.start:
        return load_start(config, options)
    path = folder / "tokenizer.json"
    if not path.is_file():
        train_bpe(text_of(languages), config.vocab_size).save(path)
    tokenizer = load_tokenizer(path)
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} tokens, and the config says {config.vocab_size}: choose another --output_dir"
        )
    vlm = build_vlm(config.name, tokenizer, config.max_pixels or MAX_PIXELS, config.row_step, config.rope_theta)
    vlm.model.to(runtime.device)
    return vlm


def load_start(config: ModelConfig, options: dict) -> VLM:
    """The trained model that `config.start` names, with its vocabulary and rows as long as the config says.

    Raises UserError for another rotary base than the config's.
    """
    vlm = load_vlm(config.start, **{**options, "dtype": torch.float32})  # all of it is trained on, as a new one is
    rope_theta = vlm.model.config.text_config.rope_parameters["rope_theta"]
    if rope_theta != config.rope_theta:
        raise UserError(
            f"model.start {config.start} has rope_theta {rope_theta:g}, and the config says {config.rope_theta:g}: change one"
        )
    vlm.model.config.row_step = config.row_step  # positions are no weights
    return vlm


def check_base(folder: Path, name: str) -> None:
    """Raises UserError if `folder` holds no model or adapter, or an adapter for another base than `name`."""
    if not folder.is_dir():
        raise UserError(f"no folder at --lora_path {folder}: train one with train_lora")
    if (folder / "adapter_config.json").is_file():
        base = adapter_base(folder)
        if base != name:
            raise UserError(
                f"the adapter in {folder} is for {base}, and the config's model is {name}: change one of them"
            )
    elif not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds neither an adapter (adapter_config.json) nor a model (config.json)")


def text_of(languages: Sequence[str]) -> Iterator[str]:
    """What a tokenizer for these languages is trained on, as many characters of each: Python's own text where it is English alone, else
    what the tasks say, so that a vocabulary for two has room for names."""
    if list(languages) == ["en"]:
        yield from python_text()
    else:
        for language in languages:
            yield from tokenizer_text(language, SAMPLE_CHARACTERS // len(languages))


def python_text() -> Iterator[str]:
    """Some of the text that every Python carries."""
    taken = 0
    for source in python_sources():
        for document in documents(source):
            for piece in document.pieces():
                yield piece
                taken += len(piece)
                if taken > SAMPLE_CHARACTERS:
                    return
