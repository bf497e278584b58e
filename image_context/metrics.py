"""What counts as right."""

import json
import re

from rapidfuzz.distance import Levenshtein

MAX_EXTRA = 80  # characters an answer may have around a needle's value; more is a copy of the context


def score(task: str, prediction: str, answer: str, distractors: list[str], tokenize) -> dict:
    """All metrics of one prediction. `tokenize(text) -> list` gives the tokens that error rates count."""
    predicted, true = list(tokenize(prediction)), list(tokenize(answer))
    values = {
        "exact": float(prediction == answer),
        "token_accuracy": token_accuracy(predicted, true),
        "token_error_rate": error_rate(predicted, true),
        "char_error_rate": error_rate(prediction, answer),
    }
    if task == "json":
        values |= {"json_exact": float(json_exact(prediction, answer)), "json_f1": leaf_f1(prediction, answer)}
    if task == "needle":
        values["needle_hit"] = float(needle_hit(prediction, answer, distractors))
    return values


def token_accuracy(predicted: list, true: list) -> float:
    """Fraction of the places of `true` (at least one) where `predicted` has the same; what is missing is wrong."""
    return sum(a == b for a, b in zip(predicted, true)) / max(1, len(true))


def error_rate(predicted, true) -> float:
    """Insertions, deletions and substitutions per element of `true`; may exceed 1."""
    return Levenshtein.distance(predicted, true) / max(1, len(true))


def json_exact(prediction: str, answer: str) -> bool:
    """Whether both are JSON with the same typed values at the same paths; the order of keys and white space are free."""
    parsed, true = _parse(prediction), _parse(answer)
    return parsed is not None and true is not None and sorted(leaves(parsed[0])) == sorted(leaves(true[0]))


def leaf_f1(prediction: str, answer: str) -> float:
    """F1 over typed leaves (path, type, value); 0 for what is no JSON."""
    parsed, true = _parse(prediction), _parse(answer)
    if parsed is None or true is None:
        return 0.0
    found, wanted = set(leaves(parsed[0])), set(leaves(true[0]))
    shared = len(found & wanted)
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


def leaves(value) -> list[tuple[str, str, str]]:
    """(path, type, value) of every leaf of a JSON value, however deep; an empty object or list is a leaf."""
    found, open_ends = [], [((), value)]
    while open_ends:
        path, value = open_ends.pop()
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if inner := list(inner):
            open_ends += [((*path, key), item) for key, item in inner]
        else:
            found.append((json.dumps(path), type(value).__name__, json.dumps(value)))
    return found


def needle_hit(prediction: str, answer: str, distractors: list[str]) -> bool:
    """Whether a short prediction holds the answer as a word of its own, and none of the other needles' values."""
    if len(prediction) > len(answer) + MAX_EXTRA:
        return False
    alone = rf"(?<![0-9A-Za-z]){re.escape(answer)}(?![0-9A-Za-z])"  # Chinese text has no spaces around it
    return re.search(alone, prediction) is not None and not any(other in prediction for other in distractors)


def _parse(text: str) -> tuple | None:
    """(value,) of a JSON text, as VLMs wrap it in code fences or not; None if it is none."""
    text = text.strip()
    if text.startswith("```"):
        text = text.removeprefix("```json").strip("`").strip()
    try:
        return (json.loads(text),)
    except (ValueError, RecursionError):  # the latter from a VLM that repeats "[" without end
        return None
