"""The classical yardstick: tokens read from each vector by itself, put in order by n-grams, no network between them.

The decoder's posterior q(token | vector) stands where a hidden Markov model has its likelihood, as a pseudo-likelihood
a log q(token | vector) - b log p(token): dividing by the unigram (b = 1) would make a likelihood of an exact posterior, and the decoder's is
not exact. The two weights are tuned on training text under n-grams that have not counted it. Then forward-backward (corpus/ngram.py).
"""

from collections.abc import Callable, Iterable

import torch

from corpus.ngram import DENSE_VOCAB, NGram
from corpus.shards import Chunks

FOLDS = 4  # of the training text, so that n-grams can be counted without what the weights are tuned on
CANDIDATES = 24  # of a position, for trigrams, and for vocabularies beyond DENSE_VOCAB
WEIGHTS_A, WEIGHTS_B = (0.5, 0.75, 1.0, 1.25, 1.5), (0.0, 0.25, 0.5, 0.75, 1.0)
NAMES = {2: "bigrams", 3: "trigrams"}


class NGramDecoder:
    """Bigrams and trigrams of the training text, and what they make of posteriors."""

    def __init__(self, train: Chunks, vocab_size: int, device: torch.device):
        self.train = train
        self.ngram = NGram(train.folds(FOLDS), vocab_size, 3).to(device)

    def tune(
        self, texts: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]]
    ) -> tuple[float, float]:
        """The weights (a, b) under which bigrams recover most. `texts()`, called twice so that no posteriors need be kept: indices
        (B,) of training chunks, log q (B, N, V), tokens (B, N) and mask (B, N).
        """

        def best(pairs: list[tuple[float, float]]) -> tuple[float, float]:
            right = dict.fromkeys(pairs, 0)
            for index, log_q, tokens, mask in texts():
                fold = 1 + self.train.fold_of(index, FOLDS)
                for pair in pairs:
                    found = self._read(log_q, mask, *pair, 2, fold)[2]
                    right[pair] += int(((found == tokens) & mask).sum())
            return max(right, key=right.__getitem__)

        _, b = best([(1.0, b) for b in WEIGHTS_B])
        return best([(a, b) for a in WEIGHTS_A])

    def read(self, log_q: torch.Tensor, mask: torch.Tensor, weights: tuple[float, float]) -> dict[str, torch.Tensor]:
        """Tokens (B, N) by bigrams and by trigrams, from log q (B, N, V) and mask (B, N)."""
        return {NAMES[order]: found for order, found in self._read(log_q, mask, *weights, 3).items()}

    def _read(self, log_q, mask, a: float, b: float, order: int, fold=None) -> dict[int, torch.Tensor]:
        unigram = self.ngram.log_unigram[0]
        with torch.autocast(log_q.device.type, enabled=False):
            seen = a * log_q.float() - b * unigram
            if self.ngram.vocab_size > DENSE_VOCAB:
                seen = _sparse(seen, unigram)
            contexts = self.ngram.contexts(seen, mask, fold, order, (CANDIDATES,), segment=64)
        return {n: context.best(seen) for n, context in enumerate(contexts, 2)}


def _sparse(seen: torch.Tensor, unigram: torch.Tensor) -> tuple:
    """The likeliest tokens (B, N, K), their values (B, N, K), and the log of the unigram-weighted total of all others (B, N)."""
    joint = seen + unigram
    _, ids = joint.topk(CANDIDATES, dim=-1)
    return ids, seen.gather(-1, ids), joint.scatter(-1, ids, -torch.inf).logsumexp(-1)
