"""The moving picture at the top of the README: a text becomes colors, noise covers them, the released model reads them back.

python -m recipes.first_picture          # writes results/first_picture.gif and .json
"""

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from kit import device
from kit.arguments import add_common, program
from kit.errors import run
from kit.runlog import environment, write_json
from picture import to_pixels
from pretrained import DEFAULT, load_pretrained
from tabs.show import parts
from tabs.token_picture import EXAMPLES

RESULTS = Path(__file__).parent.parent / "results"
SIGMA = 0.14
SIZE, PIXEL = (860, 340), 17  # of the picture and of a token in it
COLUMNS, LINES, LINE = 55, 12, 21  # of the text, in characters, and the pixels from line to line
INK, SOFT, WRONG, BACK = (29, 35, 41), (120, 130, 140), (213, 94, 0), (255, 255, 255)


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", default=DEFAULT, help="which model")
    parser.add_argument("--sigma", type=float, default=SIGMA, help="the most noise")
    add_common(parser, "seed")
    args = parser.parse_args()
    runtime = device.start("cpu", args.seed, "fp32")
    loaded = load_pretrained(args.checkpoint, runtime.device)
    tokens = loaded.chunk(loaded.tokenizer.encode(EXAMPLES[0]))[0]
    scene = Scene(loaded, tokens)
    colors = loaded.diffusion.palette.colors[tokens]
    noise = torch.randn(colors.shape, generator=torch.Generator().manual_seed(args.seed))
    frames, lasts = [], []

    def add(shown, caption: str, milliseconds: int, found=None) -> float:
        found = loaded.diffusion.palette.decode(shown) if found is None else found
        right = float((found == tokens).float().mean())
        frames.append(scene.draw(shown, found, caption.format(right)))
        lasts.append(milliseconds)
        return right

    for count in np.linspace(0, len(tokens), 12).astype(int)[1:]:  # token by token the text becomes an image
        frames.append(scene.draw(colors, tokens, "a text: every token becomes one pixel", count))
        lasts.append(90)
    add(colors, "a text: every token becomes one pixel", 1400)
    for share in np.linspace(0.1, 1, 10):
        nearest = add(colors + share * args.sigma * noise, "noise: the nearest color still reads {:.0%}", 110)
    lasts[-1] = 1600
    with torch.no_grad():
        batch = loaded.collate([tokens])
        t = torch.tensor([1 / (1 + args.sigma)])
        padded = torch.zeros(1, batch["tokens"].shape[1], 3)
        padded[0, : len(tokens)] = noise
        z = loaded.diffusion.add_noise(batch["tokens"], t, padded)
        found = loaded.diffusion.recover(z, t, batch["mask"], passes=4).tokens[0, : len(tokens)]
    read = loaded.diffusion.palette.colors[found]
    for share in np.linspace(0.2, 1, 6):  # the noisy colors on their way to those that were read
        on_the_way = (1 - share) * (colors + args.sigma * noise) + share * read
        model = add(on_the_way, "the model reads {:.0%} of the tokens back", 110, found)
    lasts[-1] = 3200
    frames[0].save(
        RESULTS / "first_picture.gif", save_all=True, append_images=frames[1:], duration=lasts, loop=0, optimize=True
    )
    report = {
        "sigma": args.sigma,
        "tokens": len(tokens),
        "nearest": nearest,
        "model": model,
        "environment": environment(runtime),
    }
    write_json(RESULTS / "first_picture.json", report)
    print(json.dumps({name: report[name] for name in ("sigma", "tokens", "nearest", "model")}))


class Scene:
    """Draws the text on the left, with wrong tokens in another color, and its image on the right."""

    def __init__(self, loaded, tokens: torch.Tensor):
        self.loaded, self.tokens = loaded, tokens
        path = font_manager.findfont("DejaVu Sans Mono")
        self.font, self.small = (
            ImageFont.truetype(path, 15),
            ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 15),
        )

    def draw(self, colors: torch.Tensor, found: torch.Tensor, caption: str, count: int | None = None) -> Image.Image:
        """A frame of colors (N, 3) and the tokens (N,) read from them, `count` of them on the image."""
        image = Image.new("RGB", SIZE, BACK)
        draw = ImageDraw.Draw(image)
        read = [
            (character if character.isprintable() else " ", right)
            for part, right in zip(parts(self.loaded.tokenizer, found), (found == self.tokens).tolist()) for character in part
        ]  # fmt: skip
        column, line, width = 0, 0, self.font.getlength("m")
        for index, (character, right) in enumerate(read):
            rest = next((i for i in range(index, len(read)) if read[i][0] == " "), len(read)) - index
            begins = index == 0 or read[index - 1][0] == " "
            if column + (min(rest, COLUMNS) if begins else 1) > COLUMNS:  # words stay whole
                column, line = 0, line + 1
            if (column or character != " ") and line < LINES:
                draw.text((24 + column * width, 24 + line * LINE), character, INK if right else WRONG, self.font)
                column += 1
        layout = self.loaded.diffusion.layout
        count = len(colors) if count is None else count
        pixels = to_pixels(layout.to_image(colors[None])[0])
        shown = layout.to_image((torch.arange(len(colors)) < count)[None])[0].numpy()
        pixels = np.where(shown[..., None], pixels, 236).astype(np.uint8).repeat(PIXEL, 0).repeat(PIXEL, 1)
        image.paste(Image.fromarray(pixels), (SIZE[0] - pixels.shape[1] - 24, 24))
        draw.text((24, SIZE[1] - 34), caption, SOFT, self.small)
        return image.quantize(128, dither=Image.Dither.NONE)


if __name__ == "__main__":
    run(main)
