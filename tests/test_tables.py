"""Tables take each number from where it belongs."""

import json

import pytest

from recipes import markdown, readme_tables
from recipes.language_tables import equal_flops, equal_flops_texts


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]


@pytest.fixture
def two_seeds(tmp_path, monkeypatch):
    """Comparisons in which seed 1 has a tenth more of everything."""

    def comparison(more: float) -> dict:
        bits = {"bits_per_byte": 2 * more, "bits_per_byte_ci": [1.9 * more, 2.1 * more]}
        shares = dict.fromkeys(("entropy", "distinct", "seen", "words"), 0.5 * more)
        return {
            "likelihood": {"trigrams": bits, "masked diffusion": bits},
            "gaps": {f"masked diffusion, {side}": {"accuracy": 0.1 * more} for side in ("both sides", "left side")},
            "generation": [{"name": "masked diffusion", "passes": 32, "gen_ppl": 10, "mauve": 0.4 * more, **shares}],
        }

    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    run = {"baseline": "masked diffusion", "steps": 1000, "parameters": 2.5e6, "training_flops": 4e13}
    (tmp_path / "shakespeare").mkdir()
    for name, value in (("", comparison(1)), ("-seed1", comparison(1.1)), ("-sweep", [run])):
        (tmp_path / f"shakespeare/equal_flops{name}.json").write_text(json.dumps(value))


def test_systems_of_equal_flops_stand_beside_their_other_seed(two_seeds):
    _, _, trigrams, masked = cells(equal_flops())
    assert trigrams[1:] == ["", "", "", "1.386 [1.317, 1.456]", "1.525", *["–"] * 4]
    assert masked[1:4] == ["1,000", "2.5 M", "40"] and masked[6:] == ["10.0%", "11.0%"] * 2


def test_texts_of_equal_flops_have_the_scores_of_seed_0_and_mauve_of_both(two_seeds):
    *_, row = cells(equal_flops_texts())
    assert row == ["masked diffusion", "32", "10.0", "0.50", "50.0%", "50.0%", "50.0%", "0.40", "0.44"]


def test_rows_of_tokcom_stand_under_their_headings(tmp_path, monkeypatch):
    """Whole-sequence flow reports neither an interval nor what training computed."""
    row = {
        "name": "chunk1",
        "chunk_size": 1,
        "steps": 10,
        "brier_lm": 0.2,
        "brier": [0.4],
        "nfe_per_token": 1,
        "flops_per_token_and_pass": 6e6,
    }
    head = {**row, "name": "flow2-adamw-3e-3-8", "chunk_size": 2, "brier_lm_ci": [0.1, 0.3], "training_flops": 2e13}
    rows = [each | {"texts": {"words": 0.5}} for each in (row, head)]
    monkeypatch.setattr(markdown, "RESULTS", tmp_path)
    (tmp_path / "tokcom").mkdir()
    (tmp_path / "tokcom/x.json").write_text(json.dumps({"rows": rows, "real_texts": {"words": 0.9}}))
    header, _, *found = (dict(enumerate(line)) for line in cells(readme_tables.tokcom_language("x")))
    place = {name: column for column, name in header.items()}
    assert [line[place["TFLOPs of training"]] for line in found] == ["–", "20", ""]
    assert [line[place["BrierLM of 4 tokens"]] for line in found] == ["0.200", "0.200 [0.100, 0.300]", ""]
    assert [line[place["words that exist"]] for line in found] == ["50.0%", "50.0%", "90.0%"]


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"name": "flow_tokens-muon-6e-3-8", "draws": 8}, "vector by vector, flow head, beside the tokens' loss"),
        ({"name": "posterior1-muon-6e-3-1", "chunk_size": 1, "draws": 1.0}, "vector by vector, posterior head, 1 to a vector, 1 draw"),
        ({"name": "posterior-muon-6e-3-0.25", "draws": 0.25}, "vector by vector, posterior head, 0.25 draws"),
        ({"name": "flow-adamw-3e-3-2", "chunk_size": 2, "draws": 2}, "vector by vector, flow head, 2 to a vector, 2 draws"),
        ({"name": "tokens2-adamw-3e-3-8", "chunk_size": 2}, "2 tokens at once, no vector"),
        ({"name": "chunk1", "chunk_size": 1}, "TokCom, 1 to a vector"),
    ],
)  # fmt: skip
def test_rows_of_tokcom_are_called_by_what_sets_them_apart(row, label):
    assert readme_tables.tokcom_row(row) == label
