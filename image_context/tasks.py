"""Questions over long texts: restore a JSON document, find a needle, restore random tokens that no language prior can guess, go on
with a list of codes.

A document has exactly the number of tokens asked for, by the tokenizer of the model that will read it. Which split a document
may be in is decided by its own digest, so training and evaluation cannot share one, whatever the seeds.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

from corpus.tokenizer import Tokenizer
from kit.errors import UserError

TASKS = ("json", "needle", "random", "codes")
SPLITS = ("train", "eval")
LANGUAGES = {"en": "English", "zh": "Chinese"}  # of the hay
TRIES = 400  # documents drawn before a length is given up
REDRAWS = 2000  # of tokens that would merge with their neighbors
CODES = 6  # in a list
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
KEYS = (
    "id",
    "name",
    "owner",
    "items",
    "meta",
    "tags",
    "path",
    "token",
    "state",
    "count",
    "ratio",
    "parent",
    "flags",
    "notes",
)
PLACES = (
    "Arles",
    "Bergen",
    "Cadiz",
    "Delft",
    "Evora",
    "Fargo",
    "Ghent",
    "Hanoi",
    "Izmir",
    "Jinan",
    "Kyoto",
    "Lagos",
    "Malmo",
    "Nantes",
)
HAN_SUBJECTS = ("老人", "渔夫", "学生", "邻居", "船长", "画家", "农夫", "孩子们", "医生", "旅人")
HAN_TIMES = ("清晨", "傍晚", "冬天里", "雨后", "每年春天", "午后", "许多年前", "第二天")
HAN_VERBS = ("走过", "修理", "看见", "谈起", "寻找", "画下", "离开", "回到")
HAN_OBJECTS = ("山脚的小路", "旧码头", "河边的房子", "城里的集市", "一片竹林", "石桥", "南边的田野", "学校的钟楼")


@dataclass
class Sample:
    """A text, a question about it and the right answer. `length`: tokens of `document`; `reply`: what a reader is trained to say, if not
    the answer alone. A needle's whole sentence: then the value follows the same tokens as in the document, which a small network finds.
    """

    task: str
    length: int
    document: str
    question: str
    answer: str
    seed: int
    position: float | None = None  # of a needle, 0 = first, 1 = last
    distractors: list[str] = field(default_factory=list)
    reply: str = ""


def make_sample(task: str, length: int, split: str, seed: int, tokenizer: Tokenizer, language: str = "en") -> Sample:
    """The sample that (task, length, split, seed, language) names. `language` of the hay: en or zh.

    Raises UserError for an unknown task or split, and for a length that the task cannot fill.
    """
    if task not in TASKS or split not in SPLITS:
        raise UserError(
            f"no task {task!r} in split {split!r}; tasks are {', '.join(TASKS)}, splits {', '.join(SPLITS)}"
        )
    make = {"json": _json_sample, "needle": _needle_sample, "random": _random_sample, "codes": _codes_sample}[task]
    for attempt in range(TRIES):
        key = f"{split}/{seed}/{task}/{length}/{language}/{attempt}"
        rng = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
        sample = make(length, rng, tokenizer, language)
        if sample and split_of(sample.document) == split:
            sample.seed = seed
            return sample
    raise UserError(f"task {task} cannot make a document of exactly {length} tokens: choose another length")


def split_of(document: str) -> str:
    """The one split that a document may be in."""
    return SPLITS[hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()[0] % 2]


# ----------------------------------------------------------------------------------------------------------------------
# Tasks


def _random_sample(length: int, rng: random.Random, tokenizer: Tokenizer, language: str) -> Sample | None:
    """Tokens drawn evenly from those that stand for themselves; drawn again where two would merge into others."""
    ids = plain_ids(tokenizer)
    drawn = [rng.choice(ids) for _ in range(length)]
    for _ in range(REDRAWS):
        text = tokenizer.decode(drawn)
        found = tokenizer.encode(text).tolist()
        if found == drawn:
            return Sample("random", length, text, "Restore the text.", text, 0)
        at = next((i for i, (a, b) in enumerate(zip(found, drawn)) if a != b), min(len(found), len(drawn)) - 1)
        for i in range(max(0, at - 1), min(length, at + 2)):
            drawn[i] = rng.choice(ids)
    return None


def _json_sample(length: int, rng: random.Random, tokenizer: Tokenizer, language: str) -> Sample | None:
    """A nested document of random strings, numbers, booleans and nulls."""
    document: dict = {}
    while len(tokenizer.encode(json.dumps(document))) < length - 24:
        kept = json.dumps(document)
        document[f"{rng.choice(KEYS)}_{len(document)}"] = _json_value(rng, 0)
        if len(tokenizer.encode(json.dumps(document))) > length - 8:
            document = json.loads(kept)
            break
    text = fill(lambda filler: json.dumps({**document, "end": filler}), length, rng, tokenizer)
    return text and Sample("json", length, text, "Restore the JSON document.", text, 0)


def _json_value(rng: random.Random, depth: int):
    kind = rng.random()
    if depth < 3 and kind < 0.25:
        return {f"{rng.choice(KEYS)}_{i}": _json_value(rng, depth + 1) for i in range(rng.randint(1, 3))}
    if depth < 3 and kind < 0.4:
        return [_json_value(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    if kind < 0.75:
        return word(rng, rng.randint(4, 12))
    if kind < 0.85:
        return rng.randint(-9999, 9999)
    return rng.choice([round(rng.uniform(-100, 100), 2), True, False, None])


def _needle_sample(length: int, rng: random.Random, tokenizer: Tokenizer, language: str) -> Sample | None:
    """A sentence with a random value among sentences of hay and other sentences of its own kind."""
    if language not in LANGUAGES:
        raise UserError(f"no hay in language {language!r}; choose en or zh")
    names = rng.sample(PLACES, 4)
    values = [word(rng, 7) for _ in names]
    told = [_needle(language, name, value) for name, value in zip(names, values)]
    gap = " " if language == "en" else ""
    hay: list[str] = []
    source = _hay(language, rng)
    room = 0.9 * length - len(tokenizer.encode(gap.join(told)))
    while room > 0:  # sentence by sentence; the whole, whose tokens may differ, is counted for the rest alone
        hay.append(next(source))
        room -= len(tokenizer.encode(hay[-1]))
    while len(tokenizer.encode(gap.join([*hay, *told]))) < length:
        hay.append(next(source))
    position = rng.random()
    while hay:
        body = list(hay)
        for sentence in told[1:]:
            body.insert(rng.randint(0, len(body)), sentence)
        body.insert(round(position * len(body)), told[0])
        text = fill(lambda filler, body=body: gap.join([*body, f"({filler})"]), length, rng, tokenizer)
        if text:
            question = _question(language, names[0])
            return Sample("needle", length, text, question, values[0], 0, position, values[1:], reply=told[0])
        hay.pop()
    return None


def _codes_sample(length: int, rng: random.Random, tokenizer: Tokenizer, language: str) -> Sample | None:
    """A list of random codes somewhere in hay, asked for from one of them on: each token to copy is found by those before it, as a needle's are."""
    codes = [word(rng, 7) for _ in range(CODES)]
    gap, source = " " if language == "en" else "", _hay(language, rng)
    body = [" ".join(codes)]
    while len(tokenizer.encode(gap.join([*body, sentence := next(source)]))) < 0.9 * length:
        body.insert(rng.randint(0, len(body)), sentence)
    text = fill(lambda filler: gap.join([*body, f"({filler})"]), length, rng, tokenizer)
    start = rng.randrange(CODES - 1)
    question = f"Go on from {codes[start]}" if language == "en" else f"从 {codes[start]} 写下去"
    return text and Sample("codes", length, text, question, " ".join(codes[start + 1 :]), 0)


