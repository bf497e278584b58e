"""The VLMs: any Qwen2-VL by name or folder, and two of the same architecture that are built here and trained from scratch.

    vlm = load_vlm("Qwen/Qwen2-VL-2B-Instruct")     # or a folder, or an adapter's folder
    vlm = build_vlm("tiny", tokenizer)              # random weights, no download

A VLM is a model with its processor; what the two kinds differ in ends in this file.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed, VisionAttention, apply_rotary_pos_emb_vision

from corpus.tokenizer import Tokenizer
from image_context.codecs.encoded import BLOCK
from kit.errors import UserError

MAX_PIXELS = 4096 * BLOCK**2  # of an image, as the codecs lay out pages
IGNORED = -100  # label of what carries no loss
POOLED = "<|vision_pad|>"  # stands where a vector made of embeddings goes
COMPRESSORS = "compressors.safetensors"

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Sizes of the VLMs that are built here; `vision` is the patch transformer, `text` the language model.
BUILT = {
    "tiny": {
        "vision": {"depth": 1, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2},
        "text": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4},
    },
    "small": {
        "vision": {"depth": 4, "embed_dim": 256, "num_heads": 4, "mlp_ratio": 4},
        "text": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
    },
}  # fmt: skip

# Modules that LoRA adapts. The usual list (language only) leaves an unseen code unseen; these add the vision tower and the merger.
LORA_TARGETS = (
    r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    r"|.*visual.*\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2|mlp\.gate_proj|mlp\.up_proj|mlp\.down_proj)"
    r"|.*visual\.merger\.mlp\.[02]"
)


@dataclass
class VLM:
    """`model` and `processor`; `name` is what loads it again."""

    model: nn.Module
    processor: Qwen2VLProcessor
    name: str

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def vocabulary(self) -> Tokenizer:
        """The same tokenizer in the repository's own class, without special tokens in its texts."""
        from tokenizers import Tokenizer as Backend

        return Tokenizer(Backend.from_str(self.tokenizer.backend_tokenizer.to_str()), self.tokenizer.eos_token)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def save(self, folder: str | Path) -> None:
        """Weights (an adapter's alone, with its base's name, where there is one), learned convolutions, processor and tokenizer."""
        base = unwrapped(self.model)
        compressors = base._modules.pop("compressors", None)  # transformers would not load them again
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if compressors is not None:
            base.compressors = compressors
            save_file(compressors.state_dict(), Path(folder) / COMPRESSORS)


def build_vlm(
    name: str, tokenizer: Tokenizer, max_pixels: int = MAX_PIXELS, row_step: int = 1, rope_theta: float = 100.0
) -> VLM:
    """A VLM of Qwen2-VL's architecture with random weights, one of BUILT, with `tokenizer`'s vocabulary.

    Qwen2-VL gives time the fastest rotary frequencies, then height, then width, with a base of a million: from random weights,
    attention cannot tell neighboring rows apart and never learns which block to read (LOG.md). These VLMs rotate fast, and give time,
    which stands still in an image, no frequencies: rows lie as far apart as tokens of text do.
    """
    if name not in BUILT:
        raise UserError(f"no size {name!r}; choose from {', '.join(BUILT)}, or name a model or a folder")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_with_specials(tokenizer), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS), clean_up_tokenization_spaces=False,
    )  # fmt: skip
    size = {"shortest_edge": 4 * BLOCK**2, "longest_edge": max_pixels}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(size=size), fast, Qwen2VLVideoProcessor(size=size), chat_template=CHAT_TEMPLATE
    )  # fmt: skip
    ids = {token: fast.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text, vision = BUILT[name]["text"], BUILT[name]["vision"]
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    narrow = half // 8  # of the rotary frequencies, for width; the faster ones go to height
    config = Qwen2VLConfig(
        text_config={
            **text, "num_key_value_heads": text["num_attention_heads"], "vocab_size": len(fast),
            "max_position_embeddings": 32768, "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"], "initializer_range": text["hidden_size"] ** -0.5,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": rope_theta, "mrope_section": [0, half - narrow, narrow]
            },
        },
        vision_config={**vision, "hidden_size": text["hidden_size"], "patch_size": BLOCK // 2,
                       "initializer_range": text["hidden_size"] ** -0.5},
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    config.pooled_token_id, config.row_step = ids[POOLED], row_step
    # on CPUs the fused kernel's bf16 backward is several times slower than plain products
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation=attention)
    return VLM(quicken(model), processor, name)


