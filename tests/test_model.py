"""The network starts as documented, ignores padding, and refuses what does not fit."""

import copy
import shutil

import pytest
import torch

from corpus.chunks import open_built
from corpus.loader import collate
from corpus.ngram import NGram
from diffusion import Diffusion
from kit.compiling import compile_blocks
from kit.errors import UserError
from model import GatedSiLU, TokenBlock, build_jit_model, load_pretrained_jit, rope_angles, rotate
from palette import Layout, build_palette
from recipes import model_sizes

NAMED = [
    "JiT-Ti/4",
    "JiT-S/4",
    "JiT-B/2",
    "JiT-B/4",
    "JiT-B/8",
    "JiT-B/16",
    "JiT-B/32",
    "JiT-L/4",
    "JiT-L/16",
    "JiT-L/32",
]


def test_flops_are_those_that_torch_counts():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for name, vocab_size in (("JiT-Ti/4", 300), ("JiT-S/2", 1000)):
        network, N = build_jit_model(name, 16, True, vocab_size), 256
        z, mask, posterior = torch.randn(1, N, 3), torch.ones(1, N, dtype=torch.bool), torch.rand(1, N, vocab_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            network.head(network(z, torch.rand(1), mask, soft=posterior @ network.embedding))
        assert network.flops(N) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("name", [*NAMED, "JiT-H/16", "JiT-H/32"])
def test_every_preset_can_be_built(name):
    with torch.device("meta"):
        model = build_jit_model(name, 64)
    assert sum(p.numel() for p in model.parameters()) > 5e6


def test_the_base_model_has_the_papers_size():
    with torch.device("meta"):
        model = build_jit_model("JiT-B/4", 64)
    assert (len(model.blocks), model.pos_embed.shape[-1], model.blocks[0].attention.num_heads) == (12, 768, 12)


SMALL = dict(token_dim=16, token_depth=1)


def make(img_size=8, vocab_size=50, ngram=0, **sizes):
    torch.manual_seed(0)
    return build_jit_model("JiT-Ti/4", img_size, vocab_size=vocab_size, ngram=ngram, **{**SMALL, **sizes})


def opened(model):
    """Open the gates, so that every part of the network speaks."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def inputs(model, num_tokens, seed=0, batch=1):
    """Keyword arguments of one forward pass: every input that the network takes."""
    generator = torch.Generator().manual_seed(seed)
    dim = model.token_dim

    def normal(width):
        return torch.randn(batch, num_tokens, width, generator=generator)

    given = {
        "z": normal(3), "mask": torch.ones(batch, num_tokens, dtype=torch.bool),
        "cond_mask": torch.rand(batch, num_tokens, generator=generator) < 0.3, "prev": normal(dim if model.vocab_size else 3),
    }  # fmt: skip
    if model.vocab_size:
        given["soft"] = normal(model.soft_proj.in_features)
    return {**given, "t": torch.linspace(0.4, 0.7, batch)}


def per_token(given):
    return [name for name in given if name != "t"]


def test_a_new_network_is_its_head_bias():
    """adaLN-zero gates are closed and the head is zero: whatever goes in, the bias comes out."""
    model = make(ngram=3)
    model.head.bias.data.normal_()
    features = model(**inputs(model, 64, batch=2))
    assert torch.allclose(model.head(features), model.head.bias.expand(2, 64, 50))
    assert torch.equal(model.gate(features), model.gate.bias.expand(2, 64, 3))
    blocks = [*model.blocks, *model.token_in, *model.token_out]
    assert len(blocks) == 8 and all(block.modulation.weight.abs().sum() == 0 for block in blocks)


def test_a_new_color_network_predicts_gray():
    model = make(vocab_size=None)
    found = model(**inputs(model, 64, batch=2))
    assert found.shape == (2, 64, 3) and not found.any()


@pytest.mark.parametrize("num_tokens", [55, 64])
@pytest.mark.parametrize("vocab_size", [50, None])
def test_padding_changes_nothing_that_is_real(vocab_size, num_tokens):
    """Neither through attention nor through the windows of tokens, inside a patch as well as beyond the last one."""
    model = opened(make(16, vocab_size, ngram=3 if vocab_size else 0))
    given = inputs(model, 256)
    real = given["mask"] = torch.arange(256)[None] < num_tokens
    expected = model(**given)[real]
    other = dict(given)
    for name in per_token(given):
        if name == "cond_mask":
            other[name] = given[name] ^ ~real
        elif name != "mask":
            other[name] = torch.where(real[..., None], given[name], 9 * torch.randn_like(given[name]))
    assert torch.allclose(model(**other)[real], expected, atol=1e-5)
    shorter = {name: given[name][:, :64] if name != "t" else given[name] for name in given}
    assert torch.allclose(model(**shorter)[real[:, :64]], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["z", "soft", "prev"])
def test_every_token_sees_every_other(name):
    model = opened(make())
    given = inputs(model, 64)
    given[name].requires_grad_()
    model(**given)[0, 0].sum().backward()
    assert (given[name].grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize(
    ("vocab_size", "name"),
    [
        *((50, name) for name in ("z", "prev", "cond_mask", "t", "soft")),
        *((None, name) for name in ("z", "prev", "cond_mask", "t")),
    ],
)
def test_every_input_is_read(vocab_size, name):
    model = opened(make(vocab_size=vocab_size, ngram=2 if vocab_size else 0))
    given = inputs(model, 64)
    changed = {**given, name: ~given[name] if name == "cond_mask" else given[name] * 0.5}
    assert (model(**changed) - model(**given)).abs().max() > 1e-2


def test_without_soft_input_a_network_reads_colors_alone():
    model = opened(make(ngram=3, soft_input=False))
    given = inputs(model, 64)
    assert torch.equal(model(**given), model(**{**given, "soft": given["soft"] * 5}))
    assert not torch.equal(model(**given), model(**{**given, "z": given["z"] * 5}))


def test_before_ngrams_join_their_places_at_the_input_are_empty():
    model = opened(make(ngram=3))
    given = inputs(model, 64)
    alone = {**given, "soft": given["soft"][..., :16]}
    silent = {**given, "soft": given["soft"] * (torch.arange(48) < 16)}
    assert torch.allclose(model(**alone), model(**silent), atol=1e-6)
    assert not torch.allclose(model(**alone), model(**given), atol=1e-2)


def test_an_earlier_estimate_is_read_once_its_projection_has_learned():
    model = make()
    given = inputs(model, 64)
    alone = {**given, "prev": None}
    assert torch.equal(model(**given), model(**alone))
    torch.nn.init.normal_(model.prev_proj.weight)
    assert not torch.allclose(model(**given), model(**alone), atol=1e-2)


# ----------------------------------------------------------------------------------------------------------------------
# Order


def patches_exchanged(given):
    """Patches 1 and 2 of 4 trade places, in every input."""
    order = torch.arange(64).view(4, 16)[[0, 2, 1, 3]].flatten()
    return {name: given[name] if name == "t" else given[name][:, order] for name in given}, order


def blind_to_order(model, spared):
    """Take away what tells the network where a token stands, but for `spared`."""
    if spared != "position embedding":
        model.pos_embed.data.zero_()
    if spared != "rotary embedding":
        model.rope_cos.fill_(1)
        model.rope_sin.zero_()
    if spared == "position embedding":
        torch.nn.init.normal_(model.pos_embed)
    return model


@pytest.mark.parametrize("spared", ["nothing", "position embedding", "rotary embedding", "window"])
def test_order_is_told_by_position_embedding_rotary_embedding_and_window(spared):
    """Each alone suffices to notice that two patches were exchanged; without all three nobody would."""
    model = opened(make(token_depth=1 if spared == "window" else 0))
    model = blind_to_order(model, spared)
    given = inputs(model, 64)
    exchanged, order = patches_exchanged(given)
    gap = (model(**exchanged) - model(**given)[:, order]).abs().max()
    assert gap < 1e-5 if spared == "nothing" else gap > 1e-3


@torch.no_grad()
def test_rotary_embeddings_turn_a_product_by_the_distance_in_rows_and_columns():
    angles = rope_angles(5, 16)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    products = [rotate(x.expand(1, 1, 25, 16), angles.cos(), angles.sin())[0, 0] for x in (q, k)]
    products = (products[0] @ products[1].T).view(5, 5, 5, 5)
    assert torch.allclose(products[1, 1, 2, 3], products[2, 0, 3, 2], atol=1e-5)
    for other in (products[1, 1, 1, 3], products[1, 1, 2, 1], products[2, 3, 1, 1], products[1, 1, 1, 1]):
        assert (products[1, 1, 2, 3] - other).abs() > 1e-3
    assert torch.allclose(products[3, 3, 3, 3], (q * k).sum(), atol=1e-5)


@torch.no_grad()
def test_rotary_embeddings_can_turn_by_the_distance_in_reading_order():
    angles = rope_angles(4, 8, "order")
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    products = [rotate(x.expand(1, 1, 16, 8), angles.cos(), angles.sin())[0, 0] for x in (q, k)]
    products = products[0] @ products[1].T
    for distance in range(1, 16):  # across the ends of rows as well
        along = products.diagonal(distance)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-5)
        assert (along[0] - products[0, 0]).abs() > 1e-3


def token_block():
    torch.manual_seed(0)
    return opened(TokenBlock(6, 8, 0.0)).double()


def test_a_token_block_reads_each_token_and_its_two_neighbors():
    block, c = token_block(), torch.randn(1, 8).double()
    x = torch.randn(1, 10, 6).double()
    real = torch.ones(1, 10, 1).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x, c, real)[0], x)[:, :, 0]
    reach = jacobian.abs().sum((1, 3)) > 1e-9
    place = torch.arange(10)
    assert torch.equal(reach, (place[:, None] - place).abs() <= 1)
    left, right = jacobian[5, :, 4], jacobian[5, :, 6]
    assert not torch.allclose(left, right)
    mirrored = block(x.flip(1), c, real).flip(1)
    assert (mirrored - block(x, c, real)).abs().max() > 1e-3


def test_a_token_block_reads_padding_as_zeros():
    block, c = token_block(), torch.randn(2, 8).double()
    x = torch.randn(2, 10, 6).double()
    real = (torch.arange(10)[None] < torch.tensor([[6], [9]])).double()[..., None]
    expected = block(x, c, real) * real
    other = torch.where(real.bool(), x, 7 * torch.randn_like(x))
    assert torch.allclose(block(other, c, real) * real, expected, atol=1e-9)
    assert torch.allclose(block(x[:1, :6], c[:1], real[:1, :6])[0], expected[0, :6], atol=1e-9)
    assert not torch.allclose(block(x, c, torch.ones_like(real))[0, 5], expected[0, 5], atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# What is refused, and what comes from a file


@pytest.mark.parametrize("num_tokens", [15, 24, 80])
def test_tokens_that_fill_no_whole_patches_or_do_not_fit_are_refused(num_tokens):
    model = make()
    with pytest.raises(UserError, match=f"8x8 tokens in whole patches, not {num_tokens}"):
        model(**inputs(model, num_tokens))


@pytest.mark.parametrize("name", ["JiT-B", "B/4", "JiT-XXL/4", "JiT-B/0", "JiT-B/four", ""])
def test_unknown_models_are_refused(name):
    with pytest.raises(UserError, match="unknown model"):
        build_jit_model(name, 64)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(UserError, match="not a multiple of the patch size 4"):
        build_jit_model("JiT-N/4", 18)


def test_weights_come_back_from_a_checkpoint(trained):
    checkpoint = torch.load(trained / "best_model.pth", weights_only=True)
    model = load_pretrained_jit("JiT-N/4", trained / "best_model.pth", 8)
    assert torch.equal(model.unpatch.weight, checkpoint["ema_state_dict"]["unpatch.weight"])
    own = load_pretrained_jit("JiT-N/4", trained / "best_model.pth", 8, use_ema=False)
    assert torch.equal(own.unpatch.weight, checkpoint["model_state_dict"]["unpatch.weight"])


def test_a_checkpoint_of_an_older_network_is_refused(trained, tmp_path):
    checkpoint = torch.load(trained / "best_model.pth", weights_only=True)
    del checkpoint["config"]["ngram"]
    torch.save(checkpoint, tmp_path / "old.pth")
    with pytest.raises(UserError, match=r"old\.pth is of an older network"):
        load_pretrained_jit("JiT-N/4", tmp_path / "old.pth", 8)


def test_a_checkpoint_of_another_model_or_size_is_refused(trained):
    with pytest.raises(UserError, match="--img_size 8, not 64"):
        load_pretrained_jit("JiT-N/4", trained / "best_model.pth", 64)
    with pytest.raises(UserError, match="--model JiT-N/4, not JiT-B/4"):
        load_pretrained_jit("JiT-B/4", trained / "best_model.pth", 8)


def test_a_patch_comes_back_where_it_came_from():
    """Without attention and neighbors a token's features depend on its own patch alone, and on every token of it."""
    model = make(token_depth=0)
    given = inputs(model, 64)
    with torch.no_grad():
        before = model(**given)
        for patch in range(4):
            moved = {**given, "z": given["z"].clone()}
            moved["z"][:, 16 * patch + 5] += 1
            changed = (model(**moved) - before).abs().amax(-1)[0] > 1e-6
            assert torch.equal(changed, torch.arange(64) // 16 == patch)


def test_a_compiler_meets_few_kinds_of_blocks(data, monkeypatch):
    """Steps with and without a first pass, before and after n-grams join, validation: a graph for each kind of block, not for each block."""
    from torch._dynamo.testing import CompileCounter

    train = open_built(data / "train")
    ngram = NGram(train.folds(2), 300)
    network = build_jit_model("JiT-Ti/4", 8, vocab_size=300, ngram=3, token_dim=16, embed_dim=32, depth=4, num_heads=2)
    diffusion = Diffusion(network, build_palette("shuffled", 300), Layout(8, 4), ngram=ngram)
    counter = CompileCounter()
    compile_blocks(network, dynamic=True, fullgraph=True, backend=counter)
    for joined, self_condition, lengths in (
        (False, False, (64, 40)),
        (False, True, (30, 20, 17)),
        (True, True, (50, 34)),
    ):
        diffusion.joined = joined
        batch = collate([torch.randint(300, (n,)) for n in lengths], 16)
        tokens, mask, t = batch["tokens"], batch["mask"], torch.full((len(lengths),), 0.6)
        given = torch.zeros_like(mask) if joined else None
        loss, _ = diffusion(
            tokens, mask, t, torch.randn(*mask.shape, 3), given, torch.zeros_like(t).long(), self_condition
        )
        loss.backward()
        with torch.no_grad():
            diffusion.recover(torch.randn(*mask.shape, 3), t, mask, None, tokens, passes=2)
    assert counter.frame_count <= 8


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="torch.compile needs a C++ compiler"
)
def test_a_compiled_network_gives_the_same():
    """Of several lengths, as batches have them, forward and backward."""
    model = opened(make(ngram=3, depth=2, embed_dim=32, num_heads=2))
    compiled = copy.deepcopy(model)
    compile_blocks(compiled, dynamic=True)
    for num_tokens in (16, 48):
        given = inputs(model, num_tokens, batch=2)
        expected, found = model(**given), compiled(**given)
        assert torch.allclose(found, expected, atol=1e-4)
        expected.square().sum().backward()
        found.square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), compiled.parameters()):
        if one.grad is not None:
            assert torch.allclose(one.grad, other.grad, atol=1e-2, rtol=1e-3), name


def test_the_gate_and_its_gradient_are_those_of_silu():
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(GatedSiLU.apply(x), torch.nn.functional.silu(x[..., :4]) * x[..., 4:])
    assert torch.autograd.gradcheck(GatedSiLU.apply, x)


def test_the_parts_of_a_preset_are_counted_without_memory():
    row = model_sizes.measure("N", 512)
    assert row["trunk"] + row["token_path"] + row["vocabulary"] == pytest.approx(row["flops_per_token"])
    assert min(row[part] for part in ("trunk", "token_path", "vocabulary")) > 0 and 1e6 < row["parameters"] < 4e6
