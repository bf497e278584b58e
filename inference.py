"""Use a trained checkpoint: text to pictures, pictures to text, and what lies between.

    python inference.py --checkpoint RUN/best_model.pth --mode generate --num_tokens 256 --gif
    python inference.py --checkpoint RUN/best_model.pth --mode reconstruct --input_file book.txt --t 0.88
    python inference.py --checkpoint RUN/best_model.pth --mode infill --input_text "def area(radius):"
    python inference.py --checkpoint RUN/best_model.pth --mode infill --input_text "for [[4]] in range(10):"
    python inference.py --checkpoint RUN/best_model.pth --mode encode --input_file book.txt
    python inference.py --checkpoint RUN/best_model.pth --mode decode --image outputs/encode_000.png
    python inference.py --checkpoint RUN/best_model.pth --mode decode --image scan.jpg --denoise

Pictures and texts go to --output_dir, with the settings and accuracies in MODE.json; where none is named to outputs, or if a mode has been
there before to the first of outputs-2, outputs-3, … where it has not. The checkpoint alone suffices.
"""

import argparse
import re
import sys
from itertools import count
from pathlib import Path

import numpy as np
import torch

from corpus.documents import documents, find_sources
from diffusion import SAMPLERS
from kit import device, errors, sampling
from kit.arguments import add_common, program
from kit.errors import UserError
from kit.runlog import clear_numbered, make_folder, progress_bar, write_json
from kit.textfile import replace_text
from kit.times import t_of
from kit.whole import whole
from picture import LARGEST_PIXEL, find_images, save_animation, save_png, save_strip
from pretrained import DEFAULT, Pretrained, load_pretrained
from reading import read_picture, write_picture

MODES = ("generate", "reconstruct", "infill", "encode", "decode")
NUMBERED = r"{}_\d+(_noisy|_strip)?\.(png|txt|gif)"  # what a mode writes beside MODE.json
GAP = re.compile(r"\[\[(\d{1,7})\]\]")
LESS_MEMORY = "lower `batch_size`"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    flag = argparse.BooleanOptionalAction
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT,
        help="a checkpoint of train.py, or the name of a released one: english, chinese",
    )
    parser.add_argument("--mode", default="generate", choices=MODES, help="what to do, see above")
    parser.add_argument(
        "--img_size", type=int, help="refuse a checkpoint of another image size (default: take the checkpoint's)"
    )
    parser.add_argument(
        "--input_text", help="text to reconstruct, infill (gaps written [[number of tokens]]) or encode"
    )
    parser.add_argument("--input_file", help="the same from a file")
    parser.add_argument(
        "--image", nargs="+", metavar="PATH", help="pictures or folders of pictures to decode, in order"
    )
    parser.add_argument(
        "--num_tokens",
        type=int,
        help="length of what is generated, prompt included; of a decoded picture without transparency (default: what fits)",
    )
    parser.add_argument("--num_samples", type=int, default=1, help="how many to generate, or fillings of one text")
    parser.add_argument(
        "--num_inference_steps",
        type=int,
        help="forward passes of the network (default: 32 where a text is drawn, else 4)",
    )
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="posterior takes the likeliest tokens, the others draw a text (default: posterior to reconstruct and decode, stochastic to generate and infill)",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of the context logits; 0 takes the likeliest tokens"
    )
    parser.add_argument(
        "--churn",
        type=float,
        default=0.0,
        help="fresh noise that euler and heun add in all while they draw (EDM's S_churn)",
    )
    parser.add_argument("--noise_scale", type=float, default=1.0, help="how strong it is (EDM's S_noise)")
    parser.add_argument(
        "--guide",
        metavar="PATH",
        help="an early checkpoint of the same run, which drawn texts are guided away from (default: itself without n-grams)",
    )
    parser.add_argument(
        "--guidance", type=float, help="how far (default: 0.5 where there is something to guide by); 0 = not at all"
    )
    parser.add_argument(
        "--t",
        type=float,
        help="reconstruct: time to noise to, 1 = clean (default: noise equal to half the palette's spacing); decode: time of the picture (default: estimated)",
    )
    parser.add_argument(
        "--pixel_size",
        type=int,
        default=1,
        help="encode: side of the square of pixels that stands for a token; 8 survives a JPEG",
    )
    parser.add_argument("--denoise", action=flag, default=False, help="decode: clean the picture with the model first")
    parser.add_argument(
        "--strip",
        action=flag,
        default=False,
        help="generate, infill: also save the estimates along the way side by side",
    )
    parser.add_argument("--gif", action=flag, default=False, help="generate, infill: also save them as an animation")
    parser.add_argument("--ema", action=flag, default=True, help="use the averaged weights")
    parser.add_argument("--batch_size", type=int, default=16, help="pictures at once")
    parser.add_argument("--output_dir", help="where to write, see above")
    add_common(parser, "overwrite", "device", "precision", "seed")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check(args)
    runtime = device.start(args.device, args.seed, args.precision)
    loaded = load_pretrained(args.checkpoint, runtime.device, args.img_size, args.ema)
    args.output_dir = args.output_dir or str(unused(args.mode, args.overwrite))
    output = make_folder(args.output_dir)
    mode = {"generate": generate, "reconstruct": reconstruct, "infill": infill, "encode": encode, "decode": decode}[
        args.mode
    ]
    with torch.no_grad(), runtime.autocast():
        report = mode(loaded, args, output)
    write_json(output / f"{args.mode}.json", {"settings": vars(args), "step": loaded.step, **report})
    print(
        f"\nwrote {output}/{args.mode}.json and {len(list(output.glob(f'{args.mode}_*')))} files beside it",
        file=sys.stderr,
    )


