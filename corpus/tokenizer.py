"""Tokenizers: a Hugging Face name or folder, a `tokenizer.json`, or a byte-level BPE trained on the corpus."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from kit.errors import UserError
from kit.textfile import replace_text

END_TOKENS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
_GUARD = "\n"


class Tokenizer:
    """A `tokenizers` backend that knows its end token and where characters begin.

    Text is encoded without special tokens, and text that spells a special token stays text: only the data builder puts
    end tokens in. `vocab_size` counts every id up to the highest, added tokens included.
    """

    def __init__(self, backend: Backend, end_token: str | None = None):
        self.backend = backend
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = True
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        self.end_token = end_token or next((t for t in END_TOKENS if t in vocab), None)
        if self.end_token not in vocab:
            raise UserError(f"this tokenizer has no end token ({end_token or 'none of ' + ', '.join(END_TOKENS)})")
        self.end_id = vocab[self.end_token]
        # SentencePiece-like tokenizers put a space before the text; the pieces of one document must not get one each
        self._adds_prefix = self._ids("x")[-1:] != self._ids("\nx")[-1:]
        self._guard_ids = self._ids(_GUARD)

    def _ids(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> np.ndarray:
        """Ids (n,) uint32 of a whole text. Raises UserError as `encode_pieces` does."""
        return self.encode_pieces([text], [True])[0]

    def encode_pieces(self, pieces: list[str], first: list[bool]) -> list[np.ndarray]:
        """Ids of each piece, on all cores. `first` says which pieces begin a document; the others continue one.

        Raises UserError for half a surrogate pair, which is no character.
        """
        for piece in pieces:
            try:
                piece.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"the text holds half a surrogate pair at character {error.start}") from error
        if self._adds_prefix:
            pieces = [piece if begins else _GUARD + piece for piece, begins in zip(pieces, first)]
        encoded = self.backend.encode_batch_fast(pieces, add_special_tokens=False)
        ids = [np.asarray(e.ids, dtype=np.uint32) for e in encoded]
        if self._adds_prefix:
            ids = [each if begins else each[len(self._guard_ids) :] for each, begins in zip(ids, first)]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out; ids that do not make whole characters give U+FFFD."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        return self.backend.decode_batch([list(map(int, ids)) for ids in batch], skip_special_tokens=True)

    def continues_character(self) -> np.ndarray:
        """Bool (vocab_size,): True for tokens that begin inside a UTF-8 character, before which no chunk may be cut."""
        flags = np.zeros(self.vocab_size, dtype=bool)
        byte_level = _uses_byte_level(self.backend)
        letters = _byte_letters() if byte_level else {}
        for token, index in self.backend.get_vocab(with_added_tokens=False).items():
            byte_token = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
            if byte_token and not byte_level:
                first = int(byte_token[1], 16)
            else:
                first = letters.get(token[:1], 0)
            flags[index] = 0x80 <= first < 0xC0
        return flags

    def same_as(self, other: "Tokenizer") -> bool:
        """Whether both give the same ids the same meaning."""
        return self.end_id == other.end_id and self.backend.get_vocab() == other.backend.get_vocab()

    def to_json(self) -> str:
        """Everything needed to make the tokenizer again, as one string; `Tokenizer.from_json` is the way back."""
        return json.dumps(
            {"end_token": self.end_token, "tokenizer": json.loads(self.backend.to_str())}, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        value = json.loads(text)
        return cls(Backend.from_str(json.dumps(value["tokenizer"])), value["end_token"])

    def save(self, path: str | Path) -> None:
        """Write a standard `tokenizer.json`, and the end token's name beside it in `tokenizer_config.json`."""
        path = Path(path)
        replace_text(path, self.backend.to_str(pretty=True))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.end_token}
        replace_text(path.with_name("tokenizer_config.json"), json.dumps(config) + "\n")


def load_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """A tokenizer from a `tokenizer.json`, a folder that holds one, or a Hugging Face name.

    Raises UserError if there is none, if it is damaged, or if it has no end token.
    """
    path = Path(name_or_path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the Rust side raises a bare Exception
            raise UserError(f"{file} is no tokenizer.json: {error}") from error
        return Tokenizer(backend, _configured_end_token(file.with_name("tokenizer_config.json")))
    if path.exists() or str(name_or_path).startswith((".", "/", "~")) or path.suffix == ".json":
        raise UserError(f"no tokenizer.json at {name_or_path}")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(name_or_path))
    except Exception as error:  # OSError, ValueError and the hub client's own family
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load tokenizer {name_or_path!r}: {reason}") from error
    if not loaded.is_fast:
        raise UserError(f"tokenizer {name_or_path!r} has no fast form; convert it to a tokenizer.json first")
    return Tokenizer(loaded.backend_tokenizer, loaded.eos_token)


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` tokens: 256 bytes, `<|endoftext|>`, merges.

    Raises UserError if that is fewer than 257 or more than the text can give.
    """
    if vocab_size < 257:
        raise UserError(
            f"`vocab_size` {vocab_size}: a byte-level BPE has at least 257 tokens (256 bytes and the end token)"
        )
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKENS[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    reached = backend.get_vocab_size()
    if reached != vocab_size:
        raise UserError(
            f"this text gives a BPE of {reached} tokens at most: lower `vocab_size` {vocab_size} or add text"
        )
    return Tokenizer(backend, END_TOKENS[0])


def _configured_end_token(config: Path) -> str | None:
    if not config.is_file():
        return None
    try:
        token = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
    except ValueError as error:
        raise UserError(f"{config} is not JSON: {error}") from error
    return token["content"] if isinstance(token, dict) else token


def _uses_byte_level(backend: Backend) -> bool:
    """Whether tokens are spelled in the byte-level alphabet (GPT-2's), wherever in the pipeline."""
    settings = json.loads(backend.to_str())
    return any('"ByteLevel"' in json.dumps(settings.get(part)) for part in ("pre_tokenizer", "decoder", "normalizer"))


def _byte_letters() -> dict[str, int]:
    """GPT-2's printable letter of each byte, inverted: letter -> byte (Radford et al., 2019)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [b for b in range(256) if b not in kept]
    return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(moved)}
