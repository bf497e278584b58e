"""Models on the Hugging Face Hub: `save_pretrained`, `from_pretrained`, `push_to_hub`, with safetensors and a model card.

A folder of one holds model.safetensors (kit/released.py, in full precision), config.json with the settings of its training, and
README.md, the card. Folders work without a network.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download

from kit.errors import UserError
from kit.released import save_released
from kit.textfile import replace_text

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CARD = """---
{metadata}
---

# {title}

{about}

```python
{usage}
```

## Training

| setting | value |
|---|---|
{settings}

{numbers}
"""


class HubModel(ModelHubMixin, ABC):
    """A model that its subclass can write as nested dicts of tensors and plain values (`state`), read back (`load`), and describe."""

    TITLE, ABOUT, USAGE = "", "", ""  # of the card
    TAGS: tuple[str, ...] = ()

    @abstractmethod
    def state(self) -> dict:
        """What it takes to use the model, with the settings of its training under "config"."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path, device: torch.device) -> "HubModel":
        """The model of a checkpoint file."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str | torch.device = "cpu", **options) -> "HubModel":
        """The model of a folder that `save_pretrained` wrote, of a checkpoint file, or of a repository OWNER/NAME on the hub.

        `options` as in huggingface_hub: revision, token, cache_dir, force_download, local_files_only. Raises UserError if there is none,
        or no way to it.
        """
        if Path(name).is_file():
            return cls.load(name, torch.device(device))
        try:
            return super().from_pretrained(name, device=device, **options)
        except UserError:
            raise
        except Exception as error:  # the client of the hub raises several families, some of them its transport's
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise UserError(
                f"no model at {name}: no such folder here, and the hub did not give it ({type(error).__name__}: {reason})"
            ) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        state, card = self.state(), save_directory / "README.md"
        if card.exists() and "library_name: tokencolor" in card.read_text(encoding="utf-8"):
            card.unlink()  # of an earlier call
        save_released(save_directory / WEIGHTS, state, rounded=False)
        replace_text(save_directory / CONFIG, json.dumps(state["config"], indent=2, default=str) + "\n")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id,
        revision=None,
        cache_dir=None,
        force_download=False,
        local_files_only=False,
        token=None,
        device="cpu",
        **_,
    ):
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            path = hf_hub_download(
                model_id, WEIGHTS, revision=revision, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, token=token,
            )  # fmt: skip
        return cls.load(path, torch.device(device))

    def generate_model_card(self, report: dict | None = None) -> ModelCard:
        """The card, made from the settings of the run and the numbers of its report.json, if given."""
        config = self.state()["config"]
        rows = (
            f"| {name} | {value} |"
            for name, value in config.items()
            if value is not None and not isinstance(value, dict | list)
        )
        numbers = (
            "Not measured yet: run the evaluation and pass its report.json." if report is None else self.numbers(report)
        )
        metadata = ModelCardData(library_name="tokencolor", license="mit", tags=["tokencolor", *self.TAGS])
        return ModelCard(CARD.format(
            metadata=metadata.to_yaml(), title=self.TITLE, about=self.ABOUT, usage=self.USAGE, settings="\n".join(rows),
            numbers="## Numbers\n\n" + numbers,
        ))  # fmt: skip

    @abstractmethod
    def numbers(self, report: dict) -> str:
        """The main results of a report.json, as Markdown."""