def check(args: argparse.Namespace) -> None:
    if args.t is not None and not 0 <= args.t <= 1:
        raise UserError(f"--t {args.t}: time runs from 0 (pure noise) to 1 (clean)")
    for name in ("num_samples", "num_inference_steps", "batch_size", "num_tokens", "pixel_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    if args.pixel_size > LARGEST_PIXEL:
        raise UserError(f"--pixel_size {args.pixel_size}: need at most {LARGEST_PIXEL}")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature {args.temperature}: need 0 or more")
    for name in ("churn", "noise_scale"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise UserError(f"--{name} {getattr(args, name)}: need 0 or more")
    if args.guidance is not None and not abs(args.guidance) < float("inf"):
        raise UserError(f"--guidance {args.guidance}: need a number")
    draws = args.mode in ("generate", "infill")
    if not draws and (args.churn or args.noise_scale != 1 or args.guide or args.guidance):
        raise UserError(
            f"--churn, --noise_scale, --guide and --guidance are of texts that are drawn, not of --mode {args.mode}"
        )
    if args.sampler is None:
        args.sampler = "posterior" if args.mode in ("reconstruct", "decode") else "stochastic"
    if args.num_inference_steps is None:
        args.num_inference_steps = 32 if args.sampler in sampling.SAMPLERS else 4
    needs_text = args.mode in ("reconstruct", "infill", "encode")
    if needs_text and (args.input_text is None) == (args.input_file is None):
        raise UserError(f"--mode {args.mode} needs --input_text or --input_file")
    if args.mode == "decode" and not args.image:
        raise UserError("--mode decode needs --image")


def unused(mode: str, overwrite: bool) -> Path:
    """The first of outputs, outputs-2, … without anything of an earlier call of the mode; outputs if that may be replaced."""
    places = (Path(f"outputs-{number}" if number > 1 else "outputs") for number in count(1))
    return next(place for place in places if overwrite or not any(place.glob(f"{mode}[._]*")))


def read_input(args: argparse.Namespace) -> str:
    if args.input_text is not None:
        text = args.input_text
    else:
        if not Path(args.input_file).is_file():
            raise UserError(f"no file at {args.input_file}")
        text = "\n".join(
            "".join(document.pieces()) for source in find_sources([args.input_file]) for document in documents(source)
        )
    if not text.strip():
        raise UserError("the input text is empty")
    return text


# ----------------------------------------------------------------------------------------------------------------------
# Modes: each writes its files, prints the text, and returns what goes into MODE.json


def generate(loaded: Pretrained, args, output: Path) -> dict:
    count = args.num_tokens or loaded.capacity
    if count > loaded.capacity:
        raise UserError(f"--num_tokens {count}: this checkpoint's picture holds {loaded.capacity}")
    blank = torch.zeros(count, dtype=torch.long)
    return write_samples(
        loaded, args, output, [blank] * args.num_samples, [torch.zeros(count, dtype=torch.bool)] * args.num_samples
    )


def infill(loaded: Pretrained, args, output: Path) -> dict:
    """Text with gaps [[n]] of n tokens; without a gap, a prompt to continue up to --num_tokens."""
    tokens, cond_mask = with_gaps(loaded, read_input(args), args.num_tokens)
    return write_samples(loaded, args, output, [tokens] * args.num_samples, [cond_mask] * args.num_samples)


def with_gaps(loaded: Pretrained, text: str, num_tokens: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (N,) of a text whose gaps are written [[n]], and which of them are given (N,); without a gap, what is missing up to
    `num_tokens` (default: all that a picture holds) follows it.

    Raises UserError where nothing is missing, and for more than a picture holds.
    """
    parts = GAP.split(text)
    if (asked := sum(map(int, parts[1::2]))) > loaded.capacity:
        raise UserError(f"the gaps have {asked} tokens; this checkpoint's picture holds {loaded.capacity}")
    if len(parts) == 1 and num_tokens is not None and num_tokens > loaded.capacity:
        raise UserError(f"--num_tokens {num_tokens}: this checkpoint's picture holds {loaded.capacity}")
    given = loaded.tokenizer.encode_pieces(parts[::2], [index == 0 for index in range(len(parts[::2]))])
    tokens, cond_mask = [], []
    for index, part in enumerate(parts):
        ids = np.zeros(int(part), dtype=np.int64) if index % 2 else given[index // 2].astype(np.int64)
        tokens.append(ids)
        cond_mask.append(np.full(len(ids), index % 2 == 0))
    if len(tokens) == 1:
        more = (num_tokens or loaded.capacity) - len(tokens[0])
        if more < 1:
            raise UserError(
                f"the prompt has {len(tokens[0])} tokens, which leaves nothing to fill: shorten it, or raise --num_tokens (at most {loaded.capacity})"
            )
        tokens.append(np.zeros(more, dtype=np.int64))
        cond_mask.append(np.zeros(more, dtype=bool))
    tokens, cond_mask = torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(np.concatenate(cond_mask))
    if len(tokens) > loaded.capacity:
        raise UserError(f"text and gaps have {len(tokens)} tokens; this checkpoint's picture holds {loaded.capacity}")
    if cond_mask.all():
        raise UserError("every gap is empty: write [[n]] with n of at least 1")
    return tokens, cond_mask


def write_samples(loaded: Pretrained, args, output: Path, tokens: list, cond_masks: list) -> dict:
    """Sample the positions outside the condition masks; write image, text and, if asked, the intermediate estimates."""
    guide = loaded.guide(args.guide, args.guidance) if args.sampler in sampling.SAMPLERS else None
    clear_numbered(output, NUMBERED.format(args.mode), args.overwrite)
    grid = loaded.grid(args.num_inference_steps)
    generator = torch.Generator(loaded.device).manual_seed(args.seed)
    samples, drawn, frames = [], [], []  # frames: the estimates of the first sample on its way
    passes = sampling.num_passes(args.sampler, len(grid))
    bar = progress_bar(passes * -(-len(tokens) // args.batch_size), "sample", unit="pass")

    def callback(x_pred):
        bar.update()
        if (args.gif or args.strip) and not samples:
            frames.append(loaded.diffusion.layout.to_image(x_pred[:1])[0].cpu())

    for start in range(0, len(tokens), args.batch_size):
        batch = loaded.collate(tokens[start : start + args.batch_size])
        given = torch.zeros_like(batch["mask"])
        for row, each in zip(given, cond_masks[start : start + args.batch_size]):
            row[: len(each)] = each.to(row.device)
        found = loaded.diffusion.sample(
            batch["mask"],
            grid,
            args.sampler,
            cond_mask=given if given.any() else None,
            cond_tokens=batch["tokens"],
            temperature=args.temperature,
            generator=generator,
            callback=callback,
            churn=args.churn,
            noise_scale=args.noise_scale,
            guide=guide,
        )
        for row, mask, was_given in zip(found, batch["mask"], given):
            index = len(samples)
            ids = row[mask].cpu().numpy()
            drawn.append(ids.astype(np.int32))
            ends = np.flatnonzero((ids == loaded.tokenizer.end_id) & ~was_given[mask].cpu().numpy())
            kept = ids[: ends[0]] if len(ends) else ids
            text = loaded.tokenizer.decode(kept)
            name = f"{args.mode}_{index:03d}"
            write_picture(loaded, output / f"{name}.png", row, mask)
            replace_text(output / f"{name}.txt", text)
            if frames and index == 0:
                shown = loaded.diffusion.layout.to_image(batch["mask"][:1])[0]
                if args.strip:
                    save_strip(output / f"{name}_strip.png", frames, shown)
                if args.gif:
                    save_animation(output / f"{name}.gif", frames, shown)
            print(f"--- {name} ({len(kept)} tokens{', ended by itself' if len(ends) else ''})\n{text}")
            samples.append({"file": f"{name}.png", "num_tokens": len(ids), "ended": bool(len(ends)), "text": text})
    bar.close()
    with whole(output / f"{args.mode}_tokens.npy") as partial:
        np.save(partial, np.stack(drawn))
    return {"samples": samples}


def reconstruct(loaded: Pretrained, args, output: Path) -> dict:
    """Text -> picture -> noise at --t -> sampled back -> text, and how much of it came back."""
    diffusion = loaded.diffusion
    t = float(t_of(torch.tensor(diffusion.palette.spacing / 2))) if args.t is None else args.t
    chunks = loaded.chunk(loaded.tokenizer.encode(read_input(args)))
    clear_numbered(output, NUMBERED.format(args.mode), args.overwrite)
    grid = loaded.grid(args.num_inference_steps, t)
    generator = torch.Generator(loaded.device).manual_seed(args.seed)
    ids, pictures, right, nearest_right, total = [], 0, 0, 0, 0
    with progress_bar(len(chunks), "reconstruct", unit="picture") as bar:
        for start in range(0, len(chunks), args.batch_size):
            batch = loaded.collate(chunks[start : start + args.batch_size])
            tokens, mask = batch["tokens"], batch["mask"]
            noise = torch.randn(*tokens.shape, 3, device=tokens.device, generator=generator)
            z = diffusion.add_noise(tokens, torch.full((len(tokens),), t, device=tokens.device), noise)
            found = diffusion.sample(mask, grid, args.sampler, z, temperature=args.temperature, generator=generator)
            noisy = z / max(t, 1e-6)
            nearest = diffusion.palette.decode(noisy)
            right += int(((found == tokens) & mask).sum())
            nearest_right += int(((nearest == tokens) & mask).sum())
            total += int(mask.sum())
            for row, picture, each in zip(found, diffusion.layout.to_image(noisy), mask):
                name = f"reconstruct_{pictures:03d}"
                shown = diffusion.layout.to_image(each[None])[0]
                save_png(output / f"{name}_noisy.png", picture, shown, loaded.fingerprint)
                write_picture(loaded, output / f"{name}.png", row, each)
                ids += row[each].tolist()
                pictures += 1
                bar.update()
    text = loaded.tokenizer.decode(ids)
    replace_text(output / "reconstruct.txt", text)
    print(text)
    accuracy, nearest = right / total, nearest_right / total
    print(
        f"\nt = {t:.3f} (sigma {(1 - t) / max(t, 1e-6):.3f}): {accuracy:.2%} of {total} tokens recovered; nearest color {nearest:.2%}"
    )
    return {"t": t, "num_tokens": total, "accuracy": accuracy, "nearest_accuracy": nearest}


def encode(loaded: Pretrained, args, output: Path) -> dict:
    """Text of any length to lossless pictures, ended with an end token."""
    tokens = np.append(loaded.tokenizer.encode(read_input(args)), loaded.tokenizer.end_id)
    chunks = loaded.chunk(tokens)
    clear_numbered(output, NUMBERED.format(args.mode), args.overwrite)
    files = []
    for index, chunk in enumerate(chunks):
        batch = loaded.collate([chunk])
        files.append(f"encode_{index:0{max(3, len(str(len(chunks) - 1)))}d}.png")
        write_picture(loaded, output / files[-1], batch["tokens"][0], batch["mask"][0], args.pixel_size)
    print(f"{len(tokens):,} tokens in {len(files)} picture(s): {output / files[0]}{' …' if len(files) > 1 else ''}")
    return {"num_tokens": len(tokens), "files": files}


def decode(loaded: Pretrained, args, output: Path) -> dict:
    """Pictures to text. Padding is what is transparent; without transparency, all after the first end token."""
    read, paths = [], find_images(args.image)
    with progress_bar(len(paths), "decode", unit="image") as bar:
        for path in paths:
            steps = (args.num_inference_steps, args.sampler, args.temperature)
            read.append(read_picture(loaded, path, args.num_tokens, args.denoise, args.t, *steps))
            bar.update()
    unsigned = [path for path, found in zip(paths, read) if not found.signed]
    if unsigned:
        errors.note(
            f"{unsigned[0]}{f' and {len(unsigned) - 1} more' if unsigned[1:] else ''} does not say which tokenizer, palette and "
            "layout wrote it: decoded by this checkpoint's"
        )
    ids = np.concatenate([found.ids for found in read])
    text = loaded.tokenizer.decode(ids)
    replace_text(output / "decode_000.txt", text)
    with whole(output / "decode_000_tokens.npy") as partial:
        np.save(partial, ids.astype(np.int32))
    print(text)
    levels = [round(found.sigma, 4) for found in read if found.sigma is not None]
    return {"num_tokens": len(ids), "files": ["decode_000.txt", "decode_000_tokens.npy"], "sigma": levels}


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
