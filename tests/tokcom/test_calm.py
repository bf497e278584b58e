"""Next-vector prediction draws whole chunks in their true proportions, where tokens drawn one by one mix them."""

import itertools
import json
import math

import pytest
import torch
from transformers import DynamicCache

from corpus import language_model
from corpus.builder import BuildSettings, build
from kit import device
from recipes import tokcom_steps
from tests.runs import rows
from tests.tokcom.conftest import SMALL
from tokcom import calm, train
from tokcom.config import ModelArgs
from tokcom.model import TokComVAE

SIZES = ("--hidden_size", "32", "--num_hidden_layers", "2", "--intermediate_size", "64", "--batch_size", "8", "--lr", "5e-3", "--head_layers", "2")  # fmt: skip
ON = ("--device", "cpu", "--precision", "fp32")
RUNTIME = device.start("cpu", 0, "fp32")


def settings(head: str):
    """The program's own defaults, small."""
    parser = language_model.parser_of("test")
    for name, value in (("head", head), ("head_layers", 2), ("passes", 16), ("draws", 8), ("token_loss", 0.0)):
        parser.add_argument(f"--{name}", default=value)
    return parser.parse_args(["--data_path", "-", "--output_dir", "-", *SIZES[:6], "--max_length", "16"])


class TwoWords(TokComVAE):
    """Chunks of two tokens, whose vector has a number for each: -1 for an even token, 1 for an odd one."""

    def posterior(self, tokens, mask, dropout=0.0):
        mean = tokens.float() % 2 * 2 - 1
        return mean, torch.full_like(mean, -6.0)

    def decode(self, latents):
        return -(torch.arange(self.args.vocab_size) % 2 * 2 - 1 - latents.flatten(1)[..., None]).square()


@pytest.fixture
def two_words():
    args = ModelArgs(32, 2, 2, 2, 2, 64, latent_dim=2, chunk_size=2, max_length=16, vocab_size=2, mask_token_id=2)
    return TwoWords(args).requires_grad_(False)


@pytest.mark.parametrize("head", calm.HEADS)
def test_a_chunk_is_drawn_as_a_whole(two_words, head):
    """Each chunk is 00 three times in four, else 11: the tokens' head cannot but mix them."""
    torch.manual_seed(0)
    model = calm.NextVector(calm.config_of(settings(head), two_words.args))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        texts = (torch.rand(16, 4, 1) < 0.25).long().expand(-1, -1, 2).flatten(1)
        loss = calm.loss(model, list(texts), RUNTIME, two_words)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = calm.generate(model, two_words, texts[:1].expand(500, -1), 2, torch.Generator().manual_seed(0))
    share = {
        pair: float((found == torch.tensor(pair)).all(1).float().mean()) for pair in itertools.product((0, 1), repeat=2)
    }
    mixed = share[0, 1] + share[1, 0]
    if head == "tokens":
        assert mixed == pytest.approx(2 * 0.25 * 0.75, abs=0.1)
    else:
        assert mixed < 0.1 and share[1, 1] == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("head", ("energy", "flow", "posterior"))
def test_token_loss_counts_in_training_alone(two_words, head):
    """Beside the head's own loss stand so many times the nats of each token by itself; what chooses the weights has none of them."""
    given, weight = settings(head), 1 if head == "posterior" else 0.5
    given.token_loss = 0.5  # which the posterior head does not heed
    torch.manual_seed(0)
    model = calm.NextVector(calm.config_of(given, two_words.args)).train()
    tokens, mask = torch.randint(0, 2, (3, 4, 2)), torch.ones(3, 4, 2, dtype=torch.bool)
    cost = {}
    for training in (True, False):
        torch.manual_seed(1)
        cost[training] = calm.chunk_costs(model.train(training), tokens, mask, two_words)
    nats = -model.of_tokens(model.contexts(tokens)).log_softmax(-1).gather(-1, tokens[..., None]).sum((-1, -2))
    torch.testing.assert_close(cost[True] - cost[False], weight * nats.flatten())
    calm.loss(model.train(), list(tokens.flatten(1)), RUNTIME, two_words).backward()
    assert all(parameter.grad is not None for parameter in model.of_tokens.parameters())


