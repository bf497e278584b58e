"""README's tables on language: likelihood, gaps, generated texts and answers."""

import json
import math
import statistics

from recipes.markdown import OPTIMIZERS, RESULTS, load, percent, table

RUNGS = {
    "3": "3 minutes", "3-avx2": "3 minutes, no bf16 units", "15": "15 minutes", "15-avx2": "15 minutes, no bf16 units",
    "60": "60 minutes", "60-avx2": "60 minutes, no bf16 units",
}  # fmt: skip
SHOWN_PASSES = (None, 32, 64)
GUIDED = "network with n-grams, guided"
FURTHER = {"wikitext2": "WikiText-2", "books": "English books", "novels_ladder": "Chinese novels"}
SYSTEMS = {
    "bigrams": "bigrams, counted", "trigrams": "trigrams, counted", "autoregressive": "autoregressive transformer",
    "masked diffusion": "masked diffusion (bound)", "network alone": "network alone (bound)",
    "network with n-grams": "**network with n-grams** (bound)",
}  # fmt: skip
NO_SPACES = {"novels_ladder"}  # between words, which are not counted there
SCORES = ["passes", "perplexity", "entropy, bits", "distinct 4-grams", "4-grams seen", "words that exist"]
PUBLISHED = [["nanoGPT by characters, as published", "1.88 (CPU), 1.47 (A100)", *[""] * (len(RUNGS) - 1)]]


def rungs() -> dict[str, dict]:
    """The rungs of the ladder that were measured."""
    files = {rung: f"shakespeare/{rung}.json" for rung in RUNGS}
    return {rung: load(file) for rung, file in files.items() if (RESULTS / file).is_file()}


def ladder() -> str:
    """Nats per character of the test text after so many minutes of training: of several seeds, mean and standard deviation."""
    found = rungs()

    def cell(rung: str, name: str) -> str:
        seeds = [load(f"shakespeare/{path.name}") for path in RESULTS.glob(f"shakespeare/{rung}-seed[0-9].json")]
        values = (
            [run["likelihood"][name]["bits_per_byte"] * math.log(2) for run in [found[rung], *seeds]] if seeds else []
        )
        if len(set(values)) > 1:  # counts have no seed
            return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
        return likelihood(found.get(rung), name, math.log(2))

    rows = [[label, *(cell(rung, name) for rung in RUNGS)] for name, label in SYSTEMS.items()]
    return table(["nats per character", *RUNGS.values()], [*rows, *PUBLISHED])


def sweep_of(rung: str) -> list[dict]:
    """All rates and dropouts of a rung, where they were kept."""
    name = f"shakespeare/{rung}-sweep.json"
    return load(name) if (RESULTS / name).is_file() else []


def sweeps() -> str:
    """What optimizer, rate and dropout do to the baselines, and the rate to the network; what each run computes."""
    rows = []
    for rung, label in RUNGS.items():
        for row in sweep_of(rung):
            name = f"**{row['baseline']}**" if row["chosen"] else row["baseline"]
            nats = f"{row['bits_per_byte'] * math.log(2):.3f}" if "nll" in row else "–"
            optimizer = OPTIMIZERS[row["optimizer"]]
            rows.append([
                name, label, row["size"], optimizer, f"{row['lr']:g}", f"{row['dropout']:g}", f"{row['steps']:,}", f"{row['parameters'] / 1e6:.1f} M", f"{row['training_flops'] / 1e12:.0f}", f"{row['val_loss']:.3f}", nats,
            ])  # fmt: skip
    header = [
        "model", "after", "size", "optimizer", "rate", "dropout", "steps", "parameters", "TFLOPs", "nats per token, val", "nats per character, test",
    ]  # fmt: skip
    return table(header, rows)


def equal_flops() -> str:
    """Systems of the same parameters, trained with the same FLOPs: likelihood and gaps, of two seeds."""
    found, again = load("shakespeare/equal_flops.json"), load("shakespeare/equal_flops-seed1.json")
    runs = {row["baseline"]: row for row in load("shakespeare/equal_flops-sweep.json")}
    rows = []
    for name, label in SYSTEMS.items():
        if name not in found["likelihood"]:
            continue
        cost = ["", "", ""]
        if name in runs:
            run = runs[name]
            cost = f"{run['steps']:,}", f"{run['parameters'] / 1e6:.1f} M", f"{run['training_flops'] / 1e12:.0f}"
        cells = [
            likelihood(found, name, math.log(2)),
            f"{again['likelihood'][name]['bits_per_byte'] * math.log(2):.3f}",
        ]
        for side in "both sides", "left side":
            tried = (seed["gaps"].get(f"{name}, {side}") for seed in (found, again))
            cells += [percent(gaps["accuracy"]) if gaps else "–" for gaps in tried]
        rows.append([label, *cost, *cells])
    header = ["system", "steps", "parameters", "TFLOPs"]
    for quantity in "nats per character", "gaps, both sides", "gaps, left side":
        header += [quantity, "… seed 1"]
    return table(header, rows)


def equal_flops_texts() -> str:
    """Scores of the texts that systems of equal FLOPs write, and MAUVE of two seeds."""
    found, again = (load(f"shakespeare/equal_flops{seed}.json")["generation"] for seed in ("", "-seed1"))
    rows = [
        [*scores(row), f"{row['mauve']:.2f}", f"{other['mauve']:.2f}"] for row, other in zip(found, again, strict=True)
    ]
    return table(["texts", *SCORES, "MAUVE", "… seed 1"], rows)


