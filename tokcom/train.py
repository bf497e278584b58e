"""Train TokCom: first the VAE, then the flow on its vectors.

    python -m tokcom.train --preset tiny --time_budget 10m --output_dir checkpoints/tokcom      # minutes, on a CPU
    python -m tokcom.train --preset base --data_path novels/ --output_dir checkpoints/tokcom    # your own text, one GPU
    torchrun --nproc_per_node 8 -m tokcom.train --preset v5.2 --dataset_name wikitext --dataset_config wikitext-2-raw-v1 \\
        --tokenizer_path codellama/CodeLlama-7b-hf                                              # the reference recipe's sizes
    python -m tokcom.train --preset tiny --output_dir checkpoints/tokcom --resume auto          # go on where it stopped

Writes best_vae.pt and best_diffusion.pt (by validation loss), last.pth, config.json, env.json, log.jsonl and samples.jsonl to
--output_dir. Every random number of a step is drawn from (seed, step, rank): a resumed run repeats the one that was killed,
bit for bit on a CPU.
"""

import argparse
import math
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from corpus.chunks import LengthBuckets
from corpus.loader import batches
from corpus.tokenizer import Tokenizer
from kit import device, errors
from kit.arguments import add_common, program
from kit.budget import TimeBudget
from kit.checkpoint import LAST, BackgroundWriter, load_checkpoint, load_weights, resume_path
from kit.compiling import compile_blocks
from kit.ema import EMA
from kit.errors import UserError
from kit.interrupt import Interrupt
from kit.losses import Losses
from kit.randomness import step_seed
from kit.resume import check_fixed, check_resume
from kit.runlog import RunLog, make_folder, progress_bar
from kit.schedule import lr_at, set_lr
from kit.times import TIME_SAMPLERS, TimeSampler, canonical
from tokcom.config import PRESETS, VERSION, ModelArgs, TrainConfig, check_version, from_dict, to_dict, to_saved
from tokcom.dataset import open_data
from tokcom.model import DenoisedModel, TokComVAE
from tokcom.ngram_decoder import NGramDecoder
from tokcom.stages import DiffusionStage, VAEStage, measure_latents, tune_ngrams

BEST = {"vae": "best_vae.pt", "diffusion": "best_diffusion.pt"}
RESUMED = (
    "stage",
    "model_args",
    "config",
    "tokenizer",
    "vae_model_state_dict",
    "denoised_model_state_dict",
    "training",
)
REFIT_STEPS = 50  # how often the noise schedule adapts
VALIDATIONS = 10  # in a stage that has fewer epochs

HELP = {
    "hidden_size": "width", "num_hidden_layers": "blocks of the denoiser", "vae_num_hidden_layers": "blocks of the VAE, half of them its encoder's",
    "num_attention_heads": "query heads", "num_key_value_heads": "key and value heads", "intermediate_size": "width inside the MLP",
    "latent_dim": "numbers in a vector", "chunk_size": "tokens in a vector, 1 to 16", "ngram": "order of the n-grams inside the denoiser, 2 or 3; 0 = none", "max_length": "longest sequence, in tokens",
    "batch_size": "sequences per device and step", "vae_epochs": "passes of stage one", "vae_lr": "its peak learning rate",
    "diffusion_epochs": "passes of stage two", "diffusion_lr": "its peak learning rate", "warmup_fraction": "fraction of a stage with a rising rate",
    "weight_decay": "AdamW's", "grad_clip": "largest gradient norm", "ema_decay": "of the averaged weights, ramped up",
    "kl_weight": "of the KL term", "kl_floor": "nats per dimension that the KL term leaves alone", "token_dropout": "probability with which a token is hidden from the encoder",
    "random_chunks": "fraction of stage one's chunks that are made of random tokens",
    "latent_noise": "noise on vectors in training, in their standard deviations", "noise_std": "of the noise, in the vectors' standard deviations",
    "mse_weight": "of the squared error beside the cross-entropy", "time_sampling": "distribution of training times",
    "t_mean": "mean of log(t/(1-t)) before the schedule adapts", "t_std": "its spread", "self_cond_prob": "probability of a step with self-conditioning",
    "prompt_prob": "probability with which a sequence has a prefix given clean", "ngram_start": "fraction of stage two after which n-grams join", "vae_fraction": "stage one's fraction of --time_budget",
    "sample_every": "epochs between sample tables", "num_sample_steps": "denoising steps of a sample", "num_samples": "rows of a sample table",
}  # fmt: skip
LESS_MEMORY = "lower `batch_size` or `max_length`, or take a smaller preset"


