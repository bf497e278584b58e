"""Generated texts are scored by a judge and by counting; what makes sense scores better."""

import numpy as np
import pytest
import torch

from baselines import autoregressive, judge
from corpus.chunks import open_built
from corpus.ngram import NGram
from corpus.tokenizer import load_tokenizer
from kit import device
from kit.errors import UserError
from tests.baselines.test_autoregressive import SMALL
from tests.conftest import run_main


@pytest.fixture(scope="module")
def scorer(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    run_main(autoregressive, "--data_path", data, "--output_dir", folder, *SMALL, "--epochs", 2, "--num_samples", 16)
    train, tokenizer = open_built(data / "train"), load_tokenizer(data / "tokenizer.json")
    return judge.Judge(judge.load_baseline(folder, 300), train, tokenizer, device.start("cpu", 0, "fp32"))


def test_what_makes_sense_scores_better(scorer, data):
    generator = torch.Generator().manual_seed(0)
    ngram, test = NGram(open_built(data / "train").folds(1), 300), open_built(data / "test")
    rows = {
        "real": [test[i][:40] for i in range(len(test)) if test.lengths[i] >= 40],
        "network": list(autoregressive.generate(scorer.model, torch.zeros(20, 0, dtype=torch.long), 40)),
        "trigrams": list(judge.draw_trigrams(ngram, 20, 40, generator)),
        "unigrams": list(judge.draw_unigrams(ngram, 20, 40, generator)),
    }
    found = {name: scorer.score(texts) for name, texts in rows.items()}
    for row in ("real", "network", "trigrams"):
        assert found[row]["gen_ppl"] < found["unigrams"]["gen_ppl"] / 1.5, row
        assert found[row]["seen"] > found["unigrams"]["seen"], row
    assert found["trigrams"]["seen"] > found["unigrams"]["seen"] + 0.2
    assert found["real"]["words"] > max(0.95, found["unigrams"]["words"])


def test_texts_like_real_ones_have_the_higher_mauve(scorer, data):
    ngram, train = NGram(open_built(data / "train").folds(1), 300), open_built(data / "train")
    real = [train[i][:40] for i in range(len(train)) if train.lengths[i] >= 40][:400]
    drawn = list(judge.draw_unigrams(ngram, 200, 40, torch.Generator().manual_seed(0)))
    mauve = scorer.mauve_against(real[1::2])
    alike, other = mauve(real[::2]), mauve(drawn)
    assert other < alike - 0.2 and alike <= 1


def test_counting(scorer, data):
    train, tokenizer = open_built(data / "train"), scorer.tokenizer
    same = scorer.count([train[0][:30]] * 2)
    assert same["seen"] == same["words"] == 1 and same["distinct"] == pytest.approx(0.5)
    constant = scorer.count([torch.full((30,), 65)])
    assert constant["entropy"] == 0 and constant["distinct"] == pytest.approx(1 / 27) and constant["seen"] == 0
    words = torch.from_numpy(tokenizer.encode("the color of qwxz is a token").astype(np.int64))
    assert scorer.count([words])["words"] == pytest.approx(4 / 5)  # without the first and the last


def test_trigram_texts_follow_their_model(data):
    ngram = NGram(open_built(data / "train").folds(1), 300)
    texts = judge.draw_trigrams(ngram, 200, 30, torch.Generator().manual_seed(0))
    drawn = ngram.bits_per_token(texts.numpy(), 3)
    held_out = ngram.bits_per_token([chunk.numpy() for chunk in open_built(data / "test")], 3)
    assert texts.shape == (200, 30) and drawn < 1.3 * held_out


def test_what_is_no_baseline_is_refused(data, scorer, tmp_path):
    with pytest.raises(UserError, match="holds no model of a baseline"):
        judge.load_baseline(data, 300)
    scorer.model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="trained with 300 tokens, not 512"):
        judge.load_baseline(tmp_path, 512)
