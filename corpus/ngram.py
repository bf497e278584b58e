"""Classical decoders: a hidden Markov model over Kneser-Ney n-grams, solved by forward-backward, no network.

The hidden states are the tokens of a text (bigrams) or pairs of neighboring tokens (trigrams), what is observed is the
exact likelihood of each noisy color. `NGram.contexts` gives, for every position, the *context log-probability* of every
token, given all other positions (the extrinsic information of turbo decoding), so that

    log posterior = context + log_likelihood        (normalized)

holds by construction. The same numbers feed the network of `--ngram` (model.py). With a vocabulary of up to
`DENSE_VOCAB` tokens the bigram recursion runs over all of them; above, over the likeliest candidates of each position,
and the rest of the vocabulary keeps its unigram probability. The trigram recursion always runs over candidates, and
redistributes among them the probability that the bigrams gave them together.

Smoothing: interpolated modified Kneser-Ney (Chen & Goodman, 1999). Recursion: Baum et al., 1970; Bahl et al., 1974.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from corpus.ngram_tables import Counts, Table, count_ngrams, kneser_ney, merge
from kit.errors import UserError

DENSE_VOCAB = 4096  # V^2 tables up to here
ORDERS = (2, 3)
TINY = 1e-30  # floor under probabilities
BLOCK_CELLS = 1 << 22  # pairs of candidates looked up at once
ALL = 0  # the fold whose tables are counted from everything


@dataclass
class Context:
    """Context log-probabilities of positions (..., ): `dense` (..., V), or those of `candidates` (..., K) in `sparse` (..., K).

    Outside the candidates the unigram log-probability holds, plus `rest` (...). Log-likelihoods added, the whole is a
    normalized log posterior.
    """

    dense: torch.Tensor | None = None
    candidates: torch.Tensor | None = None
    sparse: torch.Tensor | None = None
    rest: torch.Tensor | None = None

    def __getitem__(self, index) -> "Context":
        return self._each(lambda part: part[index])

    def flatten(self, start: int, end: int) -> "Context":
        return self._each(lambda part: part.flatten(start, end))

    def _each(self, change) -> "Context":
        parts = (self.dense, self.candidates, self.sparse, self.rest)
        return Context(*(None if part is None else change(part) for part in parts))

    def posterior(self, likelihoods):
        """Posteriors (..., V), or candidates, their posteriors (..., K) and all others' together (...); see NGram.contexts."""
        if self.dense is not None:
            return (self.dense + likelihoods).exp()
        return self.candidates, (self.sparse + likelihoods[1]).exp(), (self.rest + likelihoods[2]).exp()

    def best(self, likelihoods) -> torch.Tensor:
        """The likeliest tokens (...)."""
        if self.dense is not None:
            return (self.dense + likelihoods).argmax(-1)
        return self.candidates.gather(-1, (self.sparse + likelihoods[1]).argmax(-1, keepdim=True))[..., 0]

    def full(self, log_unigram: torch.Tensor) -> torch.Tensor:
        """(..., V) float32."""
        if self.dense is not None:
            return self.dense
        return (log_unigram + self.rest[..., None]).scatter(-1, self.candidates, self.sparse)


def unigram_context(likelihoods, log_unigram: torch.Tensor) -> Context:
    """The context under unigrams, which is the same everywhere; likelihoods as for NGram.contexts, log_unigram (V,)."""
    if torch.is_tensor(likelihoods):
        return Context(dense=log_unigram - torch.logsumexp(log_unigram + likelihoods, -1, keepdim=True))
    candidates, likelihood, rest = likelihoods
    prior = log_unigram[candidates]
    total = torch.logaddexp(torch.logsumexp(prior + likelihood, -1), rest)
    return Context(None, candidates, prior - total[..., None], -total)


