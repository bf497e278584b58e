"""A checkpoint, ready to use: it carries the network, palette, tokenizer and schedule, so no flag is needed to load it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from corpus.loader import collate
from corpus.ngram import ALL, NGram
from corpus.tokenizer import Tokenizer
from diffusion import OBJECTIVES, Diffusion, Guide
from kit.checkpoint import load_checkpoint, reading, validated
from kit.errors import UserError
from kit.hub import HubModel
from kit.released import SUFFIX
from kit.times import TimeSampler
from model import ROPES, model_from_checkpoint
from palette import MAX_VOCAB, SCANS, Layout, Palette

RELEASED = Path(__file__).parent / "checkpoints"  # NAME.safetensors, which come with the repository
DEFAULT = "english"
GUIDANCE = 0.5
PATHS = (
    "data_path",
    "val_path",
    "output_dir",
    "tokenizer_path",
    "init_from",
    "resume",
    "wandb",
)  # settings that name places
NEEDED = ("model_state_dict", "ema_state_dict", "config", "palette", "tokenizer", "time_sampler", "ngram")


class SavedConfig(BaseModel):
    """What is read of the settings in a checkpoint, in ranges that no real network leaves."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(pattern=r"^JiT-[A-Za-z]+/[1-9]\d{0,3}$")]
    img_size: Annotated[int, Field(ge=1, le=4096)]
    vocab_size: Annotated[int, Field(ge=2, le=MAX_VOCAB)]
    objective: Literal[OBJECTIVES]
    scan: Literal[SCANS]
    ngram: Annotated[int, Field(ge=0, le=3)]
    predict_clean: bool
    token_dim: Annotated[int, Field(ge=1, le=2**16)] | None = None
    token_depth: Annotated[int, Field(ge=0, le=1024)] | None = None
    soft_input: bool | None = None
    rope: Literal[ROPES] | None = None


@dataclass(eq=False)
class Pretrained(HubModel):
    """`diffusion` in evaluation mode, `times` for sampling grids, `ngram` counted from the training tokens."""

    TITLE = "JiT on token colors"
    ABOUT = "Each token of a text is one pixel of an image; a diffusion transformer removes noise from it, and colors decode into tokens."
    USAGE = 'from pretrained import Pretrained\n\nloaded = Pretrained.from_pretrained("OWNER/NAME")  # or a folder'
    TAGS = ("text-generation", "diffusion", "token-colors")

    diffusion: Diffusion
    tokenizer: Tokenizer
    times: TimeSampler
    ngram: NGram
    config: dict
    step: int

    def state(self) -> dict:
        """As in a checkpoint, without what only training needs, and without paths of the machine; n-grams as long as the network's."""
        ngram, order = self.ngram.state(), max(2, self.config["ngram"])
        return {
            "ema_state_dict": self.diffusion.network.state_dict(),
            "config": {name: value for name, value in self.config.items() if name not in PATHS},
            "palette": self.diffusion.palette.state(), "tokenizer": self.tokenizer.to_json(), "time_sampler": self.times.state_dict(),
            "ngram": ngram | {"order": order, "gaps": ngram["gaps"][:order], "counts": ngram["counts"][:order]},
            "joined": self.diffusion.joined, "step": self.step,
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, device: torch.device) -> "Pretrained":
        return load_pretrained(path, device)

    def numbers(self, report: dict) -> str:
        half, bound = report["at_nearest_50"], report["likelihood"]
        lines = [
            f"- where the nearest color gets {half['nearest']:.1%} of {report['num_tokens']:,} test tokens, {half['model']:.1%} are recovered"
        ]
        lines += [f"- at most {bound['bits_per_byte']:.3f} bits per byte"] if bound else []
        return "\n".join(lines)

    @property
    def capacity(self) -> int:
        """Tokens that one picture holds."""
        return self.diffusion.layout.num_positions

    @property
    def device(self) -> torch.device:
        return self.diffusion.log_unigram.device

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all that decides which token a pixel means: tokenizer, palette, layout."""
        layout = self.diffusion.layout
        digest = hashlib.sha256(self.tokenizer.to_json().encode())
        digest.update(self.diffusion.palette.slots.cpu().int().numpy().tobytes())
        digest.update(f"{layout.img_size} {layout.patch_size} {layout.scan}".encode())
        return digest.hexdigest()[:16]

    def collate(self, chunks: list[torch.Tensor]) -> dict:
        """Chunks to a batch on the device, padded to whole patches."""
        batch = collate(chunks, self.diffusion.layout.multiple)
        return {name: value.to(self.device) for name, value in batch.items()}

    def grid(self, num_steps: int, t_start: float | None = None, even: float = 0.5) -> torch.Tensor:
        """Times (num_steps,) for sampling from t_start (None = pure noise) to an eighth of the palette's spacing; `even`: kit.times."""
        return self.times.grid(num_steps, t_start, self.diffusion.palette.spacing / 8, even)

    def guide(self, path: str | Path | None, weight: float | None) -> Guide | None:
        """What texts are guided away from while they are drawn: the checkpoint at `path`, or where None is named itself without its
        n-grams, if it has any; `weight` None is GUIDANCE, 0 no guide. Raises UserError where there is nothing to guide by."""
        if weight == 0 or (weight is None and not path and not self.diffusion.joined):
            return None
        weight = GUIDANCE if weight is None else weight
        if path:
            return Guide(load_pretrained(path, self.device).diffusion, weight)
        return Guide.without_ngrams(self.diffusion, weight)

    def chunk(self, tokens: np.ndarray) -> list[torch.Tensor]:
        """Tokens (n,) as consecutive long tensors of at most `capacity`, none of which splits a UTF-8 character."""
        continues = self.tokenizer.continues_character()
        parts, start = [], 0
        while start < len(tokens):
            end = min(start + self.capacity, len(tokens))
            while end < len(tokens) and end > start + 1 and continues[tokens[end]]:
                end -= 1
            parts.append(torch.from_numpy(tokens[start:end].astype(np.int64)))
            start = end
        return parts


