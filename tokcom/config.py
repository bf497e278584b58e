"""Every setting of a model and of its training, as plain dataclasses that go to JSON and come back."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from corpus.ngram import DENSE_VOCAB
from kit.errors import UserError

MOST, MOST_LAYERS = 2**20, 1024  # of any size
VERSION = 2  # of what a denoiser's weights mean: before 2, the decoder beside it read vectors that were shrunk


@dataclass
class ModelArgs:
    """Architecture. The names are those in checkpoints of the public TokCom v5.2, where it has the same.

    Its `omni_token_id` is our `mask_token_id`; in a checkpoint's model_args both stand, see `to_saved`.
    """

    hidden_size: int = 896
    num_hidden_layers: int = 24  # of the denoiser
    vae_num_hidden_layers: int = 24  # of the VAE: half in its encoder, half in its decoder
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    intermediate_size: int = 4864
    latent_dim: int = 128
    chunk_size: int = 4  # tokens per vector
    max_length: int = 1024  # tokens per sequence
    vocab_size: int = 0  # the tokenizer's; set when the data is known
    ngram: int = 0  # order of the n-grams inside the denoiser, 2 or 3, or 0 for none
    mask_token_id: int = 0  # what the decoder reads in place of tokens: the first id after the vocabulary

    @property
    def max_chunks(self) -> int:
        return self.max_length // self.chunk_size

    def check(self) -> None:
        """Raises UserError for sizes that do not fit each other, or that no real network has."""
        for field in fields(self):
            limit = MOST_LAYERS if field.name.endswith("layers") else MOST
            if getattr(self, field.name) > limit:
                raise UserError(f"--{field.name} {getattr(self, field.name)}: need at most {limit}")
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "latent_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: need at least 1")
        if not 1 <= self.chunk_size <= 16:
            raise UserError(f"--chunk_size {self.chunk_size}: need 1 to 16")
        if self.max_length < self.chunk_size or self.max_length % self.chunk_size:
            raise UserError(f"--max_length {self.max_length} is no multiple of --chunk_size {self.chunk_size}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"--hidden_size {self.hidden_size} does not give {self.num_attention_heads} heads an even width"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"--num_attention_heads {self.num_attention_heads} is no multiple of --num_key_value_heads {self.num_key_value_heads}"
            )
        if self.ngram not in (0, 2, 3):
            raise UserError(f"--ngram {self.ngram}: choose 0, 2 or 3")
        if self.ngram and self.vocab_size > DENSE_VOCAB:
            raise UserError(
                f"--ngram {self.ngram} stands beside at most {DENSE_VOCAB:,} tokens, not {self.vocab_size:,}: pass --ngram 0"
            )
        if self.vae_num_hidden_layers < 2 or self.num_hidden_layers < 1:
            raise UserError("the VAE needs at least 2 layers, the denoiser 1")


@dataclass
class TrainConfig:
    """Training. Learning rates are peaks; fractions and probabilities lie in [0, 1]."""

    batch_size: int = 8
    vae_epochs: int = 5
    vae_lr: float = 1e-4
    diffusion_epochs: int = 10
    diffusion_lr: float = 3e-5
    warmup_fraction: float = 0.05  # of a stage's steps
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    kl_weight: float = 1e-3
    kl_floor: float = 0.5  # nats per dimension below which the KL term does not press (CALM, arXiv 2510.27688)
    token_dropout: float = 0.1  # tokens hidden from the encoder
    random_chunks: float = (
        0.2  # of stage one's, made of tokens drawn evenly: any text comes back, not only one like the training text
    )
    latent_noise: float = 0.3  # standard deviations of a latent, added before decoding
    noise_std: float = 1.0  # of the noise; latents are normalized to a standard deviation of 1
    mse_weight: float = 1.0  # of the flow's own loss beside the cross-entropy
    time_sampling: str = "adaptive"
    t_mean: float = 0.0  # of log(t / (1 - t)) before the schedule adapts
    t_std: float = 1.5
    self_cond_prob: float = 0.5
    prompt_prob: float = 0.3  # sequences with a prefix given clean
    ngram_start: float = 0.5  # fraction of stage two after which n-grams join the network
    vae_fraction: float = 0.35  # of --time_budget
    sample_every: int = 1  # epochs between sample tables
    num_sample_steps: int = 50
    num_samples: int = 2

    def check(self) -> None:
        """Raises UserError for values out of range."""
        for name in ("batch_size", "vae_epochs", "diffusion_epochs", "sample_every", "num_sample_steps", "num_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: need at least 1")
        for name in (
            "warmup_fraction",
            "ema_decay",
            "token_dropout",
            "random_chunks",
            "self_cond_prob",
            "prompt_prob",
            "ngram_start",
            "vae_fraction",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)}: need a number from 0 to 1")
        for name in ("vae_lr", "diffusion_lr", "grad_clip", "noise_std", "t_std"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--{name} {getattr(self, name)}: need a positive number")
        for name in ("kl_weight", "kl_floor", "latent_noise", "mse_weight", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name} {getattr(self, name)}: need 0 or more")
        if not abs(self.t_mean) < float("inf"):
            raise UserError(f"--t_mean {self.t_mean}: need a finite number")


PRESETS = {
    # The sizes of the public TokCom v5.2.
    "v5.2": {},
    # About a hundred million parameters, for one GPU.
    "base": {
        "hidden_size": 512, "num_hidden_layers": 16, "vae_num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 8, "intermediate_size": 1408, "batch_size": 32, "vae_lr": 5e-4, "diffusion_lr": 4e-4,
        "vae_epochs": 10, "diffusion_epochs": 60,
    },
    # Minutes on two CPU cores.
    "tiny": {
        "hidden_size": 192, "num_hidden_layers": 3, "vae_num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "intermediate_size": 512, "latent_dim": 64, "max_length": 256, "batch_size": 16,
        "vae_lr": 3e-3, "diffusion_lr": 2e-3, "vae_epochs": 1, "diffusion_epochs": 2, "token_dropout": 0.05, "vae_fraction": 0.12,
        "ngram": 3,
    },
}  # fmt: skip


def check_version(saved: dict, path: str | Path) -> None:
    """Raises UserError if a checkpoint's denoiser was trained by a version that reads vectors otherwise. Its VAE can still be used."""
    if saved["stage"] == "diffusion" and saved.get("version") != VERSION:
        raise UserError(
            f"{path} is of a version whose denoiser reads vectors otherwise: train it again, --stage diffusion --vae_checkpoint {path}"
        )


def from_dict(kind: type, values: dict):
    """A `kind` from the values that concern it; the others are passed over."""
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


def to_saved(args: ModelArgs) -> dict:
    """model_args of a checkpoint, with the mask token also under the name that the public TokCom v5.2 gives it."""
    return {**asdict(args), "omni_token_id": args.mask_token_id}


def to_dict(*parts) -> dict:
    """The values of several dataclasses in one flat dict."""
    return {name: value for part in parts for name, value in asdict(part).items()}
