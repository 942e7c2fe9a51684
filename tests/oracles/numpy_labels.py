"""Label strategies as their definitions say, in plain Python: gradients of the head, kernel [i, k] and bias [k]."""

import numpy as np

Array = np.ndarray


def idlg(kernel: Array, bias: Array, count: int, logits: Array) -> list[int]:
    """Classes by the sum of their weights' gradients, the smallest first."""
    return _lowest([sum(kernel[:, k].tolist()) for k in range(kernel.shape[1])], count)


def bias(kernel: Array, bias: Array, count: int, logits: Array) -> list[int]:
    """Classes by their bias gradient, the smallest first."""
    return _lowest(bias.tolist(), count)


def row_minima(kernel: Array, bias: Array, count: int, logits: Array) -> list[int]:
    """Classes by the smallest of their weights' gradients."""
    return _lowest([min(kernel[:, k].tolist()) for k in range(kernel.shape[1])], count)


def unique(kernel: Array, bias: Array, count: int, logits: Array) -> list[int]:
    """Classes with negative bias gradients, and those again until there are enough."""
    negative = [k for k in _lowest(bias.tolist(), bias.size) if bias[k] < 0] or [int(bias.argmin())]
    return (negative * count)[:count]


def published(kernel: Array, bias: Array, count: int, logits: Array) -> list[int]:
    """breaching's "bias-corrected" (breaching/attacks/base_attack.py), with its two stages and names.

    Differs: where there are more negative classes than labels, the most negative `count` of them.
    """
    average_bias = bias.copy()
    valid_classes = [k for k in _lowest(bias.tolist(), bias.size) if bias[k] < 0]
    labels = list(valid_classes)
    m_impact = sum(average_bias[k] for k in valid_classes) / count
    for k in valid_classes:
        average_bias[k] -= m_impact
    while len(labels) < count:
        selected = int(average_bias.argmin())
        labels.append(selected)
        average_bias[selected] -= m_impact
    return labels[:count]


def counts(kernel: Array, bias: Array, count: int, logits: Array) -> list[int]:
    """Of all multisets that hold every class with a negative bias gradient: the one whose g = pbar - c / N is nearest.

    Tries every one of them: for few classes and labels, and no more negative classes than labels.
    """
    expected = np.zeros(bias.size)
    for one in logits:
        powers = np.exp(one - one.max())
        expected += powers / powers.sum() / len(logits)
    found = [
        (float(((expected - np.array(c) / count - bias) ** 2).sum()), c)
        for c in _compositions(count, bias.size)
        if all(c[k] > 0 for k in range(bias.size) if bias[k] < 0)
    ]
    nearest = min(found)[1]
    return [k for k, times in enumerate(nearest) for _ in range(times)]


def _lowest(score: list[float], count: int) -> list[int]:
    return sorted(range(len(score)), key=lambda k: score[k])[:count]


def _compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """Every way to write `total` as an ordered sum of `parts` whole numbers from 0."""
    if parts == 1:
        return [(total,)]
    return [(first, *rest) for first in range(total + 1) for rest in _compositions(total - first, parts - 1)]


STRATEGIES = {
    "idlg": idlg,
    "bias": bias,
    "unique": unique,
    "row-minima": row_minima,
    "counts": counts,
    "counts-published": published,
}
