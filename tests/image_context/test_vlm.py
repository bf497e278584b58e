"""What a VLM is given: counts, labels and masks; and that the real processors are given the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_context.backend_vllm import merge
from image_context.codecs import Encoded, build_codec
from image_context.dataset import Record, batches, costs, prepare
from image_context.model import (
    IGNORED,
    POOLED,
    AnswerLoss,
    add_compressors,
    add_lora,
    answer,
    build_vlm,
    embed_pools,
    load_vlm,
    positions,
    trainable_fraction,
)
from image_context.tasks import make_sample
from kit.errors import UserError


@pytest.fixture(scope="module")
def codec(bpe):
    return build_codec(
        "codebook", payload="tokens", tokenizer=bpe, module=7, symbols_per_block=3, frame="none", columns=1
    )  # fmt: skip


def documents(bpe, *lengths):
    return [make_sample("random", length, "train", i, bpe) for i, length in enumerate(lengths)]


def test_loss_lies_on_the_answer_and_its_end_alone(vlm, bpe, codec):
    samples = documents(bpe, 24, 40)
    batch = prepare(
        vlm, [codec.encode(s.document) for s in samples], [s.question for s in samples], [s.answer for s in samples]
    )
    end = vlm.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for row, sample in enumerate(samples):
        labels = batch["labels"][row]
        assert labels[labels != IGNORED].tolist() == [*bpe.encode(sample.answer).tolist(), end]
        seen = batch["labels"][row] != IGNORED
        assert torch.equal(batch["input_ids"][row][seen], labels[seen])
        assert not (seen & ~batch["attention_mask"][row].bool()).any()


def test_a_reader_learns_the_reply_where_there_is_one(vlm, bpe):
    samples = [make_sample("needle", 200, "train", 0, bpe), *documents(bpe, 24)]
    records = [Record(str(i), "text", "clean", sample, [], sample.document) for i, sample in enumerate(samples)]
    (batch,) = batches(records, Path(), vlm, 2, [0, 1])
    end = vlm.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for labels, said in zip(batch["labels"], (samples[0].reply, samples[1].answer)):
        assert labels[labels != IGNORED].tolist() == [*bpe.encode(said).tolist(), end]


def test_image_tokens_are_as_many_as_blocks_and_never_cut(vlm, bpe, codec):
    for length in (24, 600):
        sample = documents(bpe, length)[0]
        encoded = codec.encode(sample.document)
        batch = prepare(vlm, [encoded], [sample.question])
        image = vlm.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        assert int((batch["input_ids"] == image).sum()) == codec.visual_tokens(encoded) >= -(-(length + 1) // 3)
        found = costs(vlm, batch, 0, encoded, sample)
        assert found["visual_tokens"] == codec.visual_tokens(encoded) and found["context_tokens"] == length
        assert found["total_tokens"] == batch["input_ids"].shape[1] == found["visual_tokens"] + found["text_tokens"]


def test_pages_reach_the_patches_bit_for_bit(vlm, codec, bpe):
    encoded = codec.encode(documents(bpe, 30)[0].document)
    batch = prepare(vlm, [encoded], ["?"])
    mean, std = (torch.tensor(getattr(vlm.processor.image_processor, name)) for name in ("image_mean", "image_std"))
    patches = batch["pixel_values"].view(-1, 3, 2, 14, 14)[:, :, 0] * std[:, None, None] + mean[:, None, None]
    page = np.asarray(encoded.images[0])
    first = (patches[:4] * 255).round().byte().view(2, 2, 3, 14, 14).permute(0, 3, 1, 4, 2).reshape(28, 28, 3)
    assert np.array_equal(first.numpy(), page[:28, :28])


def test_padding_changes_no_answer(vlm, bpe, codec):
    vlm.model.eval()
    samples = documents(bpe, 12, 60)
    encoded = [codec.encode(s.document) for s in samples]
    together = answer(vlm, prepare(vlm, encoded, [s.question for s in samples]), 6)
    alone = [answer(vlm, prepare(vlm, [e], [s.question]), 6)[0] for e, s in zip(encoded, samples)]
    assert together == alone


def test_the_quick_forms_compute_what_transformers_does(vlm, bpe, codec):
    samples = documents(bpe, 20, 20)
    batch = prepare(vlm, [codec.encode(s.document) for s in samples], ["?", "?"])
    visual = vlm.model.model.visual
    quick = visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
    classes = [(m, m.__class__) for m in (visual.patch_embed, *(b.attn for b in visual.blocks))]
    try:
        for module, kind in classes:
            module.__class__ = kind.__mro__[1]
        plain = visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
    finally:
        for module, kind in classes:
            module.__class__ = kind
    assert torch.allclose(quick, plain, atol=1e-5)


def test_pooled_embeddings_are_means_of_their_groups(vlm, bpe):
    sample = documents(bpe, 10)[0]
    codec = build_codec("pool", ratio=4, tokenizer=bpe)
    encoded = codec.encode(sample.document)
    batch = prepare(vlm, [encoded], ["?"])
    place = vlm.tokenizer.convert_tokens_to_ids(POOLED)
    assert int((batch["input_ids"] == place).sum()) == 3 == codec.visual_tokens(encoded)
    embedded = embed_pools(vlm.model, batch)["inputs_embeds"][batch["input_ids"] == place]
    table = vlm.model.get_input_embeddings().weight
    ids = torch.from_numpy(bpe.encode(sample.document).astype("int64"))
    assert torch.allclose(embedded[0], table[ids[:4]].mean(0), atol=1e-6)
    assert torch.allclose(embedded[2], table[ids[8:]].mean(0), atol=1e-6)
    loss, _ = AnswerLoss(vlm.model)(prepare(vlm, [encoded], ["?"], ["yes"]))
    assert torch.isfinite(loss) and isinstance(answer(vlm, batch, 3)[0], str)


def test_rows_of_an_image_are_as_far_apart_as_tokens_of_text(vlm):
    rotary, steps = vlm.model.model.language_model.rotary_emb, torch.arange(8)
    text = torch.stack([steps, steps, steps])[:, None]
    rows = torch.stack([0 * steps, steps, 0 * steps])[:, None]  # time and width of a code in one column stand still
    for of_text, of_rows in zip(rotary(torch.zeros(1), text), rotary(torch.zeros(1), rows)):
        half = of_text.shape[-1] // 2
        assert torch.equal(of_text[..., : half // 2], of_rows[..., : half // 2])  # the faster ones


@pytest.mark.parametrize("name", ["codebook", "pool"])
def test_where_rows_are_as_long_as_what_they_carry_each_token_is_as_far_from_its_row(bpe, codec, name):
    torch.manual_seed(0)
    vlm = build_vlm("tiny", bpe, row_step=3)
    used = codec if name == "codebook" else build_codec("pool", ratio=3, tokenizer=bpe)
    samples = documents(bpe, 12, 60)
    encoded, questions = [used.encode(s.document) for s in samples], [s.question for s in samples]
    batch = prepare(vlm, encoded, questions, [s.answer for s in samples])
    carriers = (batch["mm_token_type_ids"] == 1) | (batch["input_ids"] == vlm.tokenizer.convert_tokens_to_ids(POOLED))
    for place, carrier, labels in zip(positions(vlm.model, batch).unbind(1), carriers, batch["labels"]):
        rows, tokens = place[1][carrier], place[1][labels != IGNORED]
        assert (rows.diff() == 3).all() and (tokens.diff() == 1).all()
        assert rows[-1] + 3 <= tokens[0] and (place[:, ~carrier] == place[0, ~carrier]).all()

    # drawn one by one with a cache, tokens are those of one pass over all of them
    vlm.model.eval()
    inputs = embed_pools(vlm.model, prepare(vlm, encoded, questions))
    drawn = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=5)[:, -5:]
    for row, (e, question) in enumerate(zip(encoded, questions)):
        alone = prepare(vlm, [e], [question])
        for key, value in (
            ("input_ids", drawn[row]),
            ("attention_mask", torch.ones(5)),
            ("mm_token_type_ids", torch.zeros(5)),
        ):
            alone[key] = torch.cat([alone[key], value[None].to(alone[key].dtype)], 1)
        logits = vlm.model(**embed_pools(vlm.model, alone)).logits[0, -6:-1]
        assert torch.equal(logits.argmax(-1), drawn[row])


def test_a_learned_convolution_weighs_each_place_and_comes_back(bpe, tmp_path):
    vlm = build_vlm("tiny", bpe)
    sample = documents(bpe, 10)[0]
    codec = build_codec("conv", ratio=4, tokenizer=bpe)
    batch = prepare(vlm, [codec.encode(sample.document)], ["?"])
    with pytest.raises(UserError, match="no learned convolution of ratio 4"):
        embed_pools(vlm.model, batch)
    add_compressors(vlm.model, [4])
    place = batch["input_ids"] == vlm.tokenizer.convert_tokens_to_ids(POOLED)
    table = vlm.model.get_input_embeddings().weight
    ids = torch.from_numpy(bpe.encode(sample.document).astype("int64"))
    assert torch.allclose(embed_pools(vlm.model, batch)["inputs_embeds"][place][0], table[ids[:4]].mean(0), atol=1e-6)
    weight = vlm.model.compressors["4"].weight
    with torch.no_grad():
        weight.normal_(std=0.1)
    made = embed_pools(vlm.model, batch)["inputs_embeds"][place]
    kernel = weight.view(len(weight), 4, -1)
    by_hand = [
        sum(kernel[:, i] @ table[token] for i, token in enumerate(group)) for group in (ids[:4], ids[4:8], ids[8:])
    ]
    assert torch.allclose(made, torch.stack(by_hand), atol=1e-5)
    vlm.save(tmp_path / "model")
    again = load_vlm(str(tmp_path / "model"))
    assert torch.equal(made, embed_pools(again.model, batch)["inputs_embeds"][place])
    (tmp_path / "model" / "compressors.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no convolutions"):
        load_vlm(str(tmp_path / "model"))


def test_a_convolution_is_trained_beside_an_adapter(bpe, tmp_path):
    build_vlm("tiny", bpe).save(tmp_path / "base")
    adapted = load_vlm(str(tmp_path / "base"))
    add_lora(adapted, 4, 8, 0.0)
    add_compressors(adapted.model, [2])
    codec = build_codec("conv", ratio=2, tokenizer=bpe)
    AnswerLoss(adapted.model)(prepare(adapted, [codec.encode("a text")], ["?"], ["yes"]))[0].backward()
    assert adapted.model.get_base_model().compressors["2"].weight.grad.any()
    adapted.save(tmp_path / "adapter")
    again = load_vlm(str(tmp_path / "adapter"))
    learned = again.model.get_base_model().compressors["2"].weight.clone()
    add_compressors(again.model, [2, 4])  # as when it is trained on: what was learned stays
    assert torch.equal(again.model.get_base_model().compressors["2"].weight, learned)
    assert "4" in again.model.get_base_model().compressors


def test_images_and_means_share_a_batch(vlm, bpe, codec):
    sample = documents(bpe, 10)[0]
    pool = build_codec("pool", ratio=4, tokenizer=bpe)
    both = [codec.encode(sample.document), pool.encode(sample.document)]
    vlm.model.eval()
    loss = AnswerLoss(vlm.model)

    def of(encoded):
        return loss(prepare(vlm, encoded, ["?"] * len(encoded), [sample.answer] * len(encoded)))[0]

    assert torch.allclose(of(both), (of(both[:1]) + of(both[1:])) / 2, atol=1e-4)


def test_lora_reaches_language_and_vision_and_comes_back(bpe, tmp_path):
    base = build_vlm("tiny", bpe)
    base.save(tmp_path / "base")
    adapted = load_vlm(str(tmp_path / "base"))
    add_lora(adapted, 4, 8, 0.0)
    trained = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert any("visual" in n and "attn.qkv" in n for n in trained) and any("merger.mlp" in n for n in trained)
    assert any("language_model" in n and "q_proj" in n for n in trained) and all("lora" in n for n in trained)
    assert "parameters are trained" in trainable_fraction(adapted.model)
    with torch.no_grad():
        for parameter in adapted.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
    adapted.save(tmp_path / "adapter")
    again = load_vlm(str(tmp_path / "adapter"))
    batch = prepare(adapted, [Encoded(text="a text")], ["?"], ["yes"])
    adapted.model.eval(), again.model.eval()
    assert torch.allclose(AnswerLoss(adapted.model)(batch)[0], AnswerLoss(again.model)(batch)[0], atol=1e-5)
    assert not torch.allclose(
        AnswerLoss(load_vlm(str(tmp_path / "base")).model)(batch)[0], AnswerLoss(again.model)(batch)[0]
    )


def test_vllm_is_given_the_vision_adapter_too(bpe, codec, tmp_path):
    build_vlm("tiny", bpe).save(tmp_path / "base")
    adapted = load_vlm(str(tmp_path / "base"))
    add_lora(adapted, 4, 8, 0.0)
    with torch.no_grad():  # the vision tower's part alone
        for name, parameter in adapted.model.named_parameters():
            if "visual" in name and "lora_B" in name:
                parameter.normal_(std=0.3)
    sample = documents(bpe, 24)[0]
    batch = prepare(adapted, [codec.encode(sample.document)], [sample.question], [sample.answer])

    def loss(vlm):
        return AnswerLoss(vlm.model.eval())(batch)[0]

    expected = loss(adapted)
    merge(adapted, str(tmp_path / "merged"))
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    merged = load_vlm(str(tmp_path / "merged"))
    assert torch.allclose(loss(merged), expected, atol=1e-4)
    assert not torch.allclose(loss(load_vlm(str(tmp_path / "base"))), expected, atol=1e-3)


def test_what_is_no_vlm_is_refused(bpe, tmp_path):
    with pytest.raises(UserError, match="holds neither a model"):
        load_vlm(str(tmp_path))
    with pytest.raises(UserError, match="no size 'huge'"):
        build_vlm("huge", bpe)


def test_the_real_processor_is_given_the_same(vlm, bpe, codec, shared):
    """Qwen2-VL's own preprocessing settings, chat template and tokenizer: same counts, labels on the answer alone."""
    import json

    from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    from image_context.model import VLM, spare_pages

    folder = shared / "qwen_vl_processor" / "qwen2-vl"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shared / "tokenizers" / "qwen2.5")
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    images = Qwen2VLImageProcessor.from_pretrained(folder)
    processor = Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=template)
    real = VLM(vlm.model, processor, "real")
    qwen_codec = build_codec(
        "codebook", payload="tokens", tokenizer=real.vocabulary, colors=8, module=4, frame="none", columns=1, max_side=200
    )  # fmt: skip
    sample = make_sample("json", 512, "eval", 0, real.vocabulary)
    encoded = qwen_codec.encode(sample.document)
    batch = prepare(real, [encoded, Encoded(text="short")], [sample.question, "?"], [sample.answer, "yes"])
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["input_ids"] == image).sum(1).tolist() == [qwen_codec.visual_tokens(encoded), 0]
    labels = batch["labels"][0]
    assert tokenizer.decode(labels[labels != IGNORED]) == sample.answer + "<|im_end|>"
    assert batch["image_grid_thw"].ndim == 2
    rendered = build_codec("render").encode("word " * 3000)
    counted = prepare(real, [rendered], ["?"])
    assert int((counted["input_ids"] == image).sum()) == build_codec("render").visual_tokens(rendered)
    assert isinstance(rendered.images[0], Image.Image)
    large = build_codec("codebook", colors=8, module=4).encode("乐" * 10_000)  # above the processor's own limit
    assert large.images[0].width * large.images[0].height > images.size.longest_edge
    spare_pages(images)
    counted = prepare(real, [large], ["?"])
    assert int((counted["input_ids"] == image).sum()) == build_codec("codebook").visual_tokens(large)
