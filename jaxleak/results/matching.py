"""Matching dummies to private images, and drawing a batch as one picture."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from jaxleak.results.measures import Measures

# The cost of an image that is not finite, or further than this from the truth: it is matched last. Much larger costs
# would leave no digits for the differences between the others.
ABSENT = 1e6


def squares_apart(dummies: Float[np.ndarray, "d ..."], truths: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, "b d"]:
    """Mean squared errors."""
    flat, true = (np.asarray(images, float).reshape(len(images), -1) for images in (dummies, truths))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.mean((true[:, None] - flat[None]) ** 2, axis=2)


def match(
    dummies: Float[np.ndarray, "d ..."],
    truths: Float[np.ndarray, "b ..."],
    apart: Callable[[Any, Any], Any] = squares_apart,
) -> Int[np.ndarray, "b"]:
    """For each true image the dummy that stands for it, so that the sum of distances is smallest; -1: none.

    Source: Hungarian algorithm, scipy's `linear_sum_assignment`.
    """
    from scipy.optimize import linear_sum_assignment

    if len(dummies) == len(truths) == 1:
        return np.zeros(1, np.int64)
    costs = apart(dummies, truths)
    rows, columns = linear_sum_assignment(np.where(costs < ABSENT, costs, ABSENT))
    slots = np.full(len(truths), -1)
    slots[rows] = columns
    return slots


def ordered(dummies: Float[np.ndarray, "n ..."], slots: Int[np.ndarray, "n b"], axis: int = 1) -> np.ndarray:
    """The dummies of each trial, along `axis`, in the order of the truth; zero where there is none."""
    if dummies.shape[axis] == slots.shape[1] == 1 and np.all(slots == 0):
        return dummies
    shape = [1] * dummies.ndim
    shape[0], shape[axis] = slots.shape
    places = slots.reshape(shape)
    return np.where(places >= 0, np.take_along_axis(dummies, np.maximum(places, 0), axis=axis), 0)


class BatchMetrics(NamedTuple):
    """Distances between the candidates of n trials and the truth; p = min(d, b) images of each trial are matched."""

    slots: Int[np.ndarray, "n b"]  # see `match`
    trials: dict[str, np.ndarray]  # one number per trial: means, but the largest of `Measures.worst`
    errors: Float[np.ndarray, "n p"]  # relative error of each matched image


def batch_metrics(
    measures: "Measures", candidates: Float[np.ndarray, "n d ..."], truths: Float[np.ndarray, "n b ..."]
) -> BatchMetrics:
    """Slots and measures of whole trials."""
    slots, matched, places = _matched(measures, candidates, truths)
    each = {name: values.reshape(len(slots), -1) for name, values in measures.all(matched, places).items()}
    trials = {
        name: np.max(values, axis=1) if name in measures.worst else np.mean(values, axis=1)
        for name, values in each.items()
    }
    return BatchMetrics(slots, trials, each["relative_error"])


def worst_errors(
    measures: "Measures", candidates: Float[np.ndarray, "n d ..."], truths: Float[np.ndarray, "n b ..."]
) -> Float[np.ndarray, "n"]:
    """The largest relative error among the matched images of each trial."""
    slots, matched, places = _matched(measures, candidates, truths)
    return np.max(measures.error(matched, places).reshape(len(slots), -1), axis=1)


def _matched(measures: "Measures", candidates, truths) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slots, and the matched images of all trials with their true images."""
    slots = np.stack([match(*pair, measures.apart) for pair in zip(candidates, truths, strict=True)])
    trials, places = np.nonzero(slots >= 0)
    return slots, candidates[trials, slots[trials, places]], truths[trials, places]


def mosaic(images: Float[np.ndarray, "... b h w c"]) -> Float[np.ndarray, "... H W c"]:
    """The images of a batch beside and below each other, as nearly square as may be; one image is itself."""
    *lead, count, height, width, channels = images.shape
    columns, rows = _layout(count)
    missing = [(0, 0)] * len(lead) + [(0, columns * rows - count)] + [(0, 0)] * 3
    whole = np.pad(images, missing).reshape(*lead, rows, columns, height, width, channels)
    return np.moveaxis(whole, -3, -4).reshape(*lead, rows * height, columns * width, channels)


def unmosaic(picture: Float[np.ndarray, "... H W c"], count: int) -> Any:
    """The `count` images that `mosaic` put together [..., b, h, w, c].

    Example:
        >>> import numpy as np
        >>> import jaxleak
        >>> jaxleak.unmosaic(np.zeros((64, 64, 3)), 4).shape
        (4, 32, 32, 3)
    """
    columns, rows = _layout(count)
    *lead, height, width, channels = picture.shape
    whole = picture.reshape(*lead, rows, height // rows, columns, width // columns, channels)
    images = np.moveaxis(whole, -4, -3).reshape(*lead, rows * columns, height // rows, width // columns, channels)
    return images[..., :count, :, :, :]


def _layout(count: int) -> tuple[int, int]:
    columns = math.ceil(math.sqrt(count))
    return columns, -(-count // columns)
