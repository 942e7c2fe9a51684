"""ROC curves: areas under them, with intervals."""

import math

import numpy as np
from jaxtyping import Bool, Float

from jaxleak.errors import InputError
from jaxleak.results.intervals import wilson

Scores = Float[np.ndarray, "n"]
Members = Bool[np.ndarray, "n"]


def _two_groups(scores: Scores, members: Members) -> tuple[np.ndarray, np.ndarray]:
    scores, members = np.asarray(scores, float), np.asarray(members, bool)
    if scores.shape != members.shape or not 0 < members.sum() < len(members) or np.isnan(scores).any():
        raise InputError("`scores` must be a number for each of `members`, of which some are true and some are not.")
    return scores[members], scores[~members]


def roc(scores: Scores, members: Members) -> tuple[Float[np.ndarray, "t"], Float[np.ndarray, "t"]]:
    """False and true positive rates at each threshold, from (0, 0) to (1, 1)."""
    inside, outside = _two_groups(scores, members)
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1, None]
    rates = [np.concatenate([[0.0], np.mean(group >= thresholds, axis=1)]) for group in (outside, inside)]
    return rates[0], rates[1]


def auc(scores: Scores, members: Members) -> float:
    """Area under the ROC curve: probability that a member scores above a non-member; equal scores count half."""
    inside, outside = _two_groups(scores, members)
    return float(np.mean(_placements(inside, outside)))


def _placements(ours: np.ndarray, theirs: np.ndarray) -> Float[np.ndarray, "n"]:
    """Of each of ours: the share of theirs below it, equal ones counted half."""
    ordered = np.sort(theirs)
    return (np.searchsorted(ordered, ours, "left") + np.searchsorted(ordered, ours, "right")) / (2 * len(theirs))


def delong(scores: Scores, members: Members, confidence: float = 0.95) -> tuple[float, float]:
    """DeLong's interval of the area under the ROC curve, cut to [0, 1].

    Where all members score above all others, or below, its variance is 0: then Wilson's interval of as many trials as
    the smaller group has, all of them won or lost.

    Source: DeLong, DeLong & Clarke-Pearson 1988, in the form of Sun & Xu 2014. The case of variance 0 is ours.
    """
    from scipy.stats import norm

    inside, outside = _two_groups(scores, members)
    area = auc(scores, members)
    fewest = min(len(inside), len(outside))
    if area in (0.0, 1.0) or fewest < 2:
        return wilson(round(area * fewest), fewest, confidence)
    variance = sum(
        float(np.var(placements, ddof=1)) / len(placements)
        for placements in (_placements(inside, outside), 1 - _placements(outside, inside))
    )
    half = float(norm.isf((1 - confidence) / 2)) * math.sqrt(variance)
    return max(0.0, area - half), min(1.0, area + half)