def load_vlm(
    name_or_path: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, qlora: bool = False,
    max_pixels: int | None = None,
) -> VLM:  # fmt: skip
    """A VLM from a Hugging Face name, a folder that holds a model, or a folder that holds an adapter.

    `qlora` loads a base in 4 bits, its vision tower left whole (needs bitsandbytes and a GPU). Raises UserError for what is
    none of these, and for an adapter whose base cannot be loaded.
    """  # fmt: skip
    folder = Path(name_or_path)
    adapter = folder if (folder / "adapter_config.json").is_file() else None
    base = adapter_base(folder) if adapter else name_or_path
    if folder.exists() and not adapter and not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds neither a model (config.json) nor an adapter (adapter_config.json)")
    options = {"dtype": dtype}
    if qlora:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=["visual", "lm_head"],
        )
    try:
        model = AutoModelForImageTextToText.from_pretrained(base, **options)
        processor = AutoProcessor.from_pretrained(folder if adapter and _has_processor(folder) else base)
        spare_pages(processor.image_processor, max_pixels)
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot load the VLM {name_or_path}{f' on its base {base}' if adapter else ''}: {reason}"
        ) from error
    quicken(unwrapped(model)).config.pooled_token_id = processor.tokenizer.convert_tokens_to_ids(POOLED)
    if (folder / COMPRESSORS).is_file():
        load_compressors(model, folder / COMPRESSORS)
    if not qlora:
        model.to(device)
    return VLM(model, processor, str(name_or_path))


def spare_pages(image_processor, max_pixels: int | None = None) -> None:
    """Let it scale down images above `max_pixels` alone; None: no page that a codec lays out, whose modules that would blur."""
    size = image_processor.size
    size.longest_edge = max_pixels or max(MAX_PIXELS, size.longest_edge)


def adapter_base(folder: Path) -> str:
    """The base that an adapter's folder names. Raises UserError for a damaged adapter_config.json."""
    path = folder / "adapter_config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} names no base model: the adapter is damaged") from error


