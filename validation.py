"""Validation on fixed noise: the same chunks, times and noise for every step of every run, so that curves compare."""

import math

import numpy as np
import torch

from corpus.loader import collate
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer
from diffusion import Diffusion
from kit.device import Runtime
from kit.times import t_of

LOWEST_SIGMA, HIGHEST_SIGMA = 0.02, 4.0
SHOWN_SPACINGS = (
    0.7  # noise of the example, in spacings of the palette: the nearest color is right for one token in four
)
SHOWN_TOKENS = 40


class Validation:
    """Up to `num_samples` chunks, each at one noise level; the levels are even in log sigma from 0.02 to 4."""

    def __init__(self, chunks: Chunks, num_samples: int, batch_size: int, multiple: int, runtime: Runtime):
        self.runtime = runtime
        given = getattr(chunks, "given", None)  # tokens of a prompt, on which nothing is measured
        chosen = np.sort(np.random.default_rng(1).permutation(len(chunks))[:num_samples])
        chosen = chosen[np.argsort(chunks.lengths[chosen], kind="stable")]
        generator = torch.Generator().manual_seed(1)
        log_sigma = torch.linspace(math.log(LOWEST_SIGMA), math.log(HIGHEST_SIGMA), len(chosen))
        log_sigma = log_sigma[torch.randperm(len(chosen), generator=generator)]
        batches = []
        for start in range(0, len(chosen), batch_size):
            rows = chosen[start : start + batch_size]
            batch = collate([chunks[i] for i in rows], multiple)
            batch["t"] = t_of(log_sigma[start : start + len(rows)].exp())
            if given is not None:
                batch["given"] = torch.arange(batch["mask"].shape[1]) < torch.from_numpy(given[rows])[:, None]
            batch["noise"] = torch.randn(*batch["tokens"].shape, 3, generator=generator)
            batches.append(batch)
        self.shown = batches[-1]  # holds the longest
        self.batches = batches[runtime.rank :: runtime.world_size]

    @torch.no_grad()
    def measure(self, diffusion: Diffusion) -> dict:
        """Mean loss (nats per token, or squared error of the picture) and fraction of tokens recovered in one forward pass."""
        total = torch.zeros(3, dtype=torch.float64)
        diffusion.eval()
        for batch in self.batches:
            tokens, mask, t, noise = (batch[name].to(self.runtime.device) for name in ("tokens", "mask", "t", "noise"))
            given = batch["given"].to(self.runtime.device) if "given" in batch else None
            z = diffusion.add_noise(tokens, t, noise, given)
            with self.runtime.autocast():
                guess = diffusion.denoise(z, t, mask, given, tokens)
            mask = mask if given is None else mask & ~given
            if guess.nll is None:
                error = (guess.x_pred - diffusion.palette.colors[tokens]).square().mean(-1)
            else:
                error = guess.nll
            right = (guess.tokens == tokens) & mask
            total += torch.stack([(error * mask).sum(), right.sum(), mask.sum()]).cpu().double()
        diffusion.train()
        loss, right, count = self.runtime.sum(total.to(self.runtime.device, torch.float32)).tolist()
        return {"val_loss": loss / count, "val_accuracy": right / count}

    @torch.no_grad()
    def example(self, diffusion: Diffusion, tokenizer: Tokenizer) -> dict:
        """The beginning of one chunk, as `text`, and what comes back at SHOWN_SPACINGS of noise: `nearest` color, `recovered`."""
        tokens, mask, noise = (self.shown[name][-1:].to(self.runtime.device) for name in ("tokens", "mask", "noise"))
        t = t_of(torch.full((1,), SHOWN_SPACINGS * diffusion.palette.spacing, device=tokens.device))
        diffusion.eval()
        z = diffusion.add_noise(tokens, t, noise)
        with self.runtime.autocast():
            found = diffusion.denoise(z, t, mask).tokens
        diffusion.train()
        texts = {"text": tokens, "nearest": diffusion.palette.decode(z / t), "recovered": found}
        return {name: one_line(tokenizer.decode(ids[0, :SHOWN_TOKENS])) for name, ids in texts.items()}


def one_line(text: str) -> str:
    """A text on one line, with a dot for each character that does not print."""
    return "".join(c if c.isprintable() else "·" for c in text)