def load_pretrained(
    path: str | Path, device: torch.device, img_size: int | None = None, use_ema: bool = True
) -> Pretrained:
    """Load a checkpoint of `train.py`, or a released one by its name. `img_size`, if given, must be the checkpoint's.

    Raises UserError if the file is missing, damaged, unsafe, of another system or of another image size.
    """
    if not Path(path).exists() and (RELEASED / f"{path}{SUFFIX}").is_file():
        path = RELEASED / f"{path}{SUFFIX}"
    checkpoint = load_checkpoint(path, NEEDED)
    config = checkpoint["config"]
    if isinstance(config, dict) and "ngram" not in config and "model" in config:
        raise UserError(f"{path} is of an older network, without a path at the resolution of tokens: train it again")
    validated(SavedConfig, config, path)
    if img_size is not None and img_size != config["img_size"]:
        raise UserError(f"{path} was trained with --img_size {config['img_size']}, not {img_size}")
    network = model_from_checkpoint(checkpoint, str(path), use_ema).eval()
    with reading(path):
        ngram, palette = NGram.from_state(checkpoint["ngram"]), Palette.from_state(checkpoint["palette"])
        times = TimeSampler.from_state(checkpoint["time_sampler"])
        tokenizer = Tokenizer.from_json(checkpoint["tokenizer"])
        sizes = {ngram.vocab_size, palette.vocab_size, tokenizer.vocab_size, config["vocab_size"]}
        if len(sizes) > 1:
            raise ValueError(f"its parts are for {' and '.join(map(str, sorted(sizes)))} tokens")
    layout, objective = Layout(config["img_size"], network.patch_size, config["scan"]), config["objective"]
    beside = ngram if config["ngram"] else None
    diffusion = Diffusion(network, palette, layout, objective, ngram.log_unigram[ALL], beside).to(device).eval()
    diffusion.joined = checkpoint.get("joined", diffusion.joined)  # a run that was stopped before n-grams joined
    return Pretrained(diffusion, tokenizer, times, ngram.to(device), config, checkpoint["step"])
