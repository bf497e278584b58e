"""Tokenizers encode piecewise as they encode whole, know where characters begin, and travel in a checkpoint."""

import numpy as np
import pytest

from corpus.documents import documents, find_sources
from corpus.tokenizer import Tokenizer, load_tokenizer, train_bpe
from kit.errors import UserError

TEXT = ["the color of a token\n", "noise moves it 话说天下大势 🙂\n"] * 200
NAMES = ["gpt2", "llama2", "qwen2.5"]


def test_a_trained_bpe_has_exactly_the_size_asked_for_and_loses_nothing():
    tokenizer = train_bpe(iter(TEXT), 290)
    assert tokenizer.vocab_size == 290
    text = "".join(TEXT) + "\x00\u2028 new: ö"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_sizes_that_cannot_be_reached_are_refused():
    with pytest.raises(UserError, match="at least 257"):
        train_bpe(iter(TEXT), 256)
    with pytest.raises(UserError, match="lower `vocab_size` 5000"):
        train_bpe(iter(TEXT), 5000)


def test_training_twice_gives_the_same_tokenizer():
    assert train_bpe(iter(TEXT), 300).to_json() == train_bpe(iter(TEXT), 300).to_json()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("book", ["zh_novels/sanguo_yanyi_simplified.txt", "en_text/gutenberg/pg1260_jane_eyre.txt"])
def test_pieces_decode_to_the_whole_text(shared, name, book):
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    (document,) = documents(find_sources([shared / book])[0])
    pieces = list(document.pieces())
    ids = np.concatenate(tokenizer.encode_pieces(pieces, [i == 0 for i in range(len(pieces))]))
    assert len(pieces) > 5
    assert tokenizer.decode(ids) == "".join(pieces)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_begin_inside_a_character_are_known(shared, name):
    """Cutting before any other token must leave two texts that are whole."""
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    ids = tokenizer.encode("鬱𠀀🙂 café Ω")
    continues = tokenizer.continues_character()[ids]
    assert continues.any() and not continues.all()
    for cut in range(1, len(ids)):
        halves = tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:])
        assert ("\ufffd" in halves) == continues[cut]


@pytest.mark.parametrize("name", NAMES)
def test_names_folders_and_json_load_alike(shared, name):
    folder = shared / "tokenizers" / name
    tokenizer = load_tokenizer(folder)
    assert load_tokenizer(folder / "tokenizer.json").end_id == tokenizer.end_id
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.end_id == tokenizer.end_id and again.vocab_size == tokenizer.vocab_size
    assert again.encode("Hello world").tolist() == tokenizer.encode("Hello world").tolist()


def test_text_cannot_spell_an_end_token():
    tokenizer = train_bpe(iter(TEXT), 300)
    assert tokenizer.end_id not in tokenizer.encode("a <|endoftext|> b")


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(UserError, match="half a surrogate pair at character 2"):
        train_bpe(iter(TEXT), 300).encode_pieces(["ab", "ab\ud83d"], [True, False])


def test_missing_and_damaged_tokenizers_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_an_unknown_hub_name_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot load tokenizer 'nobody/nothing'"):
        load_tokenizer("nobody/nothing")
