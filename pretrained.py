"""A checkpoint, ready to use: it carries the network, palette, tokenizer and schedule, so no flag is needed to load it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from corpus.ngram import ALL, NGram
from corpus.tokenizer import Tokenizer
from dataset import collate
from diffusion import Diffusion
from kit.checkpoint import load_checkpoint
from kit.errors import UserError
from kit.hub import HubModel
from kit.released import SUFFIX
from kit.times import TimeSampler
from model import model_from_checkpoint
from palette import Layout, Palette

RELEASED = Path(__file__).parent / "checkpoints"  # NAME.safetensors, which come with the repository
DEFAULT = "english"
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

    def grid(self, num_steps: int, t_start: float | None = None) -> torch.Tensor:
        """Times (num_steps,) for sampling from t_start (None = pure noise) to an eighth of the palette's spacing."""
        return self.times.grid(num_steps, t_start, self.diffusion.palette.spacing / 8)

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
    if img_size is not None and img_size != config["img_size"]:
        raise UserError(f"{path} was trained with --img_size {config['img_size']}, not {img_size}")
    network = model_from_checkpoint(checkpoint, str(path), use_ema).eval()
    layout = Layout(config["img_size"], network.patch_size, config["scan"])
    ngram = NGram.from_state(checkpoint["ngram"])
    beside = ngram if config["ngram"] else None
    palette, objective = Palette.from_state(checkpoint["palette"]), config["objective"]
    diffusion = Diffusion(network, palette, layout, objective, ngram.log_unigram[ALL], beside).to(device).eval()
    diffusion.joined = checkpoint.get("joined", diffusion.joined)  # a run that was stopped before n-grams joined
    times = TimeSampler.from_state(checkpoint["time_sampler"])
    tokenizer = Tokenizer.from_json(checkpoint["tokenizer"])
    return Pretrained(diffusion, tokenizer, times, ngram.to(device), config, checkpoint["step"])
