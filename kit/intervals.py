"""95 % intervals of what a report counts."""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964  # two-sided 95 % of a normal distribution


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's interval of a proportion; (nan, nan) of no trials."""
    if trials == 0:
        return math.nan, math.nan
    p, z2 = successes / trials, Z * Z
    middle = p + z2 / (2 * trials)
    spread = Z * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return max(0.0, (middle - spread) / (1 + z2 / trials)), min(1.0, (middle + spread) / (1 + z2 / trials))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval of the mean of values in [0, 1]: Wilson's where each is 0 or 1.

    Otherwise Agresti and Coull's: z^2 / 2 values of 0 and as many of 1 are added, so that a few values near 1 do not look
    certain, as they would in a bootstrap.
    """
    n = len(values)
    if n == 0 or all(value in (0, 1) for value in values):
        return wilson(sum(values), n)
    size = n + Z * Z
    mean, square = ((sum(value**power for value in values) + Z * Z / 2) / size for power in (1, 2))
    spread = Z * math.sqrt((square - mean * mean) / size)
    return max(0.0, mean - spread), min(1.0, mean + spread)


def ratio_with_interval(
    numerators: np.ndarray, denominators: np.ndarray, resamples: int = 1000
) -> tuple[float, list[float]]:
    """sum / sum over texts, and its interval by resampling the texts (their tokens are not independent).

    Where every text is wholly right or wholly wrong it is a proportion of texts, and the interval is Wilson's.
    """
    value = float(numerators.sum() / denominators.sum())
    if ((numerators == 0) | (numerators == denominators)).all():
        return value, list(wilson(float((numerators > 0).sum()), len(numerators)))
    weights = resamples_of(np.ones(len(numerators)), resamples)
    return value, middle_95((weights @ numerators) / np.maximum(weights @ denominators, 1))


def resamples_of(counts: np.ndarray, resamples: int = 1000) -> np.ndarray:
    """How often each kind of case (resamples, kinds) is drawn in a bootstrap of so many cases (kinds,) of each, the same each time."""
    return np.random.default_rng(0).multinomial(int(counts.sum()), counts / counts.sum(), size=resamples)


def middle_95(values: np.ndarray) -> list[float]:
    """Between which the middle 95 % of resampled values (resamples,) lie."""
    return [float(q) for q in np.quantile(values, (0.025, 0.975))]
