"""Write the tables of all READMEs from the JSON files in results/.

    python -m recipes.readme_tables            # rewrites what stands between <!-- table NAME --> and <!-- end -->
    python -m recipes.readme_tables --check    # exit code 1 if a README differs from results/

A README without the JSON of one of its tables is refused.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kit.arguments import program
from kit.errors import run
from recipes import chinese
from recipes.image_tables import (
    image_codecs,
    image_cost,
    image_curve,
    image_json,
    image_ledger,
    image_needle,
    image_smoke,
)
from recipes.language_tables import (
    answers,
    equal_flops,
    equal_flops_texts,
    further,
    further_generation,
    further_samples,
    gaps,
    generation,
    ladder,
    levers,
    samples,
    sweeps,
    trainings,
)
from recipes.markdown import OPTIMIZERS, RESULTS, ROOT, load, percent, table

FOLDERS = ("", "tokcom/", "image_context/", "vit_cifar10/")
READMES = [f"{folder}README{language}.md" for folder in FOLDERS for language in ("", ".zh-CN")]
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
DECODERS = {
    "nearest": "nearest color", "unigram": "unigram posterior", "bigram": "bigram forward-backward",
    "trigram": "trigram forward-backward", "network": "network alone", "hybrid": "**network with n-grams**",
}  # fmt: skip
SHOWN_CHARACTERS = 300  # of a text that a released checkpoint wrote
TOKCOM_ROWS = {
    "autoregressive": "autoregressive transformer", "energy": "vector by vector, energy head", "flow": "vector by vector, flow head",
    "energy_tokens": "vector by vector, energy head, beside the tokens' loss", "flow_tokens": "vector by vector, flow head, beside the tokens' loss",
    "posterior": "vector by vector, posterior head", "tokens": "4 tokens at once, no vector", "trigrams": "TokCom, 4 to a vector, trigrams inside",
}  # fmt: skip
VIT_ROWS = (
    ("cpu", "`cifar`, ten minutes, no crops", "vit_cpu", "one CPU thread"), ("cpu_hour", "`cifar`, an hour", "vit_hour", "one CPU thread"),
    ("reference_20", "`reference`, 20 epochs", "vit_reference_20", "GPU"),
    ("cifar_20", "`cifar`, 20 epochs", "vit_cifar_20", "GPU"), ("cifar_100", "`cifar`, 100 epochs", "vit_cifar_100", "GPU"),
    ("cifar_300", "`cifar`, 300 epochs", "vit_cifar_300", "GPU"),
)  # fmt: skip
VIT_RESULT = ("test accuracy", "images seen")
ABLATIONS = {
    "muon": "**none: Muon, 2e-3**", "adamw-1e-3": "AdamW, 1e-3", "adamw-3e-3": "AdamW, 3e-3", "no_crops": "no crops", "trivial_augment": "TrivialAugment",
    "erase": "random erasing, 0.25", "mixup": "MixUp, 0.2", "cutmix": "CutMix, 1", "no_smoothing": "no label smoothing",
}  # fmt: skip

BENCHES = (
    ("bench_cpu", "JiT-Ti/4, 16×16, 512 tokens, batch 32", "two CPU cores"),
    ("bench_cpu_b4", "JiT-B/4, 64×64, 4,096 tokens, batch 2", "two CPU cores"),
    ("bench_cuda", "JiT-B/4, 64×64, 4,096 tokens, batch 32", "one H100"),
    ("bench_cuda_compile", "the same with `--compile`", "one H100"),
)


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=False, help="compare, write nothing")
    args = parser.parse_args()
    stale = [name for name in READMES if not up_to_date(ROOT / name, write=not args.check)]
    if stale:
        print(("differs from results/: " if args.check else "written: ") + ", ".join(stale))
    sys.exit(bool(stale and args.check))


def up_to_date(path: Path, write: bool) -> bool:
    """Whether the tables of a README are those of results/; writes them if `write`."""
    text = path.read_text(encoding="utf-8")
    in_words = chinese.translate if path.name.endswith(".zh-CN.md") else str
    new = BLOCK.sub(lambda match: match[1] + in_words(TABLES[match[2]]()) + match[3], text)
    if write and new != text:
        path.write_text(new, encoding="utf-8")
    return new == text


def recovery(name: str) -> str:
    """Percent of test tokens recovered at each noise level, by every decoder; mean and deviation where there are seeds."""
    found = load(name)
    kinds = [kind for kind in DECODERS if kind in found["at_nearest_50"]]

    def cell(value: dict) -> str:
        spread = f" ± {value['std'] * 100:.1f}" if value.get("std") is not None else ""
        return f"{value['mean'] * 100:.1f}{spread}"

    rows = []
    for row in sorted([*found["recovery"], found["at_nearest_50"]], key=lambda row: row["sigma"]):
        mark = "**" if row is found["at_nearest_50"] else ""
        rows.append([f"{mark}{row['sigma']:.3f}{mark}", *(cell(row[kind]) for kind in kinds)])
    return table(["noise σ", *(DECODERS[kind] for kind in kinds)], rows)


def ablations() -> str:
    rows = load("ablations.json")["rows"]

    def line(row: dict) -> list[str]:
        found = sorted(row["recovery"], key=lambda level: level["sigma"])
        cells = [percent(level["model"]) for level in [*found, row["at_nearest_50"]]]
        return [row["label"], str(row["steps"]), row["lr"], *cells]

    levels = sorted(level["sigma"] for level in rows[0]["recovery"])
    header = ["training", "steps", "rate", *(f"σ = {level:.2f}" for level in levels), "nearest color gets half"]
    return table(header, map(line, rows))


def model_sizes() -> str:
    found = load("model_sizes.json")
    rows = []
    for row in found["rows"]:
        parts = [percent(row[part] / row["flops_per_token"], 0) for part in ("trunk", "token_path", "vocabulary")]
        size, flops = f"{row['parameters'] / 1e6:.1f} M", f"{row['flops_per_token'] / 1e6:.1f}"
        rows.append([f"JiT-{row['size']}/{found['patch_size']}", size, flops, *parts])
    return table(["preset", "parameters", "MFLOPs a token", "trunk", "token path", "vocabulary"], rows)


BOOKS = {"pg1260_jane_eyre": "*Jane Eyre*", "honglou_meng_simplified": "*Honglou meng*"}


def tokcom() -> str:
    found = load("tokcom/cpu/report.json")
    trip, denoise = found["round_trip"], found["denoise"]
    texts = load("tokcom/round_trip.json")["rows"]
    facts = table(["", ""], [
        ["held-out tokens reconstructed", percent(found["reconstruction"], 2)],
        ["… with noise of 0.3 standard deviations on the vectors", percent(found["reconstruction_at_noise"]["0.3"], 2)],
        ["dimensions in use", f"{found['active_dims']} of {found['latent_dim']}"],
        ["variational bound of the whole model", f"{found['nll']:.2f} nats per token"],
        [f"BrierLM of the next chunk, {found['num_steps']} forward passes", f"{found['brier_lm']:.3f}"],
        *([f"wrong tokens of {row['tokens']:,} through vectors and back: {BOOKS.get(row['text'], row['text'])}",
           f"{row['wrong']['0.0']:,}; with that noise {row['wrong']['0.3']:,}"] for row in texts),
        ["encoding, decoding", f"{trip['encode_tokens_per_second']:,.0f} and {trip['decode_tokens_per_second']:,.0f} tokens/s"],
    ])  # fmt: skip
    levels = [row for row in denoise if 0.15 < row["noise_level"] < 0.75]
    names = {
        "decoder_only": "decoder only", "decoder_bigrams": "decoder and bigrams", "decoder_trigrams": "decoder and trigrams",
        "no_context": "network, each chunk without context", "model": "**network**", "model_trigrams": "**network and trigrams**",
    }  # fmt: skip
    rows = [[label, *(percent(row[name]) for row in levels)] for name, label in names.items() if name in levels[0]]
    recovery = table(["noise level t", *(str(row["noise_level"]) for row in levels)], rows)
    vectors = found["compression"]["vectors"]
    sizes = table(["bits of each number", *(str(row["bits"]) for row in vectors)], [
        ["bits per token", *(f"{row['bits_per_token']:.0f}" for row in vectors)],
        ["tokens recovered", *(percent(row["recovered"], 2) for row in vectors)],
    ])  # fmt: skip
    return "\n".join([facts, recovery, sizes])


def vit_rows() -> str:
    rows = []
    for name, label, recipe, where in VIT_ROWS:
        start = [f"{label} (`recipes/{recipe}.sh`)", where]
        if not (RESULTS / "vit_cifar10" / f"{name}.json").is_file():
            rows.append([*start, "not yet measured", "", "", ""])
            continue
        found = load(f"vit_cifar10/{name}.json")
        first = found["runs"][0]
        if found["accuracy_std"] is None:
            low, high = first["accuracy_interval"]
            spread = f"[{percent(low)}, {percent(high)}]"
        else:
            spread = f"± {percent(found['accuracy_std'])}"
        speed = [
            f"{first['images_seen']:,}",
            f"{first['images_per_second']:,.0f}",
            percent(first["matmul_fraction"], 0),
        ]
        rows.append([*start, f"**{percent(found['accuracy_mean'])}** {spread}", *speed])
    return table(["row", "where", "test accuracy", "images seen", "images/s", "fraction of the matmul rate"], rows)


def vit_ablations() -> str:
    """What one change of the preset does at equal time."""
    rows = sorted(load("vit_cifar10/ablations.json"), key=lambda row: -row["accuracy_mean"])
    return table(["change", *VIT_RESULT], [[ABLATIONS[row["name"]], *vit_result(row)] for row in rows])


def vit_optimizers() -> str:
    """Each optimizer at several rates; of each, the rate that validation chooses is bold."""
    found = {tuple(row["name"].split("-", 1)): row for row in load("vit_cifar10/optimizers.json")}
    chosen = {optimizer: rate for (optimizer, rate), row in sorted(found.items(), key=lambda item: item[1]["val_mean"])}
    rows = []
    for optimizer, rate in sorted(found, key=lambda key: (key[0], float(key[1]))):
        row = found[optimizer, rate]
        rate = f"**{rate}**" if rate == chosen[optimizer] else rate
        rows.append([OPTIMIZERS[optimizer], rate, percent(row["val_mean"]), *vit_result(row)])
    return table(["optimizer", "rate", "validation", *VIT_RESULT], rows)


def vit_result(row: dict) -> tuple[str, str]:
    low, high = row["runs"][0]["accuracy_interval"]
    return f"{percent(row['accuracy_mean'])} [{percent(low)}, {percent(high)}]", f"{row['runs'][0]['images_seen']:,}"


def first_minute() -> str:
    """Seconds that the first commands take, and what the released checkpoints write."""
    found, written = load("released/seconds.json")["rows"], []
    for row in found:
        if "generate" in row["arguments"]:
            text = row["output"].partition("\n")[2].strip()
            written.append(f"```text\n{text[:SHOWN_CHARACTERS]} …\n```\n")
    commands = [" ".join(f'"{a}"' if " " in a else a for a in row["arguments"]) for row in found]
    rows = [[f"`inference.py {command}`", f"{row['seconds']:.1f}"] for command, row in zip(commands, found)]
    return table(["", "seconds"], rows) + "\n" + "\n".join(written)


def speed() -> str:
    header = [
        "network", "where", "tokens/s of training", "fraction of the matmul rate", "against the same network on whole pictures",
        "against JiT's layout", "one full picture sampled", "against GPT-2 with a cache",
    ]  # fmt: skip
    rows = []
    for name, label, where in BENCHES:
        if not (RESULTS / f"{name}.json").is_file():
            rows.append([label, where, "not yet measured", *[""] * 5])
            continue
        found = load(f"{name}.json")
        train, sample = found["train"], found.get("sample")
        times = [f"{train[other]['ours_faster_by']:.2f} times as fast" for other in ("reference", "pixels")]
        ours = [f"**{train['ours']['tokens_per_second']:,}**", percent(train["ours"]["matmul_fraction"], 0)]
        text = ["not yet measured", ""]
        if sample:
            text = [
                f"{sample['tokens']:,} tokens, {sample['passes']} passes: {sample['seconds']:.1f} s",
                f"{sample['faster_by']:.1f} times as fast",
            ]
        rows.append([label, where, *ours, *times, *text])
    return table(header, rows)


def tokcom_language(texts: str) -> str:
    """TokCom's two layouts beside an autoregressive transformer; bits per byte where a token is a byte."""
    rows, of_bytes = [], texts.startswith("shakespeare")
    found = load(f"tokcom/{texts}.json")
    flops = ["TFLOPs of training"] if any("training_flops" in row for row in found["rows"]) else []
    for row in found["rows"]:
        nll = f"{row['nll'] / (math.log(2) if of_bytes else 1):.2f}" if "nll" in row else "–"
        brier = f"{row['brier_lm']:.3f}"
        if "brier_lm_ci" in row:
            brier += " [{:.3f}, {:.3f}]".format(*row["brier_lm_ci"])
        cells = [
            f"{row['steps']:,}",
            *(f"{row['training_flops'] / 1e12:.0f}" if "training_flops" in row else "–" for _ in flops),
            nll,
            brier,
            f"{row['brier'][0]:.3f}",
        ]
        if "texts" in row:
            cells.append(percent(row["texts"]["words"]))
        cells += [f"{row['nfe_per_token']:g}", f"{row['flops_per_token_and_pass'] / 1e6:.1f}"]
        rows.append([tokcom_row(row), *cells])
    if "real_texts" in found:
        rows.append(
            ["text as it goes on", "", *([""] * len(flops)), "", "", "", percent(found["real_texts"]["words"]), "", ""]
        )
    header = [
        "",
        "steps",
        *flops,
        "bits per byte" if of_bytes else "nats per token",
        "BrierLM of 4 tokens",
        "… of the first",
    ]
    words = ["words that exist"] if "real_texts" in found else []
    return table([*header, *words, "passes per token", "MFLOPs per token and pass"], rows)


