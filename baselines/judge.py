"""How good are generated texts? Scored by an autoregressive model of the same training text, and by counting.

A low perplexity alone says little, since repetition has it too; so every row has
  gen_ppl    exp of the judge's nats per token
  entropy    bits per token of each text's own token frequencies, on average (Zheng et al., arXiv 2409.02908)
  distinct   fraction of all 4-grams that are different ones
  seen       fraction of 4-grams that occur in the training text
  words      fraction of words that occur in the training text
and where it is asked for
  mauve      how alike their distribution is to that of real texts, 0 to 1 (MAUVE, Pillutla et al., arXiv 2102.01454, by its library), from
             the judge's last hidden states, their mean over each text; values compare only under one judge, for as many texts
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, EuroBertForMaskedLM, LlamaForCausalLM

from baselines.autoregressive import nats_per_sequence
from corpus.ngram import ALL, NGram
from corpus.ngram_tables import count_ngrams
from corpus.shards import Chunks
from corpus.tokenizer import Tokenizer
from kit import device
from kit.errors import UserError

ORDER = 4
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
KINDS = {"llama": LlamaForCausalLM, "eurobert": EuroBertForMaskedLM}


def load_baseline(path: str | Path, vocab_size: int) -> nn.Module:
    """A network of baselines.autoregressive or baselines.masked, in evaluation mode.

    Raises UserError if there is none at `path`, or one of another vocabulary.
    """
    folder = Path(path) / "model" if (Path(path) / "model").is_dir() else Path(path)
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        model = KINDS[kind].from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} holds no model of a baseline: {str(error).splitlines()[0]}") from error
    if model.config.vocab_size != vocab_size + 1:
        raise UserError(f"{path} was trained with {model.config.vocab_size - 1} tokens, not {vocab_size}")
    return model


class Judge:
    """Scores texts by an autoregressive `model`, which counting does without, and by what occurs in `train`."""

    def __init__(self, model: nn.Module | None, train: Chunks, tokenizer: Tokenizer, runtime: device.Runtime):
        self.model, self.tokenizer, self.runtime = model, tokenizer, runtime
        parts = [part for fold in train.folds(1) for part in fold]
        self.known = count_ngrams(parts, tokenizer.vocab_size, ORDER).keys
        self.words = set()
        for tokens, _ in parts:
            self.words.update(WORD.findall(tokenizer.decode(tokens)))

    def score(self, texts: list[torch.Tensor]) -> dict:
        """What is said above, of token ids (n,) of each text."""
        nats = nats_per_sequence(self.model, texts, self.runtime)
        nll = float(nats.sum() / sum(map(len, texts)))
        return {"texts": len(texts), "gen_nll": nll, "gen_ppl": float(np.exp(nll)), **self.count(texts)}

    def mauve_against(self, real: list[torch.Tensor]) -> Callable[[list[torch.Tensor]], float]:
        """What gives texts their MAUVE against real ones. Raises UserError without the library."""
        try:
            from mauve import compute_mauve
        except ImportError as error:
            raise UserError("MAUVE needs its library: pip install -r requirements-mauve.txt") from error
        features = self._features(real)
        return lambda texts: float(compute_mauve(features, self._features(texts), verbose=False).mauve)

    @torch.no_grad()
    def _features(self, texts: list[torch.Tensor]) -> np.ndarray:
        """The judge's last hidden states (N, D), averaged over each text, before which stands its start token."""
        found, start = [], self.model.config.bos_token_id
        for text in texts:
            given = nn.functional.pad(self.runtime.to(text), (1, 0), value=start)[None]
            with self.runtime.autocast():
                states = self.model.model(input_ids=given, use_cache=False).last_hidden_state
            found.append(states[0, 1:].float().mean(0).cpu().numpy())
        return np.stack(found)

    def count(self, texts: list[torch.Tensor]) -> dict:
        """The part that needs no model."""
        V, found, entropies = self.tokenizer.vocab_size, [], []
        for text in texts:
            share = torch.bincount(text, minlength=V).double() / len(text)
            entropies.append(-float(torch.special.xlogy(share, share).sum()) / np.log(2))
            found.append(text.unfold(0, ORDER, 1).numpy() @ (V ** np.arange(ORDER - 1, -1, -1, dtype=np.int64)))
        keys = np.concatenate(found)
        inner = [WORD.findall(text)[1:-1] for text in self.tokenizer.decode_batch(texts)]  # those at the ends are cut
        words = [word for text in inner for word in text]
        place = np.searchsorted(self.known, keys).clip(max=len(self.known) - 1)
        return {
            "entropy": float(np.mean(entropies)),
            "distinct": len(np.unique(keys)) / len(keys),
            "seen": float((self.known[place] == keys).mean()),
            "words": sum(word in self.words for word in words) / max(1, len(words)),
        }


@torch.no_grad()
def draw_trigrams(ngram: NGram, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Texts (count, length) from the trigram model, each token given the two before it."""
    place = ngram.log_unigram.device
    zero, every = torch.zeros((), dtype=torch.long, device=place), torch.arange(ngram.vocab_size, device=place)[None]
    rows = draw_unigrams(ngram, count, 1, generator).to(place)
    while rows.shape[1] < length:
        last = rows[:, -1:]
        if rows.shape[1] == 1:
            p = ngram.p_bigram(zero, last, every)
        else:
            p = ngram.p_trigram(zero, rows[:, -2:-1], last, every)
        rows = torch.cat([rows, torch.multinomial(p.double().cpu(), 1, generator=generator).to(place)], dim=1)
    return rows.cpu()


def draw_unigrams(ngram: NGram, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Texts (count, length) of tokens drawn one by one by their frequency: an incoherent control."""
    probabilities = ngram.log_unigram[ALL].exp().cpu()
    return torch.multinomial(probabilities, count * length, replacement=True, generator=generator).view(count, length)