class NGram(nn.Module):
    """Unigrams, bigrams and, with `order` 3, trigrams of a training text, as tables for inference.

    `parts`: the training chunks in one or several parts (Chunks.folds). Fold f (1..) holds the tables counted from all parts
    but the f-th, fold 0 those counted from everything. A network trained with these tables must not see a text that
    they have counted, or it would rely on them too much.
    """

    def __init__(self, parts: list[list[tuple[np.ndarray, np.ndarray]]], vocab_size: int, order: int = 3):
        super().__init__()
        if order not in ORDERS:
            raise UserError(f"n-grams of order {order}: choose from {', '.join(map(str, ORDERS))}")
        self.vocab_size, self.order = vocab_size, order
        counts = {n: [count_ngrams(part, vocab_size, n) for part in parts] for n in range(1, order + 1)}
        chosen = [range(len(parts))]
        if len(parts) > 1:
            chosen += [[part for part in range(len(parts)) if part != fold] for fold in range(len(parts))]
        self.folds = len(chosen)
        self._tables([{n: merge([counts[n][s] for s in which]) for n in counts} for which in chosen])

    @classmethod
    def from_state(cls, state: dict) -> "NGram":
        """The tables of fold 0 again from `state()`."""
        ngram = object.__new__(cls)
        nn.Module.__init__(ngram)
        ngram.vocab_size, ngram.order, ngram.folds = state["vocab_size"], state["order"], 1
        if not 2 <= ngram.order <= 3 or not ngram.order == len(state["gaps"]) == len(state["counts"]):
            raise ValueError(f"n-grams of order {ngram.order} with {len(state['gaps'])} tables")
        merged = {}
        for n, (gaps, counts) in enumerate(zip(state["gaps"], state["counts"]), 1):
            keys = gaps.long().cumsum(0)
            sorted_keys = len(keys) == len(counts) and (gaps[1:] > 0).all()
            if not sorted_keys or (len(keys) and not 0 <= int(keys[0]) <= int(keys[-1]) < state["vocab_size"] ** n):
                raise ValueError(f"counts of {n}-grams that are none of {state['vocab_size']} tokens")
            if len(counts) and int(counts.min()) < 1:
                raise ValueError(f"counts of {n}-grams below 1")
            merged[n] = Counts(keys.numpy(), counts.long().numpy())
        ngram._tables([merged])
        return ngram

    def state(self) -> dict:
        """Plain tensors: for each order the distinct n-grams, as gaps between sorted keys, and their counts."""
        gaps, counts = [], []
        for n in sorted(self.counted):
            each = self.counted[n]
            gaps.append(torch.from_numpy(np.diff(each.keys, prepend=0)))
            counts.append(torch.from_numpy(each.counts))
        small = [g.int() if not len(g) or int(g.max()) < 2**31 else g for g in gaps]
        return {"vocab_size": self.vocab_size, "order": self.order, "gaps": small, "counts": [c.int() for c in counts]}

    def _tables(self, folds: list[dict[int, Counts]]) -> None:
        V, F = self.vocab_size, len(folds)
        self.counted = folds[ALL]
        unigrams = np.zeros((F, V))
        lower = np.zeros((F, V))  # Kneser-Ney's: in how many histories a token was seen
        parts = {name: [] for name in ("bigram", "bigram_backoff", "low", "low_backoff", "trigram", "pair")}
        for f, counted in enumerate(folds):
            unigrams[f][counted[1].keys] = counted[1].counts
            bigrams = counted[2]
            lower[f] = np.bincount(bigrams.keys % V, minlength=V)
            frequency, histories, backoff = kneser_ney(bigrams.keys, bigrams.counts, V)
            parts["bigram"].append((f * V * V + bigrams.keys, frequency))
            parts["bigram_backoff"].append((f * V + histories, backoff))
            if self.order == 3:
                keys, continuations = np.unique(counted[3].keys % (V * V), return_counts=True)
                frequency, histories, backoff = kneser_ney(keys, continuations, V)
                parts["low"].append((f * V * V + keys, frequency))
                parts["low_backoff"].append((f * V + histories, backoff))
                frequency, histories, backoff = kneser_ney(counted[3].keys, counted[3].counts, V)
                parts["trigram"].append((f * V**3 + counted[3].keys, frequency))
                parts["pair"].append((f * V * V + histories, backoff))
        lower = (lower + 0.5) / (lower.sum(1, keepdims=True) + 0.5 * V)
        unigrams = (unigrams + 0.5) / (unigrams.sum(1, keepdims=True) + 0.5 * V)
        self.register_buffer("lower", torch.from_numpy(lower).float(), persistent=False)
        self.register_buffer("log_unigram", torch.from_numpy(unigrams).log().float(), persistent=False)
        tables = {name: [np.concatenate(each) for each in zip(*pieces)] for name, pieces in parts.items() if pieces}
        if self.order == 3:  # trigrams lie row by row, a row for each pair (fold, u, v) that was seen; row 0 is empty
            pairs, backoff = tables.pop("pair")
            keys, frequency = tables["trigram"]
            rows = 1 + np.searchsorted(pairs, keys // V)
            tables["trigram"] = rows * V + keys % V, frequency
            tables["pair_row"] = pairs, np.arange(1, len(pairs) + 1)
            self.register_buffer("pair_backoff", torch.from_numpy(np.append(1.0, backoff)).float(), persistent=False)
        sizes = {"bigram": F * V * V, "bigram_backoff": F * V, "low": F * V * V, "low_backoff": F * V}
        sizes |= {"pair_row": F * V * V, "trigram": V * (1 + len(tables["pair_row"][0])) if self.order == 3 else 0}
        for name, (keys, values) in tables.items():
            setattr(self, name, Table(keys, values, sizes[name], 1.0 if "backoff" in name else 0.0))
        self.dense = V <= DENSE_VOCAB
        if self.dense:
            fold = torch.arange(F)[:, None, None]
            v, w = torch.arange(V)[:, None], torch.arange(V)[None]
            self.register_buffer("transition", self.p_bigram(fold, v, w), persistent=False)

    # ------------------------------------------------------------------------------------------------------------------
    # Probabilities

    def p_bigram(self, fold, v, w) -> torch.Tensor:
        """p(w | v); fold, v, w broadcast."""
        V = self.vocab_size
        return self.bigram((fold * V + v) * V + w) + self.bigram_backoff(fold * V + v) * self.lower[fold, w]

    def p_trigram(self, fold, u, v, w) -> torch.Tensor:
        """p(w | u, v); fold, u, v, w broadcast."""
        V = self.vocab_size
        low = self.low((fold * V + v) * V + w) + self.low_backoff(fold * V + v) * self.lower[fold, w]
        row = self.pair_row((fold * V + u) * V + v)
        return self.pair_backoff[row] * low + self.trigram(row.long() * V + w)

    def bits_per_token(self, chunks: Iterable[np.ndarray], order: int) -> float:
        """As a language model: mean of -log2 p(token | the order - 1 before it) over chunks of token ids."""
        total, count, zero = 0.0, 0, torch.zeros((), dtype=torch.long)
        for chunk in chunks:
            x = torch.as_tensor(np.asarray(chunk, dtype=np.int64), device=self.lower.device)
            p = [self.log_unigram[ALL, x[:1]].exp()]
            if order == 3:
                p += [self.p_bigram(zero, x[:1], x[1:2]), self.p_trigram(zero, x[:-2], x[1:-1], x[2:])]
            else:
                p += [self.p_bigram(zero, x[:-1], x[1:])]
            total -= float(torch.cat(p).double().log2().sum())
            count += len(x)
        return total / count

    # ------------------------------------------------------------------------------------------------------------------
    # Decoding

    @torch.no_grad()
    def contexts(
        self, log_likelihood, mask, fold=None, order=None, candidates=(24,), segment=None, dtype=torch.float32
    ) -> list[Context]:
        """Context log-probabilities of every position of a batch of texts, by bigrams and, with order 3, by trigrams.

        log_likelihood (B, N, V), up to a constant per position, or for vocabularies above DENSE_VOCAB the candidates
        (B, N, K), their log-likelihoods (B, N, K) and the log of the unigram-weighted likelihood of all others (B, N);
        mask (B, N), True first; fold (B,) or None for all counts; `order` 2 or 3, at most the tables'.
        `candidates`: how many tokens of a position the trigrams choose from, one number, or several ascending ones of which
        each text takes the first that holds nearly all of the bigram posterior (of a text where even the last holds less
        than half, the bigrams' result stands). `segment`: the dense recursion cuts texts into overlapping windows of so many
        positions, solved side by side (None: exact); `dtype` of its matrix products.
        """
        order = order or self.order
        fold = torch.zeros(len(mask), dtype=torch.long, device=mask.device) if fold is None else fold
        if self.dense:
            log_likelihood = log_likelihood.float()
            context = self._dense_bigrams(log_likelihood, mask, fold, segment, dtype)
            if order == 3:
                most = min(candidates[-1], self.vocab_size)
                log_mass, chosen = (context + log_likelihood).topk(most, dim=-1)
                likelihood = log_likelihood.gather(-1, chosen)
                inside = self._trigrams(chosen, likelihood, log_mass, mask, fold, candidates)
                return [Context(dense=context), Context(dense=context.scatter(-1, chosen, inside))]
            return [Context(dense=context)]
        chosen, likelihood, rest = log_likelihood
        inside = self._bigram_chain(chosen, likelihood, mask, fold)
        # the rest of the vocabulary keeps the probability it has under the unigrams
        known = torch.logsumexp(self.log_unigram[fold[:, None, None], chosen] + likelihood, -1)
        total = torch.logaddexp(known, rest)
        inside = inside - (torch.logsumexp(inside + likelihood, -1) - known + total)[..., None]
        found = [Context(None, chosen, inside, -total)]
        if order == 3:
            log_mass, top = (inside + likelihood).topk(min(candidates[-1], chosen.shape[-1]), dim=-1)
            few, few_likelihood = chosen.gather(-1, top), likelihood.gather(-1, top)
            better = inside.scatter(-1, top, self._trigrams(few, few_likelihood, log_mass, mask, fold, candidates))
            found.append(Context(None, chosen, better, -total))
        return found

    def _trigrams(self, chosen, log_likelihood, log_posterior, mask, fold, candidates) -> torch.Tensor:
        """Contexts (B, N, K) of the likeliest tokens `chosen` (B, N, K), best first, with log_posterior (B, N, K) under the
        bigrams: the trigrams share out among them what the bigrams gave them together.
        """
        context = log_posterior - log_likelihood
        mass = (log_posterior.exp().cumsum(-1) * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        waiting = torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        for k in candidates:
            k = min(k, chosen.shape[-1])
            holds = 0.999 if k < min(candidates[-1], chosen.shape[-1]) else 0.5 * (len(candidates) > 1)
            rows = (waiting & (mass[:, k - 1] >= holds)).nonzero()[:, 0]
            if len(rows):
                waiting[rows] = False
                few, seen = chosen[rows, :, :k], log_likelihood[rows, :, :k]
                inside = self._trigram_chain(few, seen, mask[rows], fold[rows])
                inside = inside - torch.logsumexp(inside + seen, -1, keepdim=True)
                context[rows, :, :k] = inside + torch.logsumexp(log_posterior[rows, :, :k], -1, keepdim=True)
        return context

    def _dense_bigrams(self, log_likelihood, mask, fold, segment, dtype) -> torch.Tensor:
        """Forward-backward over the whole vocabulary: log_likelihood (B, N, V) to normalized contexts (B, N, V)."""
        whole = log_likelihood
        windows = Windows(*mask.shape, segment, mask.device)
        mask, fold = windows.cut(mask) & windows.inside, fold.repeat_interleave(windows.count)
        log_likelihood = windows.cut(log_likelihood)
        R, L, V = log_likelihood.shape
        likelihood = (log_likelihood - log_likelihood.amax(-1, keepdim=True)).exp().to(dtype)
        likelihood = torch.where(mask[..., None], likelihood, 1)
        before = torch.empty(L, R, V, dtype=dtype, device=likelihood.device)  # messages from the text before
        after = torch.ones_like(before)
        for f in fold.unique().tolist():
            rows = (fold == f).nonzero().flatten()
            own = likelihood[rows].transpose(0, 1).contiguous()
            tables = torch.stack([self.transition[f], self.transition[f].T]).to(dtype)
            forward = self.log_unigram[f].exp().to(dtype).expand(len(rows), V)
            backward = torch.ones(len(rows), V, dtype=dtype, device=own.device)
            ahead, behind = torch.empty_like(own), torch.empty_like(own)
            ahead[0], behind[-1] = forward, backward
            for i in range(1, L):
                state = torch.stack([ahead[i - 1] * own[i - 1], behind[L - i] * own[L - i]])
                state = torch.bmm(state / state.sum(-1, keepdim=True).clamp_min(TINY), tables)
                ahead[i], behind[L - 1 - i] = state[0], state[1] * V
            before[:, rows], after[:, rows] = ahead, behind
        context = windows.join(before.float().mul_(after).clamp_min_(TINY).log_().transpose(0, 1))
        return context - torch.logsumexp(context + whole, -1, keepdim=True)

    def _bigram_chain(self, chosen, log_likelihood, mask, fold) -> torch.Tensor:
        """Forward-backward over candidates (R, L, K) with log_likelihood (R, L, K): contexts (R, L, K), up to a constant."""
        R, L, K = chosen.shape
        likelihood = _scaled(log_likelihood, mask)
        ahead, behind = torch.empty(R, L, K, device=likelihood.device), torch.ones(R, L, K, device=likelihood.device)
        ahead[:, 0] = self.log_unigram[fold[:, None], chosen[:, 0]].exp()
        pairs = fold[:, None, None]
        p = [self.p_bigram(pairs, chosen[:, i - 1, :, None], chosen[:, i, None]) for i in range(1, L)]
        for i in range(1, L):
            state = ahead[:, i - 1] * likelihood[:, i - 1]
            state = state / state.sum(-1, keepdim=True).clamp_min(TINY)
            ahead[:, i] = torch.bmm(state[:, None], p[i - 1])[:, 0]
        for i in range(L - 1, 0, -1):
            back = torch.bmm(p[i - 1], (behind[:, i] * likelihood[:, i])[..., None])[..., 0]
            back = back / back.amax(-1, keepdim=True).clamp_min(TINY)
            behind[:, i - 1] = torch.where(mask[:, i, None], back, 1)
        return (ahead * behind).clamp_min(TINY).log()

    def _trigram_chain(self, chosen, log_likelihood, mask, fold) -> torch.Tensor:
        """The same over pairs (v, w) of neighboring candidates.

        p(w | u, v) is a rank-one part, weight[u, v] low[v, w], plus rows for the pairs (u, v) that were seen: a step costs K^2
        and K for each such pair, not K^3.
        """
        R, L, K = chosen.shape
        likelihood = _scaled(log_likelihood, mask)
        start = self.log_unigram[fold[:, None], chosen[:, 0]].exp()
        first = self.p_bigram(fold[:, None, None], chosen[:, 0, :, None], chosen[:, 1, None]) if L > 1 else None
        factors = self._trigram_factors(chosen, fold)
        ahead = torch.empty(L, R, K, K, device=start.device)
        ahead[0] = start[:, None] / K  # the token before the first is a dummy
        for i in range(1, L):
            state = ahead[i - 1] * likelihood[:, i - 1, None]
            state = state / state.sum((1, 2), keepdim=True).clamp_min(TINY)
            if i == 1:
                ahead[i] = first * state.sum(1)[..., None]
                continue
            weight, low, pair, place, rows = factors[i - 2]
            ahead[i] = low * (state * weight).sum(1)[..., None]
            ahead[i].view(R * K, K).index_add_(0, place, rows * state.view(-1)[pair][:, None])
        context = torch.empty_like(likelihood)
        behind = torch.ones(R, K, K, device=start.device)
        for i in range(L - 1, -1, -1):
            context[:, i] = (ahead[i] * behind).sum(1)
            if i < 2:  # the message to position 0 does not depend on the dummy before it
                if i == 1:
                    back = (first * behind * likelihood[:, 1, None]).sum(-1)[:, None].expand(R, K, K)
            else:
                weight, low, pair, place, rows = factors[i - 2]
                told = behind * likelihood[:, i, None]
                back = weight * (low * told).sum(-1)[:, None]
                back.view(-1).index_add_(0, pair, (rows * told.view(R * K, K).index_select(0, place)).sum(-1))
            if i > 0:
                back = back / back.amax((1, 2), keepdim=True).clamp_min(TINY)
                behind = torch.where(mask[:, i, None, None], back, 1)
        return context.clamp_min(TINY).log()

    def _trigram_factors(self, chosen, fold) -> list[tuple]:
        """For each position from the third on: weight (R, K, K) over (u, v), low (R, K, K) over (v, w), and of the S pairs that
        were seen their place in a flat weight (S,) and in a flat (r, v) (S,), and rows (S, K) over w.
        """
        V, (R, L, K) = self.vocab_size, chosen.shape
        chosen, found = chosen.transpose(0, 1), []
        block = max(1, BLOCK_CELLS // (R * K * K))
        f = fold[None, :, None]
        for begin in range(2, L, block):
            end = min(begin + block, L)
            u, v, w = (chosen[begin - back : end - back] for back in (2, 1, 0))
            low = self.low(((f * V + v)[..., None]) * V + w[..., None, :])
            low += self.low_backoff(f * V + v)[..., None] * self.lower[f, w][..., None, :]
            row = self.pair_row(((f * V + u)[..., None]) * V + v[..., None, :])
            weight = self.pair_backoff[row]
            seen = row.flatten().nonzero()[:, 0]
            text = seen // (K * K)
            key = torch.int32 if self.trigram.dense else torch.int64  # half the traffic
            rows = row.flatten()[seen].to(key)[:, None] * V + w.flatten(0, 1).to(key).index_select(0, text)
            rows = self.trigram(rows)
            ends = torch.arange(1, end - begin + 1, device=seen.device) * R * K * K
            sizes = torch.searchsorted(seen, ends).diff(prepend=ends.new_zeros(1)).tolist()
            pair, place = seen % (R * K * K), text % R * K + seen % K
            found += zip(weight, low, pair.split(sizes), place.split(sizes), rows.split(sizes))
        return found


def _scaled(log_likelihood: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Likelihoods (R, L, K) whose largest at each position is 1; all 1 where mask (R, L) is False."""
    likelihood = (log_likelihood - log_likelihood.amax(-1, keepdim=True)).exp()
    return torch.where(mask[..., None], likelihood, 1)


class Windows:
    """Texts (B, N, ...) cut into overlapping windows (B * count, length, ...) and put together again."""

    OVERLAP = 12  # positions on both sides after which a bigram chain has forgotten where it began

    def __init__(self, batch: int, num_positions: int, segment: int | None, device):
        self.batch, self.num_positions = batch, num_positions
        self.count = max(1, round(num_positions / (segment or num_positions)))
        self.segment = -(-num_positions // self.count)
        overlap = self.OVERLAP if self.count > 1 else 0
        begin = (torch.arange(self.count, device=device) * self.segment - overlap).clamp_min(0)
        self.index = begin[:, None] + torch.arange(self.segment + 2 * overlap, device=device)
        self.inside = (self.index < num_positions).repeat(batch, 1)
        position = torch.arange(num_positions, device=device)
        self.row = position // self.segment
        self.column = position - begin[self.row]

    def cut(self, values: torch.Tensor) -> torch.Tensor:
        if self.count == 1:
            return values
        return values[:, self.index.clamp_max(self.num_positions - 1)].flatten(0, 1)

    def join(self, values: torch.Tensor) -> torch.Tensor:
        if self.count == 1:
            return values
        return values.unflatten(0, (self.batch, self.count))[:, self.row, self.column]
