"""TokCom: text to vectors, noise on them, and back; continuation."""

import gradio
import numpy as np
import torch

from kit.errors import UserError
from kit.figures import plt
from kit.page import escape
from tabs import show
from tokcom import inference
from tokcom.pretrained import Pretrained

EXAMPLE = (
    "The value of the expression is evaluated before the function is called, and the result is returned to the caller."
)
LABELLED = 40  # chunks that the map names


@torch.no_grad()
def recover(loaded: Pretrained, text: str, level: float, seed: int) -> tuple[str, str, str]:
    """The vectors of a text as an image, what is read of them after noise, and their map."""
    ids = inference.read_ids(show.checked(text), loaded.tokenizer)
    if len(ids) > loaded.window:
        raise UserError(f"{len(ids)} tokens: this model's window holds {loaded.window}; shorten the text")
    generator = torch.Generator().manual_seed(int(seed or 0))
    latents = inference.encode(loaded.vae, ids[None])
    plain = inference.decode(loaded.vae, latents)[0, : len(ids)].cpu()
    found = inference.denoise_reconstruct(
        loaded.vae, loaded.denoiser, ids[None], level, loaded.config["noise_std"], generator=generator
    )[0].cpu()
    right = (found == ids).float()
    truth, read = (show.parts(loaded.tokenizer, row) for row in (ids, found))
    shares = {"vectors alone": float((plain == ids).float().mean()), "after the noise": float(right.mean())}
    marked = show.marked_text(read, [1.0] * len(read), truth, (found != ids).tolist())
    told = show.note(
        f"{len(ids)} tokens in {latents.shape[1]} vectors of {latents.shape[2]} numbers; what is underlined is wrong."
    )
    return (
        _heat(latents[0].cpu()),
        show.bars(shares, "after the noise") + marked + told,
        _map(loaded, latents[0].cpu(), ids),
    )


@torch.no_grad()
def continued(loaded: Pretrained, prompt: str, chunks: int, steps: int, seed: int) -> str:
    """A prompt and what the model writes after it, shaded."""
    K = loaded.denoiser.args.chunk_size
    ids = inference.whole_chunks(loaded.tokenizer, show.checked(prompt), K)
    generator = torch.Generator().manual_seed(int(seed or 0))
    found = inference.generate(
        loaded.vae, loaded.denoiser, int(chunks), noise_std=loaded.config["noise_std"], num_steps=int(steps), prompt_ids=ids, generator=generator
    )[0]  # fmt: skip
    return show.plain_text(
        [(loaded.tokenizer.decode(found[: len(ids)]), False), (loaded.tokenizer.decode(found[len(ids) :]), True)]
    )


def _heat(latents: torch.Tensor) -> str:
    """Vectors (C, D) as an image, one a column."""
    values = (latents.T / (2 * latents.std().clamp_min(1e-6))).clamp(-1, 1).numpy()
    pixels = (plt.colormaps["RdBu_r"]((values + 1) / 2)[..., :3] * 255).astype(np.uint8)
    return show.row(
        [show.picture(pixels.repeat(4, 0).repeat(max(1, 320 // pixels.shape[1]), 1), "the vectors, one a column")]
    )


def _map(loaded: Pretrained, latents: torch.Tensor, ids: torch.Tensor) -> str:
    """The two main directions of the vectors, each point with its chunk's text, as SVG."""
    if len(latents) < 3:
        return show.note("A map needs at least three vectors.")
    centered = latents.float() - latents.float().mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    points = centered @ directions[:2].T
    points = 0.5 + 0.45 * points / points.abs().amax(0).clamp_min(1e-9)
    K, parts = loaded.denoiser.args.chunk_size, []
    for index, (x, y) in enumerate(points.tolist()):
        text = escape(show.visible(loaded.tokenizer.decode(ids[index * K : index * K + K])))
        label = f"<text x='{900 * x + 8:.0f}' y='{420 * y + 4:.0f}' font-size='12' fill='currentColor'>{text}</text>"
        parts.append(
            f"<circle cx='{900 * x:.0f}' cy='{420 * y:.0f}' r='4' fill='#0072b2'><title>{text}</title></circle>"
        )
        parts.append(label if index < LABELLED else "")
    return f"<svg viewBox='0 0 1020 430' style='width:100%;height:auto' role='img'>{''.join(parts)}</svg>" + show.note(
        "The vectors along their two main directions."
    )


def build(path: str | None, device: torch.device) -> None:
    """The controls, or how to come by a checkpoint."""
    if path is None:
        gradio.Markdown(
            "A VAE turns four tokens into one vector; flow matching writes the vectors. This tab needs a checkpoint, which "
            "takes about ten minutes of a CPU:\n\n```bash\n./recipes/tokcom_cpu.sh\n"
            "python demo.py --tokcom checkpoints/tokcom_cpu/best_diffusion.pt\n```"
        )
        return
    loaded = Pretrained.load(path, device)
    window = loaded.denoiser.args.max_chunks
    gradio.Markdown(
        f"A VAE turns {loaded.denoiser.args.chunk_size} tokens into one vector; flow matching writes the vectors."
    )
    text = gradio.Textbox(EXAMPLE, label="Text", lines=3)
    with gradio.Row():
        level = gradio.Slider(0.05, 1.0, 0.5, step=0.05, label="Noise level: 0 = pure noise, 1 = none")
        seed = gradio.Number(0, precision=0, label="Seed")
    go = gradio.Button("Encode, add noise, read back", variant="primary")
    result, vectors, chart = gradio.HTML(elem_id="tokcom_read"), gradio.HTML(), gradio.HTML()
    prompt = gradio.Textbox(EXAMPLE[:60], label="Prompt to continue", lines=2)
    chunks = gradio.Slider(1, max(1, window - 1), min(16, max(1, window // 2)), step=1, label="Vectors to write")
    steps = gradio.Slider(1, 64, 16, step=1, label="Passes of the network")
    more = gradio.Button("Continue")
    written = gradio.HTML(elem_id="tokcom_written")

    @show.guarded
    def on_recover(*values):
        return recover(loaded, *values)

    @show.guarded
    def on_continue(*values):
        return continued(loaded, *values)

    go.click(on_recover, [text, level, seed], [vectors, result, chart])
    more.click(on_continue, [prompt, chunks, steps, seed], written)