def tokcom_row(row: dict) -> str:
    """What a row of TokCom's results is called."""
    label, size = TOKCOM_ROWS.get(row["name"].split("-")[0].rstrip("0123456789")), row.get("chunk_size", 4)
    if label is None:
        return f"TokCom, {size} to a vector"
    if size != 4:
        label = label.replace("4 tokens", f"{size} tokens") if "4 tokens" in label else f"{label}, {size} to a vector"
    draws = row.get("draws", 8)
    return label if draws == 8 else f"{label}, {draws:g} draw{'s' * (draws != 1)}"


def tokcom_samples() -> str:
    """What each writes after the same 32 characters, unpicked."""
    rows = load("tokcom/shakespeare.json")["rows"]
    return "\n".join(f"```text\n[{tokcom_row(row)}] {row['sample'].strip()}\n```\n" for row in rows if "sample" in row)


def released() -> str:
    """What the released checkpoints recover of texts they have not seen."""
    rows = []
    for name in ("english", "chinese"):
        if not (RESULTS / f"released/{name}.json").is_file():
            rows.append([name, *["not yet measured"] * 7])
            continue
        found = load(f"released/{name}.json")
        half, bound = found["at_nearest_50"], found["likelihood"]
        cells = [f"{found['num_tokens']:,}", f"{half['sigma']:.3f}"]
        cells += [
            percent(half[key]) if half[key] is not None else "not yet measured"
            for key in ("nearest", "bigram", "trigram", "model")
        ]
        rows.append([name, *cells, f"{bound['bits_per_byte']:.2f}"])
    header = [
        "checkpoint",
        "test tokens",
        "noise σ",
        "nearest color",
        "bigram forward-backward",
        "trigram forward-backward",
        "**recovered**",
    ]
    return table([*header, "bits per byte, at most"], rows)


