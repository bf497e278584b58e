"""image_context/README's tables: what a reader restores, what codes carry and survive, what they cost."""

from statistics import mean, stdev

from image_context.tasks import LANGUAGES
from kit.intervals import wilson
from recipes.markdown import load, percent, table

IMAGE_ROWS = {
    "codebook": "**codebook**: 10 tokens to a block, 8 colors, 4 px", "text": "text (plain tokens)",
    "conv": "conv: 10 embeddings through a learned convolution", "pool": "pool: means of 10 embeddings", "truncate": "truncate: the first tenth",
    "render": "rendered page, not trained on", "codebook_external": "QR, not trained on",
}  # fmt: skip
CURVE = {
    "codebook": "**color code**",
    "conv": "learned convolution",
    "pool": "mean of embeddings",
    "render": "rendered page",
    "qr": "QR",
    "text": "plain text",
}
NEEDLES = {  # what the reader was trained on
    "tiny_needle_en_zh_1": "plain text",
    "tiny_needle_en_zh_1_codebook_1024": "then mostly the color code",
}


def image_smoke() -> str:
    points = load("image_context/smoke/summary.json")["points"]

    def line(codec: str) -> list[str]:
        mine = {point["augmentation"]: point for point in points if point["codec"] == codec}
        cells = []
        for level in ("clean", "light", "heavy"):
            low, high = mine[level]["interval"]
            cells.append(f"{percent(mine[level]['mean'])} [{percent(low, 0)}, {percent(high, 0)}]")
        clean = mine["clean"]
        return [IMAGE_ROWS[codec], f"{clean['visual_tokens']:.0f}", f"{clean['ratio_context']:.2f}", *cells]

    header = ["40 random tokens as", "visual tokens", "ratio", "clean", "light", "heavy"]
    return table(header, map(line, IMAGE_ROWS))


def image_codecs() -> str:
    found = load("image_context/codecs.json")

    def line(row: dict) -> list[str]:
        back = {r["augmentation"]: r for r in found["survival"] if r["codec"] == row["codec"]}
        light = f"{back['light']['bytes_per_visual_token']:.1f}" if "light" in back else "–"
        cells = [
            f"{percent(back[level]['exact'])} of {back[level]['documents']:,}" if level in back else "–"
            for level in ("light", "heavy")
        ]
        return [row["codec"], f"{row['bytes_per_visual_token']:.1f}", light, *cells]

    header = [
        "codec", "bytes per visual token: long clean text", "… with parity and finder patterns, 1,000 characters",
        "documents read back after `light`", "… after `heavy`",
    ]  # fmt: skip
    page = next(row for row in found["render"] if row["text"] == "english")
    rendered = ["rendered page, 9 pt", f"{page['bytes_per_visual_token']:.1f}", "–", "–", "–"]
    relatives = [
        [f"JAB Code, {row['colors']} colors, {row['module']} px, by its standard", f"{row['bytes_per_visual_token']:.1f}", f"{row['corrected']:.1f}", "–", "–"]
        for row in found["jab_code"]
    ]  # fmt: skip
    return table(header, [*map(line, found["density"]), *relatives, rendered])


def image_ledger() -> str:
    """What a real processor counts of the same texts, however carried."""
    rows = load("image_context/cost.json")["ledger"]
    carriers = {row["carrier"]: [r for r in rows if r["carrier"] == row["carrier"]] for row in rows}
    header = [f"{rows[0]['characters']:,} characters as"]
    for row in carriers["plain text"]:
        header += [f"{row['text']}: tokens", "ratio"]
    cells = {
        name: [(f"{r['total_tokens']:,}", f"{r['ratio_context']:.1f}") for r in found]
        for name, found in carriers.items()
    }
    return table(header, [[name, *(cell for pair in pairs for cell in pair)] for name, pairs in cells.items()])