def tokenizer_text(language: str, characters: int) -> Iterator[str]:
    """Hay, needles and questions of a language, for a tokenizer to be trained on: sentences with at least `characters` in all."""
    rng = random.Random(language)
    hay, written = _hay(language, rng), 0
    while written < characters:
        name = word(rng, 6).capitalize()  # in tokens that others share, so that what finds codes finds names
        sentence = rng.choice((next(hay), next(hay), _needle(language, name, word(rng, 7)), _question(language, name)))
        written += len(sentence)
        yield sentence


def _needle(language: str, name: str, value: str) -> str:
    return ("The access code of {} is {}." if language == "en" else "{} 的通行码是 {}。").format(name, value)


def _question(language: str, name: str) -> str:
    return ("What is the access code of {}?" if language == "en" else "{} 的通行码是什么？").format(name)


def _hay(language: str, rng: random.Random) -> Iterator[str]:
    return _english(rng) if language == "en" else _chinese(rng)


def _english(rng: random.Random):
    """Sentences of the language reference that every Python carries."""
    sentences = _reference_sentences()
    while True:
        yield rng.choice(sentences)


@cache
def _reference_sentences() -> list[str]:
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics.values()).split())
    return [s.strip() + "." for s in text.split(". ") if 30 < len(s) < 200 and s.isascii()]


def _chinese(rng: random.Random):
    """Simple sentences out of everyday words."""
    while True:
        yield f"{rng.choice(HAN_TIMES)}，{rng.choice(HAN_SUBJECTS)}{rng.choice(HAN_VERBS)}{rng.choice(HAN_OBJECTS)}。"


# ----------------------------------------------------------------------------------------------------------------------
# Lengths


def word(rng: random.Random, length: int) -> str:
    """Random letters and digits."""
    return "".join(rng.choices(LETTERS, k=length))


def fill(write: Callable[[str], str], length: int, rng: random.Random, tokenizer: Tokenizer) -> str | None:
    """`write(filler)` with a random filler that gives it exactly `length` tokens, or None if none does."""
    size = max(0, length - len(tokenizer.encode(write(""))))  # a random letter is at most about a token
    if len(tokenizer.encode(write(""))) > length:
        return None
    for _ in range(60):
        text = write(word(rng, size))
        off = length - len(tokenizer.encode(text))
        if off == 0:
            return text
        size = max(0, size + off)
    return None


@cache
def plain_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids whose text is printable, whole in itself and read back as the same id."""
    special = set(tokenizer.backend.get_added_tokens_decoder())
    ids = [i for i in range(tokenizer.vocab_size) if i not in special]
    texts = tokenizer.decode_batch([[i] for i in ids])
    back = tokenizer.encode_pieces(texts, [True] * len(texts))
    kept = [i for i, t, b in zip(ids, texts, back) if t and "\ufffd" not in t and t.isprintable() and b.tolist() == [i]]
    if len(kept) < 64:
        raise UserError(f"this tokenizer has {len(kept)} tokens that stand for themselves: too few for random text")
    return kept
