"""Closed form: the words of a batch, from the rows of the gradient of the embedding of tokens.

A network looks a token up in its embedding, so that only the rows of tokens that it read get a gradient. A defence may
add something to every row, or leave rows out: a row then counts where its length stands out from that of most rows.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxleak.errors import InputError

WRONG = 0.05  # tokens expected to be found in noise alone, of the whole vocabulary
SPREAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


class Words(NamedTuple):
    """Tokens that a gradient shows."""

    tokens: Int[np.ndarray, "n"]  # rising
    threshold: float  # lengths of rows above it count


def row_threshold(lengths: Float[np.ndarray, "k"], wrong: float = WRONG) -> float:
    """The length above which a row counts as a token that was read.

    m + z s, for the median m of all lengths, s = 1.4826 times their median absolute deviation, and z = Phi^-1(1 -
    wrong / k). Tokens that were not read are most of a vocabulary, so m and s are theirs; the length of a row of noise
    is nearly normal, being a sum over its entries. Where most rows are zero the threshold is 0.

    Source: Hampel 1974 (the median absolute deviation).
    """
    from scipy.stats import norm

    middle = float(np.median(lengths))
    spread = SPREAD * float(np.median(np.abs(lengths - middle)))
    return middle + float(norm.isf(wrong / len(lengths))) * spread if middle > 0 else 0.0


def read_words(gradient: Float[np.ndarray, "k e"], never: Collection[int] = ()) -> Words:
    """The tokens whose rows of an embedding's gradient are longer than `row_threshold`.

    Args:
        gradient: of the embedding, a row for each token of the vocabulary; or by how much it fell.
        never: tokens that are not named, such as the one that stands for hidden places.

    Raises:
        InputError: it is no matrix of finite numbers with several rows.

    Source: Melis et al. 2019 (the embedding layer).
    Differs: theirs is no noise; the threshold is ours.
    """
    gradient = np.asarray(gradient)
    if gradient.ndim != 2 or len(gradient) < 2 or not np.isfinite(gradient).all():
        shape = "x".join(map(str, gradient.shape))
        raise InputError(
            f"`embedding` must be a matrix of finite numbers, a row for each token; got one of {shape or 'one number'}."
        )
    lengths = np.linalg.norm(gradient.astype(np.float64), axis=1)
    threshold = row_threshold(lengths)
    return Words(np.setdiff1d(np.flatnonzero(lengths > threshold), list(never)), threshold)