class EvenVisionAttention(VisionAttention):
    """Attention within each image, all at once where all are of one size: transformers calls a kernel for every image."""

    def forward(self, hidden_states, cu_seqlens, position_embeddings=None, **kwargs):
        lengths = cu_seqlens.diff()
        if len(lengths) == 1 or (lengths != lengths[0]).any():
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        q, k, v = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (x.view(len(lengths), -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        if q.is_cuda:
            x = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        else:  # on CPUs the bf16 kernel's backward is several times slower than the fp32 one
            with torch.autocast("cpu", enabled=False):
                x = nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=self.scaling)
        return self.proj(x.transpose(1, 2).reshape(len(hidden_states), -1))


class LinearPatchEmbed(PatchEmbed):
    """The same product as the convolution whose kernel is the patch, without its slow backward pass."""

    def forward(self, hidden_states):
        weight, bias = self.proj.weight.flatten(1), self.proj.bias
        return nn.functional.linear(hidden_states.to(weight.dtype).view(-1, weight.shape[1]), weight, bias)


def quicken(model: nn.Module) -> nn.Module:
    """Put the two faster forms above in a Qwen2-VL's vision tower; weights and results stay the same."""
    visual = model.model.visual
    if type(visual.patch_embed) is PatchEmbed:
        visual.patch_embed.__class__ = LinearPatchEmbed
    for block in visual.blocks:
        if type(block.attn) is VisionAttention:
            block.attn.__class__ = EvenVisionAttention
    return model


def add_lora(vlm: VLM, r: int, alpha: int, dropout: float, qlora: bool = False) -> None:
    """Put LoRA (arXiv 2106.09685) on the language model and on the vision tower; nothing else is trained."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = prepare_model_for_kbit_training(vlm.model) if qlora else vlm.model
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    vlm.model = get_peft_model(model, config)


def add_compressors(model: nn.Module, ratios: list[int]) -> None:
    """Give a model one convolution over token embeddings for each ratio it has none for, kernel and stride alike; it starts as the mean."""
    base = unwrapped(model)
    if not ratios:
        return
    weight = base.get_input_embeddings().weight
    width = weight.shape[1]
    if not hasattr(base, "compressors"):
        base.compressors = nn.ModuleDict()
    for ratio in ratios:
        if str(ratio) in base.compressors:
            continue
        conv = nn.Linear(ratio * width, width, bias=False, device=weight.device, dtype=torch.float32)
        with torch.no_grad():
            conv.weight.copy_(torch.eye(width).repeat(1, ratio) / ratio)
        base.compressors[str(ratio)] = conv


def load_compressors(model: nn.Module, path: Path) -> None:
    """The convolutions that `VLM.save` wrote. Raises UserError for a file that is none of these, or another model's."""
    try:
        weights = load_file(path)
        add_compressors(model, [int(name.removesuffix(".weight")) for name in weights])
        unwrapped(model).compressors.load_state_dict(weights)
    except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{path} holds no convolutions of this model: train again") from error


class AnswerLoss(nn.Module):
    """Mean cross-entropy in nats per answer token, so that DDP can wrap it. Logits are made where labels are, nowhere else."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, fraction of answer tokens that are right when all before them are given) of a batch of `dataset.prepare`."""
        inputs = embed_pools(self.model, {name: value for name, value in batch.items() if name != "labels"})
        base = unwrapped(self.model)
        hidden = base.model(**inputs).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        chosen = labels != IGNORED
        logits = base.lm_head(hidden[chosen]).float()
        right = (logits.argmax(-1) == labels[chosen]).float().mean()
        return nn.functional.cross_entropy(logits, labels[chosen]), right.detach()


def unwrapped(model: nn.Module) -> nn.Module:
    """The Qwen2-VL inside an adapter; LoRA has put itself into its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def row_step(model: nn.Module) -> int:
    """Rotary positions that a row of an image, or a pooled vector, takes up in a model; Qwen2-VL's take one."""
    return getattr(unwrapped(model).config, "row_step", 1)


def positions(model: nn.Module, batch: dict) -> torch.Tensor:
    """Rotary positions (3, B, N) in time, height and width under which a row of an image, or a pooled vector, is `row_step` long.

    Where it is as long as the tokens it carries are many, each token of an answer lies at the same distance from what carries it.
    """
    base = unwrapped(model)
    ids, kinds, mask = batch["input_ids"], batch["mm_token_type_ids"], batch["attention_mask"]
    if "image_grid_thw" in batch:
        place, _ = base.model.get_rope_index(ids, kinds, batch["image_grid_thw"], attention_mask=mask)
    else:
        place = (mask.cumsum(1) - 1).clamp_min(0).expand(3, -1, -1)
    time, height, width = place
    images = kinds == 1
    row = (height - time) * images
    starts = (images & (width == time)) | (ids == base.config.pooled_token_id)
    before = starts.cumsum(1) - (images | starts).long()  # rows and vectors that came before
    return place + (row_step(model) - 1) * torch.stack([before - row, before, before - row])


def embed_pools(model: nn.Module, batch: dict) -> dict:
    """The batch with means of embeddings, or learned convolutions of them, where their places are, and positions where they are stretched.

    Raises UserError for a convolution of a ratio that the model was not trained with.
    """
    mixed = "pool_ids" in batch and "image_grid_thw" in batch  # without ids the model cannot tell images' positions
    if mixed or row_step(model) > 1:
        batch = batch | {"position_ids": positions(model, batch)}
    if "pool_ids" not in batch:
        return batch
    batch = dict(batch)
    pools, ids, table = batch.pop("pool_ids"), batch.pop("input_ids"), model.get_input_embeddings()
    given = (pools >= 0).unsqueeze(-1)
    vectors = table(pools.clamp_min(0)) * given
    means = vectors.sum(1) / given.sum(1)
    learned = batch.pop("pool_learned")
    for ratio in learned.unique().tolist():
        if ratio == 0:
            continue
        compressors = getattr(unwrapped(model), "compressors", {})
        if str(ratio) not in compressors:
            raise UserError(f"the model has no learned convolution of ratio {ratio}: train it on codec conv first")
        rows = learned == ratio
        made = compressors[str(ratio)](vectors[rows, :ratio].flatten(1))
        means = means.masked_scatter(rows.unsqueeze(-1), made.to(means.dtype))
    places = ids == unwrapped(model).config.pooled_token_id
    batch.pop("mm_token_type_ids")
    embeds = table(ids)
    batch["inputs_embeds"] = embeds.masked_scatter(
        places.unsqueeze(-1), means.to(embeds.dtype)
    )  # autocast sums in fp32
    return batch


@torch.no_grad()
def answer(vlm: VLM, batch: dict, max_new_tokens: int, min_new_tokens: int = 0) -> list[str]:
    """The VLM's answers to a batch of `dataset.prepare`, by greedy decoding, special tokens left out."""
    inputs = embed_pools(vlm.model, batch)
    ids = vlm.model.generate(
        **inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens, pad_token_id=vlm.tokenizer.pad_token_id, eos_token_id=vlm.tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )  # fmt: skip
    given = 0 if "inputs_embeds" in inputs else batch["input_ids"].shape[1]
    return vlm.tokenizer.batch_decode(ids[:, given:], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def trainable_fraction(model: nn.Module) -> str:
    """A line such as `12,345 of 67,890 parameters are trained (18.18 %)`."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})"


def _with_specials(tokenizer: Tokenizer):
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return backend


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
