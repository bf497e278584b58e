"""The schema of the YAML files. An unknown key, or a value out of range, is refused with its place in the file."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from image_context.augment import AUGMENTATIONS
from image_context.codecs import CODECS, build_codec
from image_context.codecs.baselines import ConvCodec
from image_context.tasks import TASKS
from kit.errors import UserError
from kit.muon import OPTIMIZERS

Positive = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # of a codec; names files
REFERENCE_CODECS = {"codebook_external": "qr"}  # names of the reference document
T = TypeVar("T")
Some = Annotated[list[T], Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelConfig(Section):
    name: str = "Qwen/Qwen2-VL-2B-Instruct"  # a Hugging Face name, a folder, or tiny / small: built here
    vocab_size: Annotated[int, Field(ge=300)] = 504  # of tiny's and small's tokenizer, special tokens not counted
    row_step: Positive = 1  # rotary positions that a row of an image, or a pooled vector, is long, in tiny and small
    rope_theta: Annotated[float, Field(gt=1)] = 100.0  # rotary base of tiny and small; larger to find by content
    start: str | None = None  # folder of a trained tiny or small, to train on with its vocabulary
    max_pixels: Positive | None = None  # of an image, above which it is scaled down; null = no page of a codec is
    qlora: bool = False  # base in 4 bits


class CodecConfig(Section):
    codec: Literal[tuple(CODECS)]
    options: dict[str, Any] = {}  # of the codec; `tokenizer: model` gives it the model's own
    train: Fraction = 1.0  # of num_samples_per_codec that generate_train_data writes for it


class DataConfig(Section):
    tasks: Some[Literal[TASKS]] = ["json", "needle", "random"]
    lengths: Some[Positive] = [512, 1024, 2048, 4096]  # tokens of a document, by the model's tokenizer
    languages: Some[Literal["en", "zh"]] = ["en"]  # of the hay
    samples: Positive = 20  # of each task, length and language, in evaluation
    codecs: Annotated[dict[Name, CodecConfig], Field(min_length=1)] = {
        "text": CodecConfig(codec="text"),
        "render": CodecConfig(codec="render"),
        "codebook": CodecConfig(codec="codebook"),
        "qr": CodecConfig(codec="qr"),
    }
    augmentations: Some[Literal[AUGMENTATIONS]] = ["clean"]
    geometry: bool = False  # whether heavy also moves the page


class GenerationConfig(Section):
    num_samples_per_codec: Positive = 500
    lengths: Some[Positive] | None = None  # of training documents (default: those of data)
    augmentations: Some[Literal[AUGMENTATIONS]] | None = None


class LoraConfig(Section):
    r: Positive = 16
    alpha: Positive = 32
    dropout: Fraction = 0.05


class TrainingConfig(Section):
    num_epochs: Positive = 3
    max_steps: Positive | None = None  # optimizer steps, instead of epochs
    time_budget: str | None = None  # such as 6m, instead of epochs
    batch_size: Positive = 1
    gradient_accumulation_steps: Positive = 8
    optimizer: Literal[OPTIMIZERS] = "adamw"  # muon: for the matrices but embeddings and output
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_fraction: Fraction = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    save_steps: Positive = 200
    log_interval: Positive = 10


class EvaluationConfig(Section):
    batch_size: Positive = 4
    max_new_tokens: Positive | None = None  # (default: the answer's length and a little more)
    backend: Literal["transformers", "vllm"] = "transformers"


class Config(Section):
    """A whole experiment: one file for data, training and evaluation."""

    seed: int = 0
    output_dir: str = "checkpoints/image_context"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    generation: GenerationConfig = GenerationConfig()
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change with any value but those that change no result."""
        text = json.dumps(self.model_dump(exclude={"output_dir": True, "evaluation": {"batch_size"}}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def compressors(self) -> list[int]:
        """Ratios of the learned convolutions that the model needs."""
        return sorted(
            {int(c.options.get("ratio", ConvCodec.ratio)) for c in self.data.codecs.values() if c.codec == "conv"}
        )

    def codecs(self, vocabulary) -> dict:
        """The codecs by the names they have in the file. `vocabulary`: the model's tokenizer, a kit Tokenizer."""
        built = {}
        for name, codec in self.data.codecs.items():
            options = dict(codec.options)
            if options.get("tokenizer") == "model" or codec.codec in ("truncate", "pool", "conv"):
                options["tokenizer"] = vocabulary
            built[name] = build_codec(codec.codec, **options)
        return built


def load_config(path: str | Path) -> Config:
    """Read a YAML file. Raises UserError for a missing file, for what is no YAML, and for keys or values that do not belong."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no mapping of settings")
    try:
        return Config.model_validate(_as_reference(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"{path}: {place}: {reason}") from error


def _as_reference(values: dict) -> dict:
    """The reference document's form of a file in ours: `generation` stands in `data` there, with a list of codecs."""
    data = values.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("generation"), dict):
        return values
    data, generation = dict(data), dict(data["generation"])
    del data["generation"]
    names = generation.pop("codecs", None)
    if isinstance(names, list):
        data["codecs"] = {name: {"codec": REFERENCE_CODECS.get(name, name)} for name in names}
    return {**values, "data": data, "generation": generation}