def parse_args() -> argparse.Namespace:
    parser = program(__doc__)
    best = "base" if torch.cuda.is_available() else "tiny"
    parser.add_argument("--preset", default=best, choices=PRESETS, help="sizes and rates that the defaults come from")
    parser.add_argument("--stage", default="both", choices=("both", *BEST), help="which to train")
    data = parser.add_argument_group("data; with none named, the text every Python carries")
    data.add_argument("--data_path", help="folder of the data builder, or any raw text")
    data.add_argument("--dataset_name", help="a Hugging Face dataset, such as wikitext")
    data.add_argument("--dataset_config", help="its configuration, such as wikitext-2-raw-v1")
    data.add_argument("--tokenizer_path", help="tokenizer.json, folder or Hugging Face name (default: train a BPE)")
    data.add_argument("--vocab_size", type=int, default=512, help="size of that BPE")
    add_common(data, "num_workers")
    for title, kind, left_out in (("model", ModelArgs, ("vocab_size", "mask_token_id")), ("training", TrainConfig, ())):
        group = parser.add_argument_group(title)
        for field in fields(kind):
            if field.name not in left_out:
                choices = TIME_SAMPLERS if field.name == "time_sampling" else None
                group.add_argument(
                    f"--{field.name}",
                    type=canonical if choices else field.type,
                    default=field.default,
                    choices=choices,
                    help=HELP[field.name],
                )
    run = parser.add_argument_group("run")
    run.add_argument("--time_budget", help="train so long instead of by epochs, e.g. 90s, 10m, 2h")
    run.add_argument("--vae_checkpoint", help="VAE for --stage diffusion (default: best_vae.pt of --output_dir)")
    run.add_argument("--output_dir", default="checkpoints/tokcom", help="run folder")
    add_common(run, "resume", "save_steps", "log_interval", "device", "precision", "compile", "seed", "wandb")
    first = argparse.ArgumentParser(add_help=False)  # the preset alone, so that --help shows its values
    first.add_argument("--preset", default=best)
    chosen, _ = first.parse_known_args()
    parser.set_defaults(**PRESETS.get(chosen.preset, {}))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    model_args, config = from_dict(ModelArgs, vars(args)), from_dict(TrainConfig, vars(args))
    model_args.check()
    config.check()
    if args.save_steps < 1 or args.log_interval < 1:
        raise UserError("--save_steps and --log_interval need at least 1")
    runtime = device.start(args.device, args.seed, args.precision)
    output = Path(args.output_dir)
    before = stage_one(args, output)
    resumed = None if before else resume_path(args.resume, output)
    saved = load_checkpoint(resumed, RESUMED) if resumed else None
    if saved:
        check_version(saved, resumed)
    if saved and args.stage not in ("both", saved["stage"]):
        raise UserError(
            f"{resumed} is of stage {saved['stage']}: pass --stage {saved['stage']} or both, or start stage two without --resume"
        )
    start = load_start(args, output) if args.stage == "diffusion" and not saved else saved
    if start:
        sizes = to_dict(model_args)
        fixed = sizes.keys() - {"vocab_size", "mask_token_id"}  # which the tokenizer decides
        if not saved:
            fixed -= {"ngram"}  # of the denoiser alone
        check_fixed(sizes, start["model_args"], resumed or "the VAE", sorted(fixed))
    if saved:
        now = settings_of(args, output, runtime)
        check_resume(now, saved["config"], resumed, ("noise_std", "t_mean", "t_std", "time_sampling"), runtime)

    # data
    with runtime.main_first():  # which builds what has to be built
        train, val, tokenizer = open_data(
            args.data_path, output / "data", Tokenizer.from_json(start["tokenizer"]) if start else None,
            dataset_name=args.dataset_name, dataset_config=args.dataset_config, tokenizer_path=args.tokenizer_path,
            vocab_size=args.vocab_size, min_tokens=max(1, model_args.max_length // 4), max_tokens=model_args.max_length,
            seed=args.seed,
        )  # fmt: skip
        if runtime.is_main:
            make_folder(output)
            tokenizer.save(output / "tokenizer.json")
    for chunks in (train, val):
        chunks.check(model_args.max_length, tokenizer.vocab_size, "max_length")
    model_args.vocab_size = model_args.mask_token_id = tokenizer.vocab_size
    model_args.check()  # again, now that the vocabulary is known
    order = LengthBuckets(train.lengths, config.batch_size, args.seed, runtime.rank, runtime.world_size)

    # models
    vae, denoiser = TokComVAE(model_args).to(runtime.device), DenoisedModel(model_args).to(runtime.device)
    if start:
        load_weights(vae, start["vae_model_state_dict"], resumed or args.vae_checkpoint or output)
    if runtime.is_main:
        sizes = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (vae, denoiser)]
        print(f"{args.preset}: VAE {sizes[0]:.1f}M, denoiser {sizes[1]:.1f}M parameters, {tokenizer.vocab_size} tokens")
        print(
            f"{len(train):,} sequences, {order.steps_per_epoch} steps per epoch, {runtime.device} {runtime.dtype}; writing {output}"
        )
    record = {**vars(args), "vocab_size": tokenizer.vocab_size, "world_size": runtime.world_size}
    training = (saved or before or {}).get("training")
    steps_so_far = training["offset"] + training["step"] if training else None
    log = RunLog(output, record, runtime, steps_so_far, args.wandb)
    writer = CheckpointWriter(args, model_args, config, tokenizer, vae, denoiser, output, runtime)
    interrupt = Interrupt(runtime)

    # stage one
    offset, finished = steps_so_far if before else 0, True
    if args.stage != "diffusion" and not (saved and saved["stage"] == "diffusion"):
        offset, finished = fit(
            VAEStage(vae, config, runtime), args, train, val, order, log, writer, interrupt, saved, 0
        )
        saved = None
        if finished:
            best = load_checkpoint(output / BEST["vae"], RESUMED[:-1])
            load_weights(vae, best["vae_model_state_dict"], output / BEST["vae"])

    # stage two
    if args.stage != "vae" and finished:
        ngrams = None
        if model_args.ngram:
            ngrams = NGramDecoder.of(train, tokenizer.vocab_size, model_args.ngram).to(runtime.device)
        if saved:
            offset = saved["training"]["offset"]
            if ngrams:
                ngrams.load_weights(saved["training"]["ngram_weights"])
                denoiser.ngrams = ngrams if saved["ngrams"] else None
            times = TimeSampler.from_state(saved["training"]["times"], runtime)
        else:
            vae.set_statistics(*measure_latents(vae, train, config, runtime))
            if ngrams:
                tune_ngrams(ngrams, vae, config, runtime)
            times = TimeSampler(config.time_sampling, config.t_mean, config.t_std, runtime.device, config.noise_std)
        writer.times = times
        stage = DiffusionStage(vae, denoiser, times, config, runtime, ngrams)
        _, finished = fit(stage, args, train, val, order, log, writer, interrupt, saved, offset)

    # finish
    log.close(finished)
    if runtime.is_main and not finished:
        print(f"stopped early; continue with --output_dir {output} --resume auto")
    elif runtime.is_main:
        print(f"checkpoint  {output / BEST['vae' if args.stage == 'vae' else 'diffusion']}")
    runtime.finish()


