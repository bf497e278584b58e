"""Use a trained TokCom: generate, reconstruct, denoise_reconstruct, encode, decode, conditional.

    python -m tokcom.inference --checkpoint RUN/best_diffusion.pt --mode generate --num_chunks 64
    python -m tokcom.inference --checkpoint RUN/best_diffusion.pt --mode reconstruct --input_text "..."
    python -m tokcom.inference --checkpoint RUN/best_diffusion.pt --mode denoise_reconstruct --input_text "..." --noise_level 0.5
    python -m tokcom.inference --checkpoint RUN/best_diffusion.pt --mode encode --input_file book.txt --output_file latents.pt
    python -m tokcom.inference --checkpoint RUN/best_diffusion.pt --mode decode --latents latents.pt --output_file book.txt
    python -m tokcom.inference --checkpoint RUN/best_diffusion.pt --mode conditional --prompt "The family of four was "

The checkpoint is all it takes. From Python: load_checkpoint, generate, reconstruct, denoise_reconstruct, encode, decode.
"""

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path

import torch

from corpus.tokenizer import Tokenizer
from kit import device as devices
from kit import errors
from kit.arguments import add_common, program
from kit.checkpoint import build_fitting, reading, save_checkpoint, validated
from kit.checkpoint import load_checkpoint as load_file
from kit.errors import UserError
from kit.sampling import SAMPLERS
from kit.textfile import read_text, write_text
from kit.times import TimeSampler
from tokcom.config import ModelArgs, TrainConfig, check_version, from_dict
from tokcom.flow import Flow
from tokcom.model import DenoisedModel, TokComVAE
from tokcom.ngram_decoder import NGramDecoder
from tokcom.quantize import MAX_BITS, dequantize, pack, quantize, unpack

POSTERIOR = "posterior"
MODES = ("generate", "reconstruct", "denoise_reconstruct", "encode", "decode", "conditional")
NEEDS_DIFFUSION = ("generate", "denoise_reconstruct", "conditional")
NEEDED = ("stage", "model_args", "config", "tokenizer", "vae_model_state_dict", "denoised_model_state_dict")
EXACT_LEAD = 1.0  # nats; a token that wins by less may lose on a device that rounds otherwise
CHUNKS_AT_ONCE = 1024  # that the VAE reads or writes in one batch


# ----------------------------------------------------------------------------------------------------------------------
# The Python interface


