"""Rates of success and means: their intervals, what several restarts give, and whether two differ."""

import math

import numpy as np
from jaxtyping import Float

from jaxleak.errors import InputError


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success probability; (0, 1) for no trials.

    Source: Wilson 1927, JASA 22:209; no continuity correction, as scipy's `proportion_ci(method="wilson")`.

    Example:
        >>> import jaxleak
        >>> low, high = jaxleak.wilson(18, 24)
        >>> f"{low:.2f} to {high:.2f}"
        '0.55 to 0.88'
    """
    from scipy.stats import binomtest

    _check_count("successes", successes, n)
    if not 0 < confidence < 1:
        raise InputError(f"`confidence` must lie between 0 and 1; got {confidence!r}.")
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(int(successes), int(n)).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def within_k(successes: int, n: int, k: int) -> float:
    """Probability that at least one of `k` restarts succeeds, estimated from `s` successes in `n` trials.

    `1 - C(n-s, k) / C(n, k)`: the share of the k-subsets of the trials that hold a success, and so unbiased.

    Source: Chen et al. 2021 (Codex), eq. 1, their pass@k.
    """
    _check_count("successes", successes, n)
    if not 1 <= k <= n:
        raise InputError(f"`k` must lie between 1 and the number of trials, {n}; got {k!r}.")
    return 1 - math.comb(int(n - successes), int(k)) / math.comb(int(n), int(k))


def fisher(s1: int, n1: int, s2: int, n2: int) -> float:
    """Two-sided p-value of Fisher's exact test that `s1` of `n1` and `s2` of `n2` have the same rate.

    Example:
        >>> import jaxleak
        >>> round(jaxleak.fisher(18, 24, 24, 24), 3)
        0.022
    """
    from scipy.stats import fisher_exact

    _check_count("s1", s1, n1)
    _check_count("s2", s2, n2)
    return float(np.asarray(fisher_exact([[s1, n1 - s1], [s2, n2 - s2]])[1]))  # 1 where `n1` or `n2` is 0


def mean_interval(shares: Float[np.ndarray, "n"], confidence: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap of the mean of shares in [0, 1]: quantiles of means of samples drawn with replacement.

    The seed is fixed. Where all shares are 1, or all 0, samples have no spread: then Wilson's interval of as many
    trials, all of them won or lost.

    Source: Efron 1979 (the bootstrap). The case without spread is ours.
    """
    shares = np.asarray(shares, float)
    if np.all(shares == 1) or np.all(shares == 0):
        return wilson(int(np.sum(shares)), len(shares), confidence)
    means = np.random.default_rng(0).choice(shares, (draws, len(shares))).mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_count(argument: str, successes: int, n: int) -> None:
    if not 0 <= successes <= n:
        raise InputError(f"`{argument}` must lie between 0 and the number of trials, {n}; got {successes!r}.")