def fit(stage, args, train, val, order, log, writer, interrupt, saved, offset) -> tuple[int, bool]:
    """Train one stage; returns the steps of the run at its end, and False if a signal came first."""
    config, runtime = stage.config, stage.runtime
    optimizer = torch.optim.AdamW(
        stage.trained.parameters(), stage.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    ema = EMA(stage.trained, config.ema_decay)
    step, best, spent = 0, math.inf, 0.0
    if saved:
        state = saved["training"]
        load_weights(stage.trained, state["weights"], args.resume)
        ema.load_state_dict(state["ema"], state["step"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
        if (writer.output / BEST[stage.name]).is_file():  # not so where a run goes on in another folder
            best = state["best"]
    budget = TimeBudget(
        args.time_budget, spent, config.vae_fraction if stage.name == "vae" else 1 - config.vae_fraction
    )
    planned = order.steps_per_epoch * (stage.epochs if budget.limit is None else 10**6)
    total_steps = budget.total_steps(step, planned, runtime)
    # one loader for all epochs, whose processes are forked before a compiler has threads
    loader = iter(batches(train, order.batches(step), writer.model_args.chunk_size, args.num_workers))
    if args.compile:
        compile_blocks(stage.module, dynamic=True)
    module = runtime.parallel(  # tables never change; before n-grams join, their weights have no gradient
        stage.module, broadcast_buffers=False, find_unused_parameters=stage.ngrams is not None
    )
    losses = Losses(log, runtime, writer.output)
    bar = progress_bar(total_steps, stage.name, initial=step, active=runtime.is_main)
    stops = False

    while step < total_steps and not stops:
        epoch = step // order.steps_per_epoch
        while step < min(total_steps, (epoch + 1) * order.steps_per_epoch) and not stops:
            lr = lr_at(step, stage.lr, round(config.warmup_fraction * total_steps), total_steps)
            set_lr([optimizer], lr)
            self_condition = (
                step_seed(args.seed, offset + step, 0, 0) % 2**20 < config.self_cond_prob * 2**20
            )  # all ranks
            torch.manual_seed(step_seed(args.seed, offset + step, 0, 1 + runtime.rank))
            with runtime.autocast():
                loss, values = stage.step(module, next(loader), self_condition, step / total_steps)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(stage.trained.parameters(), config.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(stage.trained)
            step += 1
            losses.add(offset + step, lr, loss=loss.detach(), grad_norm=norm, **values)
            total_steps = bar.total = budget.total_steps(step, planned, runtime)
            bar.update()

            done = step >= total_steps
            epoch_ends = step % order.steps_per_epoch == 0
            validates = done or epoch_ends or step % max(1, min(total_steps, planned) // VALIDATIONS) == 0
            saves = done or epoch_ends or step % args.save_steps == 0
            reads = validates or saves or step % args.log_interval == 0
            stops = interrupt.at(offset + step)
            if reads or stops:
                bar.set_postfix_str(f"loss {losses.write():.3f}")
            if step % REFIT_STEPS == 0:
                stage.refit()
            if validates:
                with ema.applied(stage.trained):
                    result = {
                        name: runtime.mean(value) for name, value in stage.validate(val).items()
                    }  # one for all ranks
                    log.log(offset + step, **{f"{stage.name}/{name}": value for name, value in result.items()})
                    if result["val_loss"] < best:
                        best = result["val_loss"]
                        writer.save(BEST[stage.name], stage.name, epoch, best, None)
                    if done or (epoch_ends and (epoch + 1) % config.sample_every == 0):
                        log.table(offset + step, f"{stage.name}/samples", stage.samples(val, writer.tokenizer))
                bar.write(
                    f"{stage.name} step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in result.items())
                )
            if saves or stops:
                state = {
                    "weights": {name: value.clone() for name, value in stage.trained.state_dict().items()},
                    "ema": ema.state_dict(), "optimizer": optimizer.state_dict(),
                    "step": step, "offset": offset, "best": best, "seconds": budget.spent, "ngram_weights": stage.ngrams and stage.ngrams.tuned(),
                }  # fmt: skip
                with ema.applied(stage.trained):
                    writer.save(LAST, stage.name, epoch, best, state)
    bar.close()
    writer.wait()
    runtime.check_agreement(stage.trained)
    return offset + step, not (stops and step < total_steps)


def settings_of(args: argparse.Namespace, output: Path, runtime: device.Runtime) -> dict:
    """The run's settings for a checkpoint's config; the tokenizer lies in the run folder unless it was named."""
    return {**vars(args), "tokenizer_path": args.tokenizer_path or str(output), "world_size": runtime.world_size}


class CheckpointWriter:
    """Writes checkpoints."""

    def __init__(self, args, model_args, config, tokenizer, vae, denoiser, output, runtime):
        self.args, self.model_args, self.config, self.tokenizer = args, model_args, config, tokenizer
        self.vae, self.denoiser, self.output, self.runtime = vae, denoiser, output, runtime
        self.times: TimeSampler | None = None
        self.files = BackgroundWriter()

    def wait(self) -> None:
        """Until every file is written, on every rank."""
        self.files.wait()
        self.runtime.wait()

    def save(self, name: str, stage: str, epoch: int, val_loss: float, training: dict | None) -> None:
        """One file with both networks as they are now, and with `training` what it takes to go on. Every rank has to call."""
        times = self.times.state_dict(self.runtime) if self.times else None
        if self.runtime.is_main:
            state = {
                "epoch": epoch, "stage": stage, "version": VERSION, "val_loss": val_loss, "model_args": to_saved(self.model_args),
                "config": {**settings_of(self.args, self.output, self.runtime), **to_dict(self.config)}, "tokenizer": self.tokenizer.to_json(),
                "vae_model_state_dict": self.vae.state_dict(), "denoised_model_state_dict": self.denoiser.state_dict(),
                "times": times, "ngrams": self.denoiser.ngrams and self.denoiser.ngrams.state(),
            }  # fmt: skip
            if training:
                state["training"] = training | {"times": times}
            self.files.save(self.output / name, state)


def stage_one(args: argparse.Namespace, output: Path) -> dict | None:
    """The last checkpoint of stage one, where --stage diffusion goes on in its folder; else None."""
    if args.stage != "diffusion" or args.resume or not (output / LAST).is_file():
        return None
    last = load_checkpoint(output / LAST, RESUMED)
    return last if last["stage"] == "vae" else None


def load_start(args: argparse.Namespace, output: Path) -> dict:
    """The VAE that stage two alone starts from."""
    path = Path(args.vae_checkpoint) if args.vae_checkpoint else output / BEST["vae"]
    if not path.is_file():
        raise UserError(f"no VAE at {path}: train one with --stage vae, or name it with --vae_checkpoint")
    return load_checkpoint(path, RESUMED[:-1])


if __name__ == "__main__":
    errors.run(main, LESS_MEMORY)