def load_checkpoint(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[TokComVAE, DenoisedModel | None, ModelArgs, dict]:
    """(vae_model, denoised_model, model_args, config) of a checkpoint; a checkpoint of stage one has no denoised_model.

    `config` also holds the tokenizer's JSON (`config["tokenizer"]`, for `corpus.tokenizer.Tokenizer.from_json`). Raises
    UserError for a file that is missing, damaged, of another kind or of an older version.
    """
    saved = load_file(path, NEEDED)
    check_version(saved, path)
    with reading(path):
        model_args = validated(ModelArgs, asdict(from_dict(ModelArgs, saved["model_args"])), path)
        model_args.check()
        validated(TrainConfig, asdict(from_dict(TrainConfig, saved["config"])), path).check()
        if Tokenizer.from_json(saved["tokenizer"]).vocab_size != model_args.vocab_size:
            raise ValueError("its tokenizer has another vocabulary")
    vae = build_fitting(lambda: TokComVAE(model_args), saved["vae_model_state_dict"], path)
    denoiser = None
    if saved["stage"] == "diffusion":
        denoiser = build_fitting(lambda: DenoisedModel(model_args), saved["denoised_model_state_dict"], path)
        with reading(path):
            denoiser.times = TimeSampler.from_state(saved["times"])
            if model_args.ngram and saved["ngrams"]:  # there are none before they join
                denoiser.ngrams = NGramDecoder.from_state(saved["ngrams"])
                if (denoiser.ngrams.ngram.vocab_size, denoiser.ngrams.ngram.order) != (
                    model_args.vocab_size,
                    model_args.ngram,
                ):
                    raise ValueError("its n-grams are of another vocabulary or order")
        denoiser.to(device).eval()
    config = saved["config"] | {"tokenizer": saved["tokenizer"], "stage": saved["stage"]}
    return vae.to(device).eval(), denoiser, model_args, config


@torch.no_grad()
def encode(vae_model: TokComVAE, token_ids: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, latent_dim) of token ids (B, N) of any length; a last chunk that is not full is padded."""
    K = vae_model.args.chunk_size
    device = vae_model.latent_mean.device
    count = token_ids.shape[1]
    tokens = torch.zeros(len(token_ids), -(-count // K) * K, dtype=torch.long, device=device)
    tokens[:, :count] = token_ids
    mask = torch.arange(tokens.shape[1], device=device).expand_as(tokens) < count
    chunks, masks = tokens.view(-1, 1, K), mask.view(-1, 1, K)
    parts = [
        vae_model.encode(t[:, 0], m[:, 0]) for t, m in zip(chunks.split(CHUNKS_AT_ONCE), masks.split(CHUNKS_AT_ONCE))
    ]
    return torch.cat(parts).view(len(tokens), -1, vae_model.args.latent_dim)


@torch.no_grad()
def decode(vae_model: TokComVAE, latents: torch.Tensor) -> torch.Tensor:
    """Token ids (B, C * chunk_size) of latents (B, C, latent_dim), the likeliest at each place."""
    device = vae_model.latent_mean.device
    flat = latents.to(device).view(-1, 1, latents.shape[-1])
    parts = [vae_model.decode(part).argmax(-1) for part in flat.split(CHUNKS_AT_ONCE)]
    return torch.cat(parts).view(len(latents), -1)


@torch.no_grad()
def lead(vae_model: TokComVAE, latents: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """By how much the logit of each of token_ids (N,) exceeds all others', in nats, decoding latents (C, latent_dim): (N,) on the CPU."""
    padded = torch.nn.functional.pad(token_ids, (0, len(latents) * vae_model.args.chunk_size - len(token_ids)))
    found, chunks = [], padded.view(len(latents), -1)
    for part, ids in zip(latents.split(CHUNKS_AT_ONCE), chunks.split(CHUNKS_AT_ONCE)):
        logits, ids = vae_model.decode(part[:, None]).float(), ids.to(part.device)[..., None]
        right = logits.gather(-1, ids)[..., 0]
        found.append(right - logits.scatter(-1, ids, -torch.inf).amax(-1))
    return torch.cat(found).flatten()[: len(token_ids)].cpu()


def reconstruct(vae_model: TokComVAE, token_ids: torch.Tensor) -> torch.Tensor:
    """Token ids (B, N) encoded and decoded again: (B, N)."""
    return decode(vae_model, encode(vae_model, token_ids))[:, : token_ids.shape[1]]


@torch.no_grad()
def denoise_reconstruct(
    vae_model: TokComVAE,
    denoised_model: DenoisedModel,
    token_ids: torch.Tensor,
    noise_level: float = 0.5,
    noise_std: float = 1.0,
    num_steps: int = 50,
    sampler: str = "posterior",
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Token ids (B, N) encoded, mixed with noise, denoised and decoded: (B, N).

    `noise_level` is the time t the mixture starts from: 0 = pure noise, 1 = none (then `reconstruct`). `posterior` makes one forward pass and
    takes each token's likeliest, which no sampler can beat at recovering tokens; the samplers of the flow draw a whole text in
    `num_steps`. Raises UserError for a level outside [0, 1] or sequences longer than the model's window.
    """  # fmt: skip
    if not 0 <= noise_level <= 1:
        raise UserError(f"--noise_level {noise_level}: need 0 (pure noise) to 1 (none)")
    if noise_level == 1:
        return reconstruct(vae_model, token_ids)
    latents = encode(vae_model, token_ids)
    _check_window(denoised_model, latents.shape[1])
    flow = Flow(vae_model, denoised_model, noise_std)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    mask = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
    grid = denoised_model.times.grid(num_steps, noise_level or None)
    if sampler == POSTERIOR:
        grid, sampler = grid[:1], SAMPLERS[0]  # of one noise level every sampler makes one forward pass
    start = flow.add_noise(latents, grid[:1].to(latents.device), noise) if noise_level else None
    found = flow.sample(mask, grid, sampler, z=start, generator=generator)
    return found.tokens()[:, : token_ids.shape[1]]


@torch.no_grad()
def generate(
    vae_model: TokComVAE,
    denoised_model: DenoisedModel,
    num_chunks: int = 256,
    chunk_size: int | None = None,
    hidden_size: int | None = None,
    noise_std: float = 1.0,
    num_steps: int = 50,
    batch_size: int = 1,
    device: str | torch.device | None = None,
    prompt_ids: torch.Tensor | None = None,
    sampler: str = "stochastic",
    guidance: float = 1.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Token ids (batch_size, num_chunks * chunk_size) out of noise, after `prompt_ids` (P,) if given.

    A prompt takes whole chunks: P is a multiple of the chunk size, and its chunks come on top of `num_chunks`; they stay as
    they are. `chunk_size`, `hidden_size` and `device`, where given, must be the model's. Raises UserError where they are not,
    and for more chunks than the model's window.
    """  # fmt: skip
    args = denoised_model.args
    for name, value in (("chunk_size", chunk_size), ("hidden_size", hidden_size)):
        if value is not None and value != getattr(args, name):
            raise UserError(f"{name} {value}: this model has {getattr(args, name)}")
    place = vae_model.latent_mean.device
    if device is not None and torch.device(device).type != place.type:
        raise UserError(f"device {device}: the model is on {place}")
    given = 0 if prompt_ids is None else len(prompt_ids) // args.chunk_size
    if prompt_ids is not None and (not given or len(prompt_ids) % args.chunk_size):
        raise UserError(f"a prompt of {len(prompt_ids)} tokens: need whole chunks of {args.chunk_size}")
    _check_window(denoised_model, given + num_chunks)
    shape = batch_size, given + num_chunks
    mask = torch.ones(shape, dtype=torch.bool, device=place)
    cond_mask = cond_latents = None
    if given:
        cond_mask = (torch.arange(shape[1], device=place) < given).expand(shape)
        cond_latents = torch.zeros(*shape, args.latent_dim, device=place)
        cond_latents[:, :given] = encode(vae_model, prompt_ids[None])
    grid = denoised_model.times.grid(num_steps)
    z = (1 - grid[0]) * noise_std * torch.randn(*shape, args.latent_dim, generator=generator).to(place)
    found = Flow(vae_model, denoised_model, noise_std).sample(
        mask, grid, sampler, z=z, cond_mask=cond_mask, cond_latents=cond_latents, guidance=guidance, generator=generator
    )
    tokens = found.tokens()
    if given:
        tokens[:, : len(prompt_ids)] = prompt_ids.to(place)
    return tokens


def _check_window(model: DenoisedModel, chunks: int) -> None:
    if not 1 <= chunks <= model.args.max_chunks:
        raise UserError(
            f"{chunks} chunks: this model's window holds 1 to {model.args.max_chunks} ({model.args.max_length} tokens)"
        )


# ----------------------------------------------------------------------------------------------------------------------
# The command
LESS_MEMORY = "lower `batch_size` or `num_chunks`, or pass a shorter text"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    parser.add_argument(
        "--checkpoint", required=True, help="best_diffusion.pt, or best_vae.pt for what the VAE does alone"
    )
    parser.add_argument("--mode", default="generate", choices=MODES, help="what to do")
    parser.add_argument("--input_text", help="text for reconstruct, denoise_reconstruct, encode")
    parser.add_argument("--input_file", help="the same from a UTF-8 file")
    parser.add_argument("--latents", help="file that encode wrote, for decode")
    parser.add_argument("--exact", action="store_true", help="encode also keeps the tokens its vectors would get wrong")
    parser.add_argument("--bits", type=int, help="encode stores each number in so many bits, 1 to 8 (default: float32)")
    parser.add_argument("--prompt", help="text to continue, for conditional")
    parser.add_argument("--num_chunks", type=int, help="vectors to generate (default: the model's window)")
    parser.add_argument(
        "--num_generate_chunks", type=int, help="vectors after the prompt (default: 64, or what the window has left)"
    )
    parser.add_argument("--num_steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--noise_level", type=float, default=0.5, help="0 = pure noise, 1 = none")
    parser.add_argument(
        "--sampler", choices=(*SAMPLERS, POSTERIOR), help="(default: stochastic to write, posterior to denoise)"
    )
    parser.add_argument("--guidance", type=float, default=1.0, help="above 1 leans on the prompt")
    parser.add_argument("--batch_size", type=int, default=1, help="texts to generate")
    parser.add_argument("--output_file", help="write the result here too")
    add_common(parser, "seed", "device")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    for name in ("num_steps", "batch_size", "num_chunks", "num_generate_chunks"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: need at least 1")
    runtime = devices.start(args.device, args.seed, "fp32")
    vae, denoiser, model_args, config = load_checkpoint(args.checkpoint, runtime.device)
    if args.mode in NEEDS_DIFFUSION and denoiser is None:
        raise UserError(f"{args.checkpoint} holds a VAE only; --mode {args.mode} needs best_diffusion.pt")
    tokenizer = Tokenizer.from_json(config["tokenizer"])
    generator = torch.Generator().manual_seed(args.seed)
    options = {"noise_std": config["noise_std"], "num_steps": args.num_steps, "generator": generator}
    if args.mode == "encode":
        write_latents(args, vae, tokenizer)
        return
    if args.mode == "decode":
        texts = [tokenizer.decode(read_latents(args, vae))]
    elif args.mode == "generate":
        count = model_args.max_chunks if args.num_chunks is None else args.num_chunks
        ids = generate(
            vae, denoiser, count, batch_size=args.batch_size, sampler=args.sampler or "stochastic", **options
        )
        texts = [tokenizer.decode(row) for row in ids]
    elif args.mode == "conditional":
        prompt = whole_chunks(tokenizer, args.prompt, model_args.chunk_size)
        left = model_args.max_chunks - len(prompt) // model_args.chunk_size
        count = min(64, max(1, left)) if args.num_generate_chunks is None else args.num_generate_chunks
        ids = generate(
            vae, denoiser, count, batch_size=args.batch_size, prompt_ids=prompt,
            sampler=args.sampler or "stochastic", guidance=args.guidance, **options,
        )  # fmt: skip
        texts = [tokenizer.decode(row) for row in ids]
    else:
        ids = read_ids(given_text(args), tokenizer)
        if args.mode == "reconstruct":
            found = reconstruct(vae, ids[None])
        else:
            windows = ids.split(model_args.max_length)
            options["sampler"] = args.sampler or POSTERIOR
            found = torch.cat(
                [denoise_reconstruct(vae, denoiser, w[None], args.noise_level, **options) for w in windows], 1
            )
        right = (found[0].cpu() == ids).float().mean().item()
        print(f"{right:.2%} of {len(ids)} tokens recovered", flush=True)
        texts = [tokenizer.decode(found[0])]
    for text in texts:
        print(text)
    if args.output_file:
        write_text(args.output_file, "\n\n".join(texts))


def given_text(args: argparse.Namespace) -> str:
    if (args.input_text is None) == (args.input_file is None):
        raise UserError(f"--mode {args.mode} needs --input_text or --input_file")
    return read_text(args.input_file) if args.input_text is None else args.input_text


def read_ids(text: str, tokenizer: Tokenizer) -> torch.Tensor:
    ids = torch.from_numpy(tokenizer.encode(text).astype("int64"))
    if not len(ids):
        raise UserError("the input text is empty")
    return ids


def whole_chunks(tokenizer: Tokenizer, prompt: str | None, chunk_size: int) -> torch.Tensor:
    """Ids of a prompt, its first tokens dropped so that whole chunks are left."""
    ids = torch.from_numpy(tokenizer.encode(prompt or "").astype("int64"))
    if len(ids) < chunk_size:
        raise UserError(f"--prompt has {len(ids)} tokens: write at least {chunk_size}, one whole chunk")
    return ids[len(ids) % chunk_size :]


def fingerprint(vae: TokComVAE) -> str:
    """A name for the VAE that wrote a latents file: latents of another one mean nothing here."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):  # with the statistics that it normalizes by
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_latents(args: argparse.Namespace, vae: TokComVAE, tokenizer: Tokenizer) -> None:
    if args.bits is not None and not 1 <= args.bits <= MAX_BITS:
        raise UserError(f"--bits {args.bits}: need 1 to {MAX_BITS}")
    ids = read_ids(given_text(args), tokenizer)
    latents = encode(vae, ids[None])
    state = {"num_tokens": len(ids), "vae": fingerprint(vae)}
    if args.bits:
        codes = quantize(latents, args.bits)
        latents = dequantize(codes, args.bits)
        state |= {"codes": pack(codes, args.bits), "bits": args.bits}
    else:
        state |= {"latents": latents[0].cpu()}
    certain = lead(vae, latents[0], ids)
    if args.exact:
        kept = (certain < EXACT_LEAD).nonzero().flatten()
        state |= {"wrong": kept, "instead": ids[kept]}
    path = args.output_file or "latents.pt"
    save_checkpoint(path, state)
    told = f"; {len(state['wrong'])} that are wrong or nearly so are kept beside them" if args.exact else ""
    size = f" numbers of {args.bits} bits" if args.bits else ""
    print(f"{len(ids)} tokens in {latents.shape[1]} vectors of {latents.shape[2]}{size}: {path}")
    print(f"the vectors alone give back all but {int((certain <= 0).sum())}{told}")


def read_latents(args: argparse.Namespace, vae: TokComVAE) -> torch.Tensor:
    if not args.latents:
        raise UserError("--mode decode needs --latents FILE, as encode writes it")
    saved = load_file(args.latents, ("num_tokens", "vae"))
    if saved["vae"] != fingerprint(vae):
        raise UserError(f"{args.latents} was written by another model than {args.checkpoint}")
    with reading(args.latents):
        shape = -(-saved["num_tokens"] // vae.args.chunk_size), vae.args.latent_dim
        if "codes" in saved:
            latents = dequantize(unpack(saved["codes"], saved["bits"], shape), saved["bits"])
        else:
            latents = saved["latents"]
        if latents.shape != shape or not torch.isfinite(latents).all():
            raise ValueError(f"it holds no {shape[0]} vectors of {shape[1]} finite numbers")
        ids = decode(vae, latents[None].float())[0, : saved["num_tokens"]]
        if "wrong" in saved:
            ids[saved["wrong"].to(ids.device)] = saved["instead"].to(ids.device)
        if ids.min() < 0 or ids.max() >= vae.args.vocab_size:
            raise ValueError("it holds tokens that are not in the vocabulary")
    return ids


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
