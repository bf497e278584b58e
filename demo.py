"""Try all four systems in a browser: python demo.py, then open the address it prints.

    pip install -r requirements-demo.txt
    python demo.py                                                    # the checkpoints that come with the repository
    python demo.py --checkpoint RUN/best_model.pth                    # your own beside them
    python demo.py --tokcom RUN/best_diffusion.pt --image_context RUN --vit RUN/last.pth

The page is served to this machine alone unless --host or --share says otherwise, and fetches nothing from elsewhere.
"""

import argparse
import os
from functools import cache
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported

import gradio

from kit import device, errors
from kit.arguments import add_common, program
from kit.errors import UserError
from pretrained import RELEASED, Pretrained, load_pretrained
from tabs import image_context, show, tokcom, token_picture, vit

LARGEST_UPLOAD = "5mb"
QUEUE = 128  # requests that wait; they are answered one after the other
FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # those of the machine: nothing is fetched
LESS_MEMORY = "close other programs, or load fewer checkpoints"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument("--checkpoint", nargs="+", default=[], metavar="PATH", help="checkpoints of train.py")
    parser.add_argument("--tokcom", metavar="PATH", help="best_diffusion.pt of tokcom.train")
    parser.add_argument("--image_context", metavar="FOLDER", help="a run of image_context.train_lora")
    parser.add_argument("--vit", metavar="PATH", help="a checkpoint of vit_cifar10.train")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument(
        "--share",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also open a public link, by a server of gradio's",
    )
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=True, help="open the page in a browser"
    )
    add_common(parser, "device")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runtime = device.start(args.device, 0, "fp32")
    page = build(args, runtime)
    try:
        page.queue(default_concurrency_limit=1, max_size=QUEUE).launch(
            server_name=args.host, server_port=args.port, share=args.share, inbrowser=args.browser, max_file_size=LARGEST_UPLOAD,
            theme=gradio.themes.Base(primary_hue="emerald", font=FONTS[0], font_mono=FONTS[1]), css=show.CSS, footer_links=["settings"],
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot listen on {args.host} port {args.port}: choose another --port ({error})") from error


def build(args: argparse.Namespace, runtime: device.Runtime) -> gradio.Blocks:
    """The page. Checkpoints given are loaded at once, so that a wrong one is told before the page opens."""
    names = [path.stem for path in sorted(RELEASED.glob("*.safetensors"), reverse=True)]
    own = {f"{Path(path).parent.name}/{Path(path).name}": path for path in args.checkpoint}
    if len(own) < len(args.checkpoint):
        raise UserError("--checkpoint: two of them have the same folder and name, which the page could not tell apart")

    @cache
    def load(name: str) -> Pretrained:
        if name not in own and name not in names:
            raise UserError("choose a model of the list")
        return load_pretrained(own.get(name, name), runtime.device)

    for name in own:
        load(name)
    names = [*own, *names]
    if not names:
        raise UserError("no checkpoint comes with this copy: pass --checkpoint")
    with gradio.Blocks(title="TokenColor", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(
            "# TokenColor\nCan text live in a continuous medium, pixels or vectors, and come back token for token?"
        )
        with gradio.Tab("Token picture"):
            token_picture.build(names, load)
        with gradio.Tab("TokCom"):
            tokcom.build(args.tokcom, runtime.device)
        with gradio.Tab("Image context"):
            image_context.build(args.image_context, runtime, load(names[0]).tokenizer)
        with gradio.Tab("ViT"):
            vit.build(args.vit, runtime.device)
    return page


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