def likelihood(found: dict | None, name: str, unit: float = 1.0) -> str:
    """Bits per byte of a system in a comparison, with its interval, times `unit`."""
    if found is None or name not in found["likelihood"]:
        return "not yet measured"
    row = found["likelihood"][name]
    low, high = (value * unit for value in row["bits_per_byte_ci"])
    return f"{row['bits_per_byte'] * unit:.3f} [{low:.3f}, {high:.3f}]"


def further() -> str:
    """Bits per byte on other texts, each after five minutes of training."""
    found = {}
    for name in FURTHER:
        if (RESULTS / name / "5.json").is_file():
            found[name] = load(f"{name}/5.json")
    rows = [[label, *(likelihood(found.get(text), name) for text in FURTHER)] for name, label in SYSTEMS.items()]
    return table(["bits per byte", *FURTHER.values()], rows)


def gaps() -> str:
    found = rungs()
    names = list(dict.fromkeys(name for rung in found.values() for name in rung["gaps"]))

    def cell(rung: str, name: str) -> str:
        measured = rung in found and name in found[rung]["gaps"]
        return percent(found[rung]["gaps"][name]["accuracy"]) if measured else "not yet measured"

    rows = [[name, *(cell(rung, name) for rung in RUNGS)] for name in names]
    return table(["tokens in gaps found", *RUNGS.values()], rows)


def generation() -> str:
    """Generated texts of the longest rung."""
    rows = [scores(row) for row in load("shakespeare/60.json")["generation"] if row["passes"] in SHOWN_PASSES]
    return table(["texts", *SCORES], rows)


def scores(row: dict) -> list[str]:
    """What a row of generated texts is called, and under SCORES."""
    passes = "" if row["passes"] is None else str(row["passes"])
    shares = (percent(row[key]) for key in ("distinct", "seen", "words"))
    return [row["name"], passes, f"{row['gen_ppl']:.1f}", f"{row['entropy']:.2f}", *shares]


def further_generation() -> str:
    """Generated texts of the other ladders."""
    rows = []
    for name, label in FURTHER.items():
        found = [[label, *scores(row)] for row in load(f"{name}/5.json")["generation"]]
        rows += [[*row[:-1], "–"] for row in found] if name in NO_SPACES else found
    return table(["", "texts", *SCORES], rows)


def samples() -> str:
    """What each rung writes in 64 passes, guided: the first text, unpicked."""
    found = []
    for name, rung in rungs().items():
        texts = [row["sample"] for row in rung["generation"] if (row["name"], row["passes"]) == (GUIDED, 64)]
        found += [f"```text\n[{RUNGS[name].replace(' minutes', '′')}] {text.strip()}\n```\n" for text in texts]
    return "\n".join(found)


def further_samples() -> str:
    """What the transformer and the network, guided, write of each other text: the first ones, unpicked."""
    found = []
    for name, label in FURTHER.items():
        rows = load(f"{name}/5.json").get("generation", [])
        texts = {row["name"]: row["sample"].strip() for row in rows if row["passes"] in (None, 32)}
        found += [f"[{label}, {system}] {texts[system]}" for system in ("autoregressive", GUIDED) if system in texts]
    return "\n".join(f"```text\n{text}\n```\n" for text in found)


def levers() -> str:
    """What moves the texts of one checkpoint."""
    found = load("generation.json")
    rows = [
        [row["name"], f"{row['gen_ppl']:.1f}", f"{row['entropy']:.2f}", percent(row["seen"]), percent(row["words"])]
        for row in found["rows"]
    ]
    return table([f"{found['passes']} passes", "perplexity", "entropy, bits", "4-grams seen", "words that exist"], rows)


def trainings() -> str:
    """Texts of networks that were trained differently."""
    found = load("generation_training.json")
    names = list(dict.fromkeys(row["name"] for row in found["generation"] if row["passes"]))
    rows = []
    for name in names:
        row = next(row for row in found["generation"] if row["name"] == name and row["passes"] == 64)
        nats = found["likelihood"][name]["bits_per_byte"] * math.log(2)
        rows.append(
            [
                name,
                f"{nats:.3f}",
                f"{row['gen_ppl']:.0f}",
                f"{row['entropy']:.2f}",
                percent(row["seen"]),
                percent(row["words"]),
            ]
        )
    return table(
        ["64 passes", "nats per character", "perplexity", "entropy, bits", "4-grams seen", "words that exist"], rows
    )


def answers() -> str:
    """Answers that are right, of each task."""
    files = sorted((RESULTS / "answers").glob("*.json"))
    found = {path.stem: json.loads(path.read_text(encoding="utf-8"))["rows"] for path in files}
    names = list(dict.fromkeys(row["name"] for rows in found.values() for row in rows))
    right = {task: {row["name"]: row for row in rows} for task, rows in found.items()}
    tasks = ("sorting", "lookup")
    rows = [
        [name, *(percent(right[t][name]["exact"]) if t in found else "not yet measured" for t in tasks)]
        for name in names
    ]
    return table(["answers right", *tasks], rows)
