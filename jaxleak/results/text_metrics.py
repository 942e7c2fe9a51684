"""Distances between texts of one length, as numbers of tokens [n, t]; one number per text."""

from collections import Counter

import numpy as np
from jaxtyping import Float, Int

Tokens = Int[np.ndarray, "n t"] | Float[np.ndarray, "n t"]
PerText = Float[np.ndarray, "n"]


def tokens_wrong(texts: Tokens, truths: Tokens) -> PerText:
    """Number of tokens that are wrong in their places."""
    return np.sum(np.asarray(texts) != np.asarray(truths), axis=-1).astype(float)


def rouge_n(texts: Tokens, truths: Tokens, n: int) -> PerText:
    """ROUGE-n: share of the runs of n tokens that both texts have, each counted as often as in both.

    With n = 1 it is the share of tokens that are right in any order. Texts are of one length, so precision, recall and
    F-measure are the same; it is 0 for texts shorter than n.

    Source: Lin 2004, section 2.
    Differs: of tokens, where Lin and the papers have words.
    """

    def runs(text):
        return Counter(zip(*(text[place:] for place in range(n)), strict=False))

    pairs = zip(np.asarray(texts).tolist(), np.asarray(truths).tolist(), strict=True)
    shared = [(runs(text) & runs(truth)).total() for text, truth in pairs]
    return np.asarray(shared, float) / max(np.shape(truths)[-1] - n + 1, 1)


def rouge_l(texts: Tokens, truths: Tokens) -> PerText:
    """ROUGE-L: length of the longest sequence of tokens that both texts have in this order, over their length.

    Source: Lin 2004, section 3.
    Differs: of tokens; see `rouge_n`.
    """
    texts, truths = np.asarray(texts), np.asarray(truths)
    same = texts[:, :, None] == truths[:, None, :]
    longest = np.zeros((len(texts), texts.shape[1] + 1, truths.shape[1] + 1), int)
    for row in range(texts.shape[1]):
        for column in range(truths.shape[1]):
            apart = np.maximum(longest[:, row, column + 1], longest[:, row + 1, column])
            longest[:, row + 1, column + 1] = np.where(same[:, row, column], longest[:, row, column] + 1, apart)
    return longest[:, -1, -1] / truths.shape[1]


def text_metrics(texts: Tokens, truths: Tokens) -> dict[str, PerText]:
    """All measures of a result row, by column name; `relative_error` is the number of wrong tokens."""
    wrong = tokens_wrong(texts, truths)
    share = wrong / np.shape(truths)[-1]
    return {
        "mse": share,
        "relative_error": wrong,
        "tokens_right": 1 - share,
        "rouge1": rouge_n(texts, truths, 1),
        "rouge2": rouge_n(texts, truths, 2),
        "rougel": rouge_l(texts, truths),
    }
