"""Token picture: text to colors, to noise and back; writing and filling gaps; reading pictures."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import gradio
import numpy as np
import torch

from evaluate import classical
from inference import with_gaps
from kit.errors import UserError
from kit.page import data_uri
from picture import save_animation, to_pixels
from pretrained import Pretrained
from reading import read_picture, write_picture
from tabs import show

SHOWN_PICTURES = 4  # at most, of a text
LABELS = {"nearest": "nearest color", "unigram": "unigrams", "bigram": "bigrams", "trigram": "trigrams"}
FRAMES = 16  # of an animation
SCRATCH = tempfile.TemporaryDirectory(prefix="tokencolor-")  # of pictures to download; gone when the program ends
EXAMPLES = (
    "It was a cold evening, and the old man sat by the fire with his letter. He had read it many times, and he did not "
    "know what to say to his daughter when she should come home. The clock upon the stairs struck nine; the dog lifted its "
    "head, listened to the wind in the chimney, and lay down again. “If she asks me,” he thought, “I must tell her the truth, "
    "for there is nobody else in the house who knows it; and yet I would rather walk ten miles through the snow than see her "
    "face when I have told her.” Then there were steps in the garden, and a hand was laid upon the door.",
    "话说天下大势，分久必合，合久必分。且说那一日，宝玉正在园中闲走，忽听得背后有人叫他，回头一看，原来是黛玉。",
)


@torch.no_grad()
def recover(loaded: Pretrained, text: str, sigma: float, passes: int, seed: int) -> tuple[str, str, list[str]]:
    """Pictures of a text clean, noisy and recovered; the bars and the recovered text; the clean pictures as files."""
    diffusion, tokenizer = loaded.diffusion, loaded.tokenizer
    chunks = loaded.chunk(tokenizer.encode(show.checked(text)))
    if len(chunks) > SHOWN_PICTURES:
        raise UserError(f"this text takes {len(chunks)} pictures: this page shows {SHOWN_PICTURES}; shorten it")
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name))
    batch = loaded.collate(chunks)
    tokens, mask = batch["tokens"], batch["mask"]
    t = torch.full((len(tokens),), 1 / (1 + sigma), device=loaded.device)
    noise = torch.randn(*tokens.shape, 3, generator=torch.Generator().manual_seed(int(seed or 0))).to(loaded.device)
    z = diffusion.add_noise(tokens, t, noise)
    noisy = z / t[:, None, None]
    found, sure = _with_confidence(loaded, z, t, mask, int(passes))
    guesses = {"nearest": diffusion.palette.decode(noisy)}
    guesses |= {name: context.best(seen) for name, context, seen in classical(loaded, z, t, mask)}
    shares = {LABELS[name]: float((guess == tokens)[mask].float().mean()) for name, guess in guesses.items()}
    shares["the model"] = float((found == tokens)[mask].float().mean())
    pictures, files, texts = [], [], []
    for index in range(len(chunks)):
        real = mask[index]
        truth, read = (show.parts(loaded.tokenizer, ids[index][real]) for ids in (tokens, found))
        wrong = (found[index] != tokens[index])[real].tolist()
        texts.append(show.marked_text(read, sure[index][real].tolist(), truth, wrong))
        shown = (
            ("clean: each pixel is a token, rest the pointer on one", diffusion.palette.colors[tokens[index]], truth),
            (
                f"with noise σ = {sigma:.2f}",
                noisy[index],
                show.parts(loaded.tokenizer, guesses["nearest"][index][real]),
            ),
            ("recovered", diffusion.palette.colors[found[index]], read),
        )
        pictures.append(show.row(_grid(loaded, colors, real, hints, caption) for caption, colors, hints in shown))
        files.append(str(folder / f"token_picture_{index}.png"))
        write_picture(loaded, files[-1], tokens[index], real, 8)
    told = show.note("The greener a token, the surer the model; what is underlined is wrong, and says what it was.")
    return "".join(pictures), show.bars(shares, "the model") + "".join(texts) + told, files


def _with_confidence(loaded: Pretrained, z, t, mask, passes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, N) after so many passes, and the probability (B, N) that the last gives them."""
    diffusion, prev = loaded.diffusion, None
    observation = diffusion.observe(z, t, mask)
    for _ in range(passes - 1):
        prev = diffusion.predict(observation, t, mask, prev=prev).prev
    found = diffusion.predict(observation, t, mask, prev=prev)
    return found.tokens, found.confidence


