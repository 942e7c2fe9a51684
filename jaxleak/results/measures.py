"""What is measured of candidates, and how they are kept: one `Measures` for each kind of private data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxleak.results.matching import mosaic
from jaxleak.results.metrics import image_metrics, relative_error

PerItem = Float[np.ndarray, "n"]


def whole(batches: Any) -> Any:
    """A batch as it is."""
    return batches


def bytes_of(images: Float[np.ndarray, "..."]) -> Any:
    """Pixels in [0, 1] as bytes; what is no number becomes 0."""
    return np.round(np.fmin(np.fmax(images, 0), 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Measures:
    """Of one kind of private data.

    Attributes:
        all: of candidates [n, ...] and their truths, by the columns of a row. `mse`, `relative_error` and `max_abs`
            must be among them; columns that are not are null.
        error: `relative_error` alone, by which a trial is judged.
        worst: those of which a batch's largest counts, not the mean.
        together: the items of a batch [..., b, *item] as one array, for files and pictures.
        snapshot: a candidate over iterations as it is stored.
    """

    all: Callable[[Any, Any], dict[str, PerItem]]
    error: Callable[[Any, Any], PerItem]
    worst: tuple[str, ...] = ("relative_error", "affine_error", "max_abs")
    together: Callable[[Any], Any] = whole
    snapshot: Callable[[Any], Any] = whole


MEASURES = {"image": Measures(image_metrics, relative_error, together=mosaic, snapshot=bytes_of)}  # by modality
