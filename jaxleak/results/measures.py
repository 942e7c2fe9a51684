"""What is measured of candidates, and how they are kept: one `Measures` for each kind of private data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxleak.results.matching import mosaic, squares_apart
from jaxleak.results.metrics import image_metrics, relative_error
from jaxleak.results.text_metrics import text_metrics, tokens_wrong

PerItem = Float[np.ndarray, "n"]


def whole(batches: Any) -> Any:
    """A batch as it is."""
    return batches


def bytes_of(images: Float[np.ndarray, "..."]) -> Any:
    """Pixels in [0, 1] as bytes; what is no number becomes 0."""
    return np.round(np.fmin(np.fmax(images, 0), 1) * 255).astype(np.uint8)


def largest(candidates: Any) -> PerItem:
    """The largest magnitude of each trial's candidates."""
    return np.abs(candidates).reshape(len(candidates), -1).max(axis=1)


def tokens_apart(texts: Any, truths: Any) -> Float[np.ndarray, "b d"]:
    """Share of tokens that differ."""
    return np.mean(np.asarray(texts)[None] != np.asarray(truths)[:, None], axis=-1)


@dataclass(frozen=True)
class Measures:
    """Of one kind of private data.

    Attributes:
        all: of candidates [n, ...] and their truths, by the columns of a row. `mse` and `relative_error` must be among
            them; columns that are not are null.
        error: `relative_error` alone, by which a trial is judged.
        size: largest magnitude of each trial's candidates [n, d, ...], by which a failed trial counts as diverged.
        apart: of the candidates [d, ...] and truths [b, ...] of one trial, by which they are matched [b, d].
        worst: those of which a batch's largest counts, not the mean.
        together: the items of a batch [..., b, *item] as one array, for files and pictures.
        snapshot: a candidate over iterations as it is stored.
    """

    all: Callable[[Any, Any], dict[str, PerItem]]
    error: Callable[[Any, Any], PerItem]
    size: Callable[[Any], PerItem] = largest
    apart: Callable[[Any, Any], Any] = squares_apart
    worst: tuple[str, ...] = ("relative_error", "affine_error", "max_abs")
    together: Callable[[Any], Any] = whole
    snapshot: Callable[[Any], Any] = whole


MEASURES = {  # by modality
    "image": Measures(image_metrics, relative_error, together=mosaic, snapshot=bytes_of),
    "text": Measures(
        text_metrics,
        tokens_wrong,
        size=lambda texts: np.zeros(len(texts)),  # numbers of tokens have none
        apart=tokens_apart,
        worst=("relative_error",),
        snapshot=lambda texts: texts.astype(np.uint16),
    ),
}
