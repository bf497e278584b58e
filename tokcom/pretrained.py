"""A checkpoint of both stages, ready for use, and its way to the Hugging Face Hub."""

from dataclasses import dataclass
from pathlib import Path

import torch

from corpus.tokenizer import Tokenizer
from kit.errors import UserError
from kit.hub import HubModel
from tokcom.config import VERSION, to_saved
from tokcom.inference import load_checkpoint
from tokcom.model import DenoisedModel, TokComVAE

PLACES = ("data_path", "output_dir", "tokenizer_path", "vae_checkpoint", "resume", "wandb")  # of a machine
KNOWN_OTHERWISE = ("tokenizer", "stage", *PLACES)


@dataclass(eq=False)
class Pretrained(HubModel):
    """`vae` and `denoiser` in evaluation mode on their device, and the `config` of their training."""

    TITLE = "TokCom"
    ABOUT = "A VAE turns a chunk of tokens into one vector; flow matching writes the vectors."
    USAGE = (
        'from tokcom.pretrained import Pretrained\n\nloaded = Pretrained.from_pretrained("OWNER/NAME")  # or a folder'
    )
    TAGS = ("text-generation", "flow-matching")

    vae: TokComVAE
    denoiser: DenoisedModel
    tokenizer: Tokenizer
    config: dict

    @property
    def window(self) -> int:
        """Tokens of the longest text."""
        return self.denoiser.args.max_length

    def state(self) -> dict:
        return {
            "stage": "diffusion", "version": VERSION, "model_args": to_saved(self.denoiser.args), "config": self.config, "tokenizer": self.tokenizer.to_json(),
            "vae_model_state_dict": self.vae.state_dict(), "denoised_model_state_dict": self.denoiser.state_dict(),
            "times": self.denoiser.times.state_dict(), "ngrams": self.denoiser.ngrams and self.denoiser.ngrams.state(),
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, device: torch.device) -> "Pretrained":
        """Raises UserError if the file holds no TokCom, or its VAE alone."""
        vae, denoiser, _, config = load_checkpoint(path, device)
        if denoiser is None:
            raise UserError(f"{path} holds a VAE only: pass best_diffusion.pt")
        tokenizer = Tokenizer.from_json(config["tokenizer"])
        config = {name: value for name, value in config.items() if name not in KNOWN_OTHERWISE}
        return cls(vae, denoiser, tokenizer, config)

    def numbers(self, report: dict) -> str:
        return (
            f"- {report['reconstruction']:.2%} of {report['num_tokens']:,} test tokens come back from the vectors\n"
            f"- at most {report['nll']:.3f} nats per token; BrierLM {report['brier_lm']:.4f}"
        )