@torch.no_grad()
def animate(loaded: Pretrained, text: str, sigma: float, seed: int) -> str:
    """The first picture of a text, its noise, and what the network makes of it on the way back, as an animation."""
    chunk = loaded.chunk(loaded.tokenizer.encode(show.checked(text)))[0]
    batch, generator = loaded.collate([chunk]), torch.Generator(loaded.device).manual_seed(int(seed or 0))
    diffusion, to_image = loaded.diffusion, loaded.diffusion.layout.to_image
    t = 1 / (1 + sigma)
    clean = diffusion.palette.colors[batch["tokens"]]
    noise = torch.randn(clean.shape, generator=generator, device=loaded.device)
    frames = [to_image(clean + share * sigma * noise)[0] for share in np.linspace(0, 1, 8)]
    z = t * clean + (1 - t) * noise
    diffusion.sample(
        batch["mask"], loaded.grid(FRAMES, t), "euler", z, generator=generator,
        callback=lambda x: frames.append(to_image(x)[0]),
    )  # fmt: skip
    return _animation(frames, to_image(batch["mask"])[0], "text, noise, and back")


@torch.no_grad()
def write(
    loaded: Pretrained, text: str, num_tokens: int, passes: int, temperature: float, seed: int, progress
) -> tuple[str, str]:
    """A prompt continued, or its gaps [[n]] filled: the text with what is new shaded, and the way there as an animation."""
    if (text or "").strip():
        tokens, given = with_gaps(loaded, show.checked(text), int(num_tokens))
    else:
        if num_tokens > loaded.capacity:
            raise UserError(f"{int(num_tokens)} tokens: this checkpoint's picture holds {loaded.capacity}")
        tokens = torch.zeros(int(num_tokens), dtype=torch.long)
        given = torch.zeros(len(tokens), dtype=torch.bool)
    batch, diffusion, frames = loaded.collate([tokens]), loaded.diffusion, []
    cond_mask = torch.zeros_like(batch["mask"])
    cond_mask[0, : len(given)] = given.to(loaded.device)
    total = int(passes)

    def callback(x_pred):
        frames.append(diffusion.layout.to_image(x_pred)[0])
        progress((len(frames), total), unit="passes")

    generator = torch.Generator(loaded.device).manual_seed(int(seed or 0))
    found = diffusion.sample(
        batch["mask"], loaded.grid(total), "stochastic", cond_mask=cond_mask if given.any() else None, cond_tokens=batch["tokens"],
        temperature=temperature, generator=generator, callback=callback, guide=loaded.guide(None, None),
    )[0][: len(tokens)]  # fmt: skip
    pieces, start = [], 0
    while start < len(found):  # runs of given and of new tokens
        end = start + 1
        while end < len(found) and given[end] == given[start]:
            end += 1
        pieces.append((loaded.tokenizer.decode(found[start:end].cpu()), not given[start]))
        start = end
    step = max(1, len(frames) // FRAMES)
    shown = diffusion.layout.to_image(batch["mask"])[0]
    return show.plain_text(pieces), _animation([*frames[::step], frames[-1]], shown, "estimates on the way")


@torch.no_grad()
def read(loaded: Pretrained, path: str | None, denoise: bool) -> str:
    """The text of an uploaded picture."""
    if not path:
        raise UserError(
            "choose a picture first: the PNG of the first tab, or what is left of it after a chat or a screenshot"
        )
    found = read_picture(loaded, path, denoise=denoise)
    told = f"{len(found.ids)} tokens" + (
        "" if found.signed else ", from a file that does not say which checkpoint wrote it"
    )
    told += "" if found.sigma is None else f"; cleaned from noise σ = {found.sigma:.2f}"
    return show.plain_text([(loaded.tokenizer.decode(found.ids), False)]) + show.note(told)


# ----------------------------------------------------------------------------------------------------------------------
# Pieces


def _grid(loaded: Pretrained, colors, mask, hints: list[str], caption: str) -> str:
    to_image = loaded.diffusion.layout.to_image
    image, shown = to_image(colors[None])[0], to_image(mask[None])[0].cpu().numpy()
    used = 1 + int(shown.any(1).nonzero()[0].max())  # rows
    place = to_image(torch.arange(len(mask), device=mask.device)[None])[0][:used].flatten().tolist()
    said = [
        show.visible(hints[i]) or "part of a character" if real else ""
        for i, real in zip(place, shown[:used].flatten().tolist())
    ]
    return show.pixel_grid(to_pixels(image)[:used], shown[:used], said, caption)


def _animation(frames: list, mask, caption: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.gif"
        save_animation(path, frames, mask)
        content = path.read_bytes()
    return show.row([show.figure(f"<img src='{data_uri(content, 'gif')}' alt='{caption}'>", caption)])


def build(names: list[str], load: Callable[[str], Pretrained]) -> None:
    """The controls. `load` gives the model of one of the names."""
    gradio.Markdown(
        "Each token of a text is one pixel. Noise moves the colors; the model reads the text back from context."
    )
    name = gradio.Radio(names, value=names[0], label="Model")
    seed = gradio.Number(0, precision=0, label="Seed", render=False)
    with gradio.Tab("Recover"):
        text = gradio.Textbox(EXAMPLES[0], label="Text", lines=4, max_lines=12)
        gradio.Examples([[each] for each in EXAMPLES], [text], label="Examples (the second for a Chinese model)")
        with gradio.Row():
            sigma = gradio.Slider(0.02, 1.0, 0.12, step=0.01, label="Noise σ on colors in [−1, 1]")
            passes = gradio.Slider(1, 8, 4, step=1, label="Passes of the network")
            seed.render()
        with gradio.Row():
            go = gradio.Button("Add noise and recover", variant="primary")
            play = gradio.Button("Animate")
        result = gradio.HTML(elem_id="recovered")
        pictures = gradio.HTML(elem_id="pictures")
        animation = gradio.HTML(elem_id="animation")
        files = gradio.Files(label="The token pictures (8×8 pixels a token: they survive a JPEG)", interactive=False)
        inputs = [name, text, sigma, passes, seed]

        @show.guarded
        def on_recover(name, *values):
            return recover(load(name), *values)

        @show.guarded
        def on_animate(name, text, sigma, _, seed):
            return animate(load(name), text, sigma, seed)

        go.click(on_recover, inputs, [pictures, result, files])
        play.click(on_animate, inputs, animation)
    with gradio.Tab("Write"):
        gradio.Markdown(
            "A prompt is continued. Gaps are written `[[number of tokens]]`. An empty box gives a text from noise alone."
        )
        prompt = gradio.Textbox(
            "“I am very glad to see you,” said [[6]], and he [[24]] the door.",
            label="Prompt, or text with gaps",
            lines=3,
        )
        with gradio.Row():
            count = gradio.Slider(16, 256, 96, step=8, label="Tokens in all, without gaps")
            steps = gradio.Slider(4, 64, 32, step=4, label="Passes of the network")
            temperature = gradio.Slider(0.3, 1.2, 0.9, step=0.05, label="Temperature")
            write_seed = gradio.Number(0, precision=0, label="Seed")
        start = gradio.Button("Write", variant="primary")
        written = gradio.HTML(elem_id="written")
        way = gradio.HTML()

        @show.guarded
        def on_write(name, text, count, steps, temperature, seed, progress=gradio.Progress()):  # noqa: B008
            return write(load(name), text, count, steps, temperature, seed, progress)

        start.click(on_write, [name, prompt, count, steps, temperature, write_seed], [written, way])
    with gradio.Tab("Read a picture"):
        upload = gradio.Image(
            type="filepath", label="PNG or JPEG of a token picture", sources=["upload"], image_mode=None, height=260
        )
        denoise = gradio.Checkbox(True, label="Clean it with the model first")
        reading = gradio.Button("Read", variant="primary")
        found = gradio.HTML(elem_id="read")

        @show.guarded
        def on_read(name, path, denoise):
            return read(load(name), path, denoise)

        reading.click(on_read, [name, upload, denoise], found)