def image_cost() -> str:
    """What a text of the longest length measured costs a reader, however carried."""
    rows = load("image_context/cost.json")["times"]
    longest = max(row["length"] for row in rows)
    header = [
        f"{longest:,} tokens as",
        "tokens read",
        "prefill",
        "GFLOPs",
        "of which vision",
        "decoding, per token",
        "cache",
    ]
    cells = [
        [
            row["carrier"], f"{row['total_tokens']:,}", f"{row['prefill_seconds']:.2f} s", f"{row['flops'] / 1e9:.1f}", f"{row['flops_of_vision'] / 1e9:.1f}",
            f"{row['decode_seconds'] * 1000:.0f} ms", f"{row['cache_bytes'] / 1e6:.1f} MB",
        ]
        for row in rows if row["length"] == longest
    ]  # fmt: skip
    return table(header, cells)


def image_curve() -> str:
    """Random tokens restored by each way of carrying them: means over seeds, the ratio that all tokens of the carrier make, and steps of training."""
    points = load("image_context/curve.json")
    codecs = [codec for codec in CURVE if any(p["codec"] == codec for p in points)]
    rows = []
    for ratio in sorted({p["ratio"] for p in points}):
        cells = [str(ratio)]
        for codec in codecs:
            mine = [p for p in points if (p["codec"], p["ratio"]) == (codec, ratio)]
            if not mine:
                cells.append("–")
                continue
            values = [p["accuracy"] for p in mine]
            spread = f"± {stdev(values):.1%}" if len(mine) > 1 else "[{:.0%}, {:.0%}]".format(*mine[0]["ci"])
            steps = "–".join(f"{steps:,}" for steps in sorted({end(p["steps"] for p in mine) for end in (min, max)}))
            cells.append(f"{mean(values):.1%} {spread} ({mine[0]['measured_ratio']:.1f}; {len(mine)}; {steps})")
        rows.append(cells)
    return table(["tokens to a block or vector", *(CURVE[codec] for codec in codecs)], rows)


def image_json() -> str:
    """JSON restored by a reader that learned each way of carrying it: whole documents right, and F1 of their leaves."""
    points = load("image_context/tasks/tiny_json_en_10.json")["points"]
    rows = []
    for codec in CURVE:
        mine = {p["augmentation"]: p for p in points if p["codec"] == codec}
        if mine:
            cells = [f"{mine['clean']['ratio_context']:.1f}"]
            for point in (mine[level] for level in ("clean", "light", "heavy")):
                exact, asked = point["metrics"]["json_exact"], point["questions"]
                low, high = wilson(exact * asked, asked)
                cells.append(f"{percent(exact)} [{low:.0%}, {high:.0%}] ({point['metrics']['json_f1']:.3f})")
            rows.append([CURVE[codec], *cells])
    return table(["128 tokens of JSON as", "ratio", "clean", "light", "heavy"], rows)


def image_needle() -> str:
    """Needles found among three others, by length: by a reader that learned to look codes up in plain text, and by it after learning to see."""
    loaded = {name: load(f"image_context/tasks/{name}.json")["needles"] for name in NEEDLES}
    lengths = sorted({n["length"] for needles in loaded.values() for n in needles})
    rows = []
    for name, needles in loaded.items():
        for codec, language in sorted({(n["codec"], n["language"]) for n in needles}):
            row = [NEEDLES[name], CURVE[codec], LANGUAGES[language]]
            for length in lengths:
                here = [n for n in needles if (n["codec"], n["language"], n["length"]) == (codec, language, length)]
                asked = sum(n["questions"] for n in here)
                hits = round(sum(n["mean"] * n["questions"] for n in here))
                row.append("{} [{:.0%}, {:.0%}]".format(percent(hits / asked), *wilson(hits, asked)) if asked else "–")
            rows.append(row)
    return table(["reader trained on", "document as", "hay", *(f"{length:,} tokens" for length in lengths)], rows)