UNTOLD = "not told in one line, or a file left half-written"
FAULTS = {
    "signals": ("signals to all processes of a run, and a closed terminal", "without a checkpoint within ten seconds"),
    "disk, file too large": ("a program on a disk that takes no more of a file", UNTOLD),
    "disk, full": ("a program on a full disk", UNTOLD),
    "disk, read-only": ("a program in a read-only folder", UNTOLD),
    "disk, folder removed": ("a trainer whose folder is removed", UNTOLD),
    "disk, former checkpoint": ("no room for a new checkpoint", "former ones harmed"),
    "numbers": (
        "gradients that are no numbers, settings at their edge, empty to full pictures",
        "not recovered from, or not told in one line",
    ),
    "load": ("ten programs at once, fifty requests at once to the page for a minute", "errors, or memory that grows"),
    "same seed": ("trainings again, builds by 1 to 4 threads, under other hash seeds", "with another result"),
}


def faults() -> str:
    """What was tried against the programs, and what went wrong."""
    found = load("faults.json")
    rows = [
        [
            f"`{name.partition(', ')[0]}`{name.partition(',')[2] and ' in two processes'} killed at random moments",
            f"{row['tried']:,}",
            f"{row['differing']} of {row.get('runs', row['tried'])} runs ended otherwise than one left alone",
        ]
        for name, row in found["kills"].items()
    ]
    files = found["bad_inputs"].values()
    tried, tracebacks, hangs = (sum(row[key] for row in files) for key in ("tried", "tracebacks", "hangs"))
    rows.append([f"damaged files, {len(files)} kinds", f"{tried:,}", f"{tracebacks} tracebacks, {hangs} hangs"])
    if "flags" in found:
        flags = found["flags"].values()
        tried, tracebacks, hangs, wrong = (
            sum(row[key] for row in flags) for key in ("tried", "tracebacks", "hangs", "wrong")
        )
        rows.append(
            [
                "values that flags should not have",
                f"{tried:,}",
                f"{tracebacks} tracebacks, {hangs} hangs, {wrong} otherwise wrong",
            ]
        )
    for kind, (label, failure) in FAULTS.items():
        if kind in found:
            tried, wrong = (sum(row[key] for row in found[kind].values()) for key in ("tried", "wrong"))
            rows.append([label, f"{tried:,}", f"{wrong} {failure}"])
    return table(["", "tried", "went wrong"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "cpu": lambda: recovery("cpu/recovery.json"), "hour": lambda: recovery("hour/recovery.json"),
    "novels": lambda: recovery("novels.json"), "ablations": ablations, "model_sizes": model_sizes, "tokcom": tokcom,
    "ladder": ladder, "sweeps": sweeps, "equal_flops": equal_flops, "equal_flops_texts": equal_flops_texts, "further": further, "further_generation": further_generation, "further_samples": further_samples, "gaps": gaps, "generation": generation, "samples": samples, "answers": answers, "levers": levers, "trainings": trainings, "tokcom_books": partial(tokcom_language, "books"), "tokcom_books_muon": partial(tokcom_language, "books_muon"), "tokcom_shakespeare": partial(tokcom_language, "shakespeare"), "tokcom_shakespeare_15": partial(tokcom_language, "shakespeare_15"), "tokcom_samples": tokcom_samples, "released": released, "first_minute": first_minute, "speed": speed,
    "faults": faults, "image_smoke": image_smoke, "image_codecs": image_codecs, "image_ledger": image_ledger, "image_cost": image_cost, "image_curve": image_curve, "image_json": image_json, "image_needle": image_needle, "vit_rows": vit_rows, "vit_ablations": vit_ablations, "vit_optimizers": vit_optimizers,
}  # fmt: skip

if __name__ == "__main__":
    run(main)