def test_below_a_posterior_head_tokens_alone_teach(two_words):
    """What vectors cost reaches the head, and not the transformer."""
    torch.manual_seed(0)
    model = calm.NextVector(calm.config_of(settings("posterior"), two_words.args)).eval()
    tokens, mask = torch.randint(0, 2, (3, 4, 2)), torch.ones(3, 4, 2, dtype=torch.bool)
    calm.chunk_costs(model, tokens, mask, two_words).sum().backward()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    below = [*model.model.parameters(), *model.read.parameters()]
    assert all(parameter.grad is None for parameter in below)
    calm.chunk_costs(model.train(), tokens, mask, two_words).sum().backward()
    assert all(parameter.grad is not None for parameter in below)


def test_the_posterior_head_begins_with_bayes_rule():
    """Four tokens, each a normal cloud around its own vector: the estimate is the mean over all that might have been."""
    torch.manual_seed(0)
    variance, head = 0.3, calm.PosteriorHead(8, 3, 1, 1, 4)
    head.initialize()
    with torch.no_grad():
        head.vectors.normal_()
        head.rest.fill_(variance)
        context, y, sigma = torch.randn(5, 8), torch.randn(5, 3), torch.tensor([0.1, 0.5, 1.0, 2.0, 8.0])[:, None]
        logits, found = head.posterior(y, sigma, context)
        for row in range(5):
            total = variance + float(sigma[row]) ** 2
            clouds = [torch.distributions.Normal(vector, total**0.5) for vector in head.vectors[0]]
            chances = head.prior(context[row])[0].softmax(-1) * torch.stack(
                [c.log_prob(y[row]).sum().exp() for c in clouds]
            )
            chances /= chances.sum()
            means = [(variance * y[row] + sigma[row] ** 2 * vector) / total for vector in head.vectors[0]]
            torch.testing.assert_close(logits[row, 0].softmax(-1), chances, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(
                found[row], sum(p * mean for p, mean in zip(chances, means)), rtol=1e-4, atol=1e-5
            )


class Sums(TwoWords):
    """Each token adds a vector of its own, which depends on its place, to what a VAE with some spread says."""

    def posterior(self, tokens, mask, dropout=0.0):
        adds = torch.randn(2, self.args.vocab_size, 3, generator=torch.Generator().manual_seed(0))
        mean = sum(adds[place][tokens[:, place]] for place in range(2))
        return 5 + 2 * mean, torch.full_like(mean, 1.0)


@torch.no_grad()
def test_vectors_of_tokens_add_up_to_those_of_their_chunks():
    """Also of tokens that are in no chunk; and what is left is the spread alone, as normalized as they are."""
    args = ModelArgs(32, 2, 2, 2, 2, 64, latent_dim=3, chunk_size=2, max_length=16, vocab_size=30, mask_token_id=30)
    vae = Sums(args)
    vae.latent_mean.fill_(5)
    vae.latent_std.fill_(2)
    vectors, rest = calm.vectors_of_tokens(vae, torch.randint(0, 20, (300, 2)))
    chunks = torch.randint(0, 30, (50, 2))
    wanted = (vae.posterior(chunks, None)[0] - 5) / 2
    torch.testing.assert_close(vectors[0][chunks[:, 0]] + vectors[1][chunks[:, 1]], wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(rest, torch.full((3,), math.e / 4), atol=0.01, rtol=0)


def test_an_energy_head_needs_a_pair_of_draws(refused, data, tmp_path):
    """A flow head does with one draw, to which its loss is the denoiser's error; the energy score is of pairs."""
    run = ("--vae_checkpoint", "-", "--data_path", data, "--output_dir", tmp_path)
    for draws in 1, 0.5, 2.5:
        assert "a whole number from 2" in refused(calm, *run, "--draws", draws)
    for draws in 0, 1.5:
        assert "a whole number from 1, or a share" in refused(calm, *run, "--head", "flow", "--draws", draws)


@pytest.mark.parametrize("draws", (0.25, 1, 2))
def test_few_draws_cost_as_much_on_average(two_words, draws):
    """Also one for each of a share of the vectors, which is drawn in training."""
    many = settings("flow")
    many.draws = 400
    torch.manual_seed(0)
    model = calm.NextVector(calm.config_of(many, two_words.args)).eval()
    tokens, mask = torch.randint(0, 2, (64, 4, 2)), torch.ones(64, 4, 2, dtype=torch.bool)
    wanted = calm.chunk_costs(model, tokens, mask, two_words).mean()
    model.train().config.draws = draws
    found = torch.stack([calm.chunk_costs(model, tokens, mask, two_words).mean() for _ in range(30)])
    assert abs(found.mean() - wanted) < 5 * found.std() / 30**0.5


def test_the_energy_score_is_that_of_its_definition():
    torch.manual_seed(0)
    drawn, truth = torch.randn(3, 2, 5), torch.randn(4, 2, 5)
    for place, found in enumerate(calm.energy_score(drawn, truth)):
        apart = [(x - y).norm() for x in drawn[:, place] for y in truth[:, place]]
        between = [(x - y).norm() for x, y in itertools.permutations(drawn[:, place], 2)]
        assert found == pytest.approx(2 * sum(apart) / len(apart) - sum(between) / len(between))


@pytest.mark.parametrize("head", calm.HEADS)
def test_contexts_know_what_came_before_alone(two_words, head):
    model = calm.NextVector(calm.config_of(settings(head), two_words.args)).eval()
    tokens = torch.randint(0, 2, (3, 6, 2))
    changed = tokens.clone()
    changed[:, 3] = 1 - changed[:, 3]
    same = (model.contexts(tokens) - model.contexts(changed)).abs().amax((0, 2)) < 1e-5
    assert same.tolist() == [True] * 4 + [False] * 2


@torch.no_grad()
def test_what_is_remembered_need_not_be_read_again(two_words):
    """Contexts chunk by chunk are those of all chunks at once."""
    model = calm.NextVector(calm.config_of(settings("flow"), two_words.args)).eval()
    tokens = torch.randint(0, 2, (3, 6, 2))
    cache = DynamicCache(config=model.config)
    parts = [model.read_on(part, cache) for part in tokens.split([3, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model.read_on(tokens))


def test_padding_costs_nothing(two_words):
    """A short text beside a long one costs what it costs alone."""
    model = calm.NextVector(calm.config_of(settings("tokens"), two_words.args)).eval()
    short, long = torch.randint(0, 2, (5,)), torch.randint(0, 2, (16,))
    alone = calm.costs(model, [short], RUNTIME, two_words)
    assert calm.costs(model, [short, long], RUNTIME, two_words)[0] == pytest.approx(alone[0], rel=1e-5)


@pytest.fixture(scope="module")
def vae(data, tmp_path_factory):
    """A VAE that has hardly learned."""
    output = tmp_path_factory.mktemp("vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv",
            [
                "train",
                "--stage",
                "vae",
                "--vae_epochs",
                "1",
                "--data_path",
                str(data),
                *SMALL,
                "--output_dir",
                str(output),
            ],
        )
        train.main()
    return output / "best_vae.pt"


def test_a_vae_of_another_tokenizer_is_refused(vae, refused, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{number**3} is the cube of {number}.\n" for number in range(3000)))
    other = BuildSettings(
        input=[str(tmp_path / "text.txt")], vocab_size=300, min_tokens=16, max_tokens=64, val_fraction=0.1
    )
    build(other, tmp_path / "data")
    run = ("--vae_checkpoint", vae, "--data_path", tmp_path / "data", "--output_dir", tmp_path / "run")
    assert "has another tokenizer" in refused(calm, *run, *ON, "--max_length", 64)


@pytest.mark.parametrize("head", calm.HEADS)
def test_a_run_reports(vae, data, head, call, tmp_path, capsys):
    run = ("--vae_checkpoint", vae, "--data_path", data, "--output_dir", tmp_path, "--head", head)
    assert (
        call(calm, *run, *SIZES, *ON, "--max_length", 64, "--epochs", 1, "--num_prompts", 20, "--optimizer", "muon")
        == 0
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 <= report["brier_lm"] < 1 and report["nfe_per_token"] == 1 / 4
    assert report["cost"] < max(rows(tmp_path, "val_loss").values()) * 1.2
    assert ("nll" in report) == (head == "tokens")
    capsys.readouterr()
    given = tmp_path / "report.json", *run[:6], "--head", head, *SIZES, *ON, "--max_length", 64
    assert call(tokcom_steps, *given) == 0
    assert int(capsys.readouterr().out) == pytest.approx(report["steps"], rel=0.05)  # as many as its own
    loaded = calm.NextVector.from_pretrained(tmp_path / "model")
    buffers, fresh = dict(loaded.named_buffers()), dict(calm.NextVector(loaded.config).named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in fresh.items() if name not in loaded.state_dict())
