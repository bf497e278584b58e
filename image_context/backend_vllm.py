"""Answers by vLLM, for sweeps that are large: the same prompts and images, its own batching. Needs `pip install vllm` and a GPU.

Not yet run by us: no machine with vLLM was at hand. `evaluation.backend: transformers` is what every published number comes from.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from image_context.codecs import Encoded
from image_context.config import Config
from image_context.dataset import prompt_text
from image_context.model import VLM
from image_context.tasks import Sample
from kit.errors import UserError


class VLLM:
    """A vLLM engine for the config's model. Raises UserError where vLLM is not installed.

    An adapter is merged into its base first: vLLM applies LoRA to the language model alone, and says nothing of the
    vision tower's part, without which an unseen code stays unseen.
    """

    def __init__(self, config: Config, vlm: VLM, lora_path: str | None):
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                "evaluation.backend vllm needs vLLM: pip install vllm, or set it to transformers"
            ) from error
        if any(codec.codec in ("pool", "conv") for codec in config.data.codecs.values()):
            raise UserError(
                "embeddings cannot be handed to vLLM: use evaluation.backend transformers for pool and conv"
            )
        if config.model.qlora:
            raise UserError("evaluation.backend vllm knows no model.qlora: use transformers")
        model = lora_path or config.model.name
        if lora_path is not None and (Path(lora_path) / "adapter_config.json").is_file():
            self.merged = TemporaryDirectory(prefix="merged-")  # lives as long as the engine
            model = self.merged.name
            merge(vlm, model)
        limits = {"max_pixels": vlm.processor.image_processor.size.longest_edge}
        self.engine = LLM(model=model, seed=config.seed, limit_mm_per_prompt={"image": 64}, mm_processor_kwargs=limits)
        self.vlm = vlm  # for its chat template

    def answer(self, encoded: list[Encoded], samples: list[Sample], inputs: dict, max_new_tokens: int) -> list[str]:
        """The model's answer to each question, by greedy decoding; `inputs`, ready tensors, are for the other backend."""
        from vllm import SamplingParams

        requests = [
            {
                "prompt": prompt_text(self.vlm, e, sample.question),
                **({"multi_modal_data": {"image": e.images}} if e.images else {}),
            }
            for e, sample in zip(encoded, samples)
        ]
        settings = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
        outputs = self.engine.generate(requests, settings, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]


def merge(vlm: VLM, folder: str) -> None:
    """Write a model with its adapter merged in, and its processor, to `folder`."""
    vlm.model = vlm.model.merge_and_unload()
    vlm.save(Path(folder))
