"""What does a token picture survive when somebody sends it? Writes results/robust/pictures.json and pictures.png.

    python -m recipes.robust_pictures --checkpoint checkpoints/jit/best_model.pth --data_path checkpoints/jit/data

Test texts are written as pictures, a square of pixels for each token, damaged, averaged back and read: by the nearest color, and
with the model at the noise level that it estimates from the picture itself, as `inference.py --mode decode --denoise` does.
"""

import io
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from corpus.chunks import open_test, reported
from kit import device, errors
from kit.arguments import add_common, program
from kit.figures import COLORS, INK, plt, save
from kit.intervals import ratio_with_interval
from kit.runlog import environment, progress_bar, write_json
from picture import average, to_pixels
from pretrained import Pretrained, load_pretrained
from reading import estimate_sigma

OUTPUT = Path("results/robust")
PIXEL_SIZES = (1, 2, 4, 8)


def jpeg(quality: float, image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))  # chroma at half the resolution, as everywhere
    return Image.open(buffer).convert("RGB")


def blur(radius: float, image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def scale(factor: float, image: Image.Image) -> Image.Image:
    """Scaled as a messenger does, and back."""
    side = max(1, round(image.width * factor))
    return image.resize((side, side), Image.Resampling.LANCZOS).resize(image.size, Image.Resampling.BICUBIC)


def noise(std: float, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, np.float64) + np.random.default_rng(0).normal(0, std, (*image.size[::-1], 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


DAMAGES = {
    "JPEG quality": (jpeg, (95, 85, 75, 60, 45, 30)),
    "blur, standard deviation in pixels": (blur, (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)),
    "scaled to, of its size": (scale, (0.95, 0.8, 0.65, 0.5, 0.35, 0.25)),
    "noise, standard deviation of 255": (noise, (4, 8, 16, 32, 48, 64)),
}


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of train.py")
    parser.add_argument("--data_path", required=True, help="folder of the data builder, of which test/ is used")
    parser.add_argument("--num_samples", type=int, default=32, help="test chunks")
    parser.add_argument("--passes", type=int, default=2, help="forward passes to read by")
    parser.add_argument("--output_dir", default=str(OUTPUT), help="where to write")
    add_common(parser, "device", "precision", "seed")
    args = parser.parse_args()
    runtime = device.start(args.device, args.seed, args.precision)
    loaded = load_pretrained(args.checkpoint, runtime.device)
    chunks = open_test(args.data_path, Path(args.data_path), loaded.tokenizer)
    chosen = [chunks[i] for i in reported(chunks, args.num_samples)]
    rows = []
    count = sum(len(levels) for _, levels in DAMAGES.values()) * len(PIXEL_SIZES)
    with torch.no_grad(), runtime.autocast(), progress_bar(count, "damages", unit="level") as bar:
        for name, (damage, levels) in DAMAGES.items():
            for pixel_size in PIXEL_SIZES:
                for level in levels:
                    found = read(loaded, chosen, partial(damage, level), pixel_size, args.passes)
                    rows.append({"damage": name, "level": level, "pixel_size": pixel_size, **found})
                    bar.update()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    report = {
        "checkpoint": args.checkpoint, "num_chunks": len(chosen), "num_tokens": sum(map(len, chosen)),
        "vocab_size": loaded.tokenizer.vocab_size, "passes": args.passes, "rows": rows, "environment": environment(runtime),
    }  # fmt: skip
    write_json(output / "pictures.json", report)
    plot(rows, output / "pictures.png")
    print(f"wrote {output}/pictures.json, pictures.png")


def read(loaded: Pretrained, chunks: list[torch.Tensor], damage, pixel_size: int, passes: int) -> dict:
    """Fractions of tokens read from the damaged pictures, by the nearest color and with the model."""
    diffusion, layout = loaded.diffusion, loaded.diffusion.layout
    batch = loaded.collate(chunks)
    tokens, mask = batch["tokens"], batch["mask"]
    images = []
    for picture in layout.to_image(diffusion.palette.encode(tokens)):
        sent = damage(Image.fromarray(to_pixels(picture).repeat(pixel_size, 0).repeat(pixel_size, 1)))
        images.append(average(torch.from_numpy(np.array(sent)).permute(2, 0, 1), layout.img_size) / 127.5 - 1)
    colors = layout.from_image(torch.stack(images).to(loaded.device))[:, : tokens.shape[1]]
    sigma = torch.tensor([estimate_sigma(loaded, c[m]) for c, m in zip(colors, mask)], device=loaded.device)
    t = 1 / (1 + sigma)
    found = diffusion.recover(colors * t[:, None, None], t, mask, passes=passes).tokens
    guesses = {"nearest": diffusion.palette.decode(colors), "model": found}
    hits = {name: ((guess == tokens) & mask).sum(1).tolist() for name, guess in guesses.items()}
    result, lengths = {}, np.array([len(chunk) for chunk in chunks])
    for name, right in hits.items():
        result[name], result[f"{name}_ci"] = ratio_with_interval(np.array(right), lengths)
    return result


def plot(rows: list[dict], path: Path) -> None:
    """A panel for each kind of damage: tokens read against its level, with the model and without."""
    shades = dict(zip(PIXEL_SIZES, COLORS))
    figure, axes = plt.subplots(1, len(DAMAGES), figsize=(12.6, 3.5), sharey=True)
    for axis, (name, (_, levels)) in zip(axes, DAMAGES.items()):
        for size in PIXEL_SIZES:
            found = [row for row in rows if row["damage"] == name and row["pixel_size"] == size]
            places = range(len(levels))
            axis.plot(places, [row["model"] for row in found], "o-", color=shades[size])
            axis.plot(places, [row["nearest"] for row in found], ":", color=shades[size])
        axis.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axis.set_xlabel(name)
    axes[0].set_ylabel("tokens read")
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes[0].set_ylim(0, 1.02)
    handles = [plt.Line2D([], [], color=shades[s], label=f"{s}×{s} pixels a token") for s in PIXEL_SIZES]
    handles += [
        plt.Line2D([], [], color=INK, marker="o", label="with the model"),
        plt.Line2D([], [], color=INK, linestyle=":", label="nearest color"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    save(figure, path)


if __name__ == "__main__":
    errors.run(main, "lower `num_samples`")
