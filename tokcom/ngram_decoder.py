"""The classical yardstick: tokens read from each vector by itself, put in order by n-grams, no network between them.

The decoder's posterior q(token | vector) stands where a hidden Markov model has its likelihood, as a pseudo-likelihood
a log q(token | vector) - b log p(token): dividing by the unigram (b = 1) would make a likelihood of an exact posterior, and the decoder's is
not exact. The two weights are tuned on training text under n-grams that have not counted it. Then forward-backward (corpus/ngram.py).

The same stands inside the denoiser, where the config has an n-gram order: its posteriors are an input, its context log-probabilities
join the logits. A network beside it starts as this yardstick and has the rest to learn.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from corpus.ngram import DENSE_VOCAB, NGram
from corpus.shards import Chunks

FOLDS = 4  # of the training text, so that n-grams can be counted without what the weights are tuned on
CANDIDATES = 24  # of a position, for trigrams, and for vocabularies beyond DENSE_VOCAB
WEIGHTS_A, WEIGHTS_B = (0.25, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5), (0.0, 0.25, 0.5, 0.75, 1.0)
NAMES = {2: "bigrams", 3: "trigrams"}


class NGramDecoder(nn.Module):
    """N-grams of a training text, and what they make of posteriors at each noise level."""

    def __init__(self, ngram: NGram, train: Chunks | None = None):
        super().__init__()
        self.ngram, self.train_chunks = ngram, train
        self.register_buffer("log_sigmas", torch.tensor([0.0, 1.0]), persistent=False)
        self.register_buffer("weights", torch.tensor([[1.0, 0.5], [1.0, 0.5]]), persistent=False)  # (levels, 2): a, b

    @classmethod
    def of(cls, train: Chunks, vocab_size: int, order: int = 3) -> "NGramDecoder":
        """Counted from the training text, in folds."""
        return cls(NGram(train.folds(FOLDS), vocab_size, order), train)

    def state(self) -> dict:
        """Plain tensors."""
        return {"ngram": self.ngram.state(), **self.tuned()}

    def tuned(self) -> dict:
        """What of it was tuned rather than counted."""
        return {"log_sigmas": self.log_sigmas, "weights": self.weights}

    def load_weights(self, state: dict) -> "NGramDecoder":
        """The weights of each noise level, of `state()`. Raises ValueError if they are none."""
        log_sigmas, weights = state["log_sigmas"], state["weights"]
        if weights.shape != (len(log_sigmas), 2) or len(weights) < 2 or not (log_sigmas.diff() > 0).all():
            raise ValueError("weights of n-grams that belong to no noise levels")
        self.log_sigmas, self.weights = (each.float().to(self.weights.device) for each in (log_sigmas, weights))
        return self

    @classmethod
    def from_state(cls, state: dict) -> "NGramDecoder":
        """Again from `state()`, without folds."""
        return cls(NGram.from_state(state["ngram"])).load_weights(state)

    def fold_of(self, index: torch.Tensor) -> torch.Tensor:
        """Fold (B,) of NGram.contexts for training chunks (B,): that which has not counted them."""
        return 1 + self.train_chunks.fold_of(index, FOLDS)

    def weights_at(self, sigma: torch.Tensor) -> torch.Tensor:
        """The weights (..., 2) for noise sigma (...), linear in its logarithm between the levels that were tuned."""
        x, levels = sigma.clamp_min(1e-9).log(), self.log_sigmas
        above = torch.searchsorted(levels, x.contiguous()).clamp(1, len(levels) - 1)
        part = ((x - levels[above - 1]) / (levels[above] - levels[above - 1])).clamp(0, 1)
        return torch.lerp(self.weights[above - 1], self.weights[above], part[..., None])

    def tune(
        self, texts: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]]
    ) -> tuple[float, float]:
        """The weights (a, b) under which bigrams recover most. `texts()`, called twice so that no posteriors need be kept: indices
        (B,) of training chunks, log q (B, N, V), tokens (B, N) and mask (B, N).
        """

        def best(pairs: list[tuple[float, float]]) -> tuple[float, float]:
            right = dict.fromkeys(pairs, 0)
            for index, log_q, tokens, mask in texts():
                for pair in pairs:
                    weights = log_q.new_tensor(pair, dtype=torch.float32)
                    seen, (bigrams,) = self.observe(log_q, mask, weights, 2, self.fold_of(index))
                    right[pair] += int(((bigrams.best(seen) == tokens) & mask).sum())
            return max(right, key=right.__getitem__)

        _, b = best([(1.0, b) for b in WEIGHTS_B])
        return best([(a, b) for a in WEIGHTS_A])

    def read(self, log_q: torch.Tensor, mask: torch.Tensor, weights: tuple[float, float]) -> dict[str, torch.Tensor]:
        """Tokens (B, N) by bigrams and by trigrams, from log q (B, N, V) and mask (B, N)."""
        seen, contexts = self.observe(log_q, mask, log_q.new_tensor(weights, dtype=torch.float32), 3)
        return {NAMES[order]: context.best(seen) for order, context in enumerate(contexts, 2)}

    def observe(self, log_q, mask, weights, order: int, fold=None, candidates=(CANDIDATES,)) -> tuple:
        """The pseudo-likelihood of log q (B, N, V) and the contexts it has, as of NGram.contexts; weights (..., 2), B N of them or one."""
        unigram = self.ngram.log_unigram[0]
        with torch.autocast(log_q.device.type, enabled=False):
            a, b = weights[..., :1], weights[..., 1:]
            seen = a * log_q.float() - b * unigram
            if self.ngram.vocab_size > DENSE_VOCAB:
                seen = _sparse(seen, unigram)
            return seen, self.ngram.contexts(seen, mask, fold, order, candidates, segment=64)


def _sparse(seen: torch.Tensor, unigram: torch.Tensor) -> tuple:
    """The likeliest tokens (B, N, K), their values (B, N, K), and the log of the unigram-weighted total of all others (B, N)."""
    joint = seen + unigram
    _, ids = joint.topk(CANDIDATES, dim=-1)
    return ids, seen.gather(-1, ids), joint.scatter(-1, ids, -torch.inf).logsumexp(-1)
