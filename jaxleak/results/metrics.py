"""Distances between a candidate and the true image: NHWC images in [0, 1], one number per image of the batch.

A candidate need not lie in [0, 1], nor be finite: a diverged trial is measured like any other, without
warnings. Where a pixel is NaN every metric is NaN. Where a pixel is infinite (and none NaN), `mse`,
`relative_error` and `max_abs` are inf and the clipped metrics NaN: clipping would make an ordinary white
pixel of it.
"""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxleak.errors import InputError
from jaxleak.kernels.precision import full_precision

Images = Float[np.ndarray, "n h w c"]
PerImage = Float[np.ndarray, "n"]

# Wang et al. 2004, section III.C: an 11x11 circular Gaussian window of standard deviation 1.5.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
# Images per compiled SSIM call; smaller batches are padded to a power of two, so few shapes are compiled.
SSIM_BLOCK = 64
CLOSE = 0.01  # relative error of a target that is right
ONE_COLOUR = 1e-20  # below this sum of squares about its mean, an image has no shape


def mse(x: Images, truth: Images, clip: bool = False) -> PerImage:
    """Mean squared error over the pixels, `mean((x - x*)^2)`; with `clip`, of `x` clipped to [0, 1].

    Source: unclipped it is iDLG's measure of fidelity (Zhao et al. 2020).
    """
    x, truth = _pair(x, truth)
    if clip:
        x = _clipped(x)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.mean((x - truth) ** 2, axis=(1, 2, 3))


def psnr(x: Images, truth: Images) -> PerImage:
    """Peak signal-to-noise ratio in dB, `-10 log10(mse)`, of `x` clipped to [0, 1]; inf where equal."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(mse(x, truth, clip=True))


def ssim(x: Images, truth: Images) -> PerImage:
    """Structural similarity of `x` clipped to [0, 1], averaged over channels and window positions.

    Gaussian window of 11x11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, data range 1, windows inside the
    image. Equals scikit-image's `structural_similarity` with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1`.

    Source: Wang et al. 2004, eq. 13, as `dm_pix.ssim` computes it.
    Differs: an image with a side below 11 gets the largest odd window that fits; dm_pix would exchange image
    and window without a word.
    """
    x, truth = _pair(x, truth)
    x = _clipped(x)
    finite = np.isfinite(x).all(axis=(1, 2, 3))
    result = np.full(len(x), np.nan)
    if finite.any():
        result[finite] = _ssim_in_blocks(x[finite], truth[finite])
    return result


def relative_error(x: Images, truth: Images) -> PerImage:
    """Relative image error `|x - x*| / |x*|` in the Euclidean norm, `x` not clipped.

    Against an all-black truth it is 0 if the two are equal, else inf.
    """
    x, truth = _pair(x, truth)
    error, length = _norm(x - truth), _norm(truth)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where((error == 0) & (length == 0), 0.0, error / length)


def affine_error(x: Images, truth: Images) -> PerImage:
    """Error without contrast and brightness: `|a (x - mean) - (x* - mean)| / |x* - mean|`, means by channel.

    The contrast `a`, one number of 0 or above, is that of least squares; the brightness of each channel is taken from
    the truth. 0 is the same picture, 1 nothing in common (or its negative). BatchNorm in train mode on one image takes
    just these four numbers out of the gradient, so that no attack can know them. `x` is not clipped. Against a truth of
    one colour it is NaN.
    """
    x, truth = _pair(x, truth)
    with np.errstate(divide="ignore", invalid="ignore"):
        flat, flat_truth = _shape_alone(x), _shape_alone(truth)
        squares, squares_truth = np.sum(flat**2, axis=1), np.sum(flat_truth**2, axis=1)
        contrast = np.where(squares > 0, np.maximum(np.sum(flat * flat_truth, axis=1) / squares, 0), 0.0)
        left = np.sum((contrast[:, None] * flat - flat_truth) ** 2, axis=1)
        error = np.sqrt(left / squares_truth)
    measurable = np.isfinite(x).all(axis=(1, 2, 3)) & (squares_truth > ONE_COLOUR)
    return np.where(measurable, error, np.nan)


def _shape_alone(x: Images) -> Float[np.ndarray, "n p"]:
    """Images less the mean of each channel, in units of their largest pixel so that no square overflows."""
    largest = np.abs(x).max(axis=(1, 2, 3), keepdims=True)
    x = x / np.where(largest > 0, largest, 1.0)
    return (x - x.mean(axis=(1, 2), keepdims=True)).reshape(len(x), math.prod(x.shape[1:]))


def max_abs(x: Images) -> PerImage:
    """Largest `|pixel|` of each image."""
    x = _batch("x", x)
    return np.abs(x).max(axis=(1, 2, 3))


def image_metrics(candidates: Images, truths: Images) -> dict[str, PerImage]:
    """All image metrics of a result row, by column name.

    Args:
        candidates: reconstructions in [0, 1] units, not clipped.
        truths: the true images, one per candidate, or one for all.
    """
    return {
        "mse": mse(candidates, truths),
        "mse_clipped": mse(candidates, truths, clip=True),
        "psnr": psnr(candidates, truths),
        "ssim": ssim(candidates, truths),
        "relative_error": relative_error(candidates, truths),
        "affine_error": affine_error(candidates, truths),
        "max_abs": max_abs(candidates),
    }


def _batch(argument: str, images: np.ndarray) -> np.ndarray:
    array = np.asarray(images, dtype=np.float64)
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise InputError(
            f"`{argument}` must be a batch of images [n, h, w, c]; got shape {list(array.shape)}."
            " One image needs a leading axis: `image[None]`."
        )
    return array


def _pair(x: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, truth = _batch("x", x), _batch("truth", truth)
    if truth.shape[1:] != x.shape[1:] or len(truth) not in (1, len(x)):
        raise InputError(
            f"`truth` must have the candidates' shape {list(x.shape)}, or one image for all of them;"
            f" got {list(truth.shape)}."
        )
    return x, np.broadcast_to(truth, x.shape)


def _clipped(x: np.ndarray) -> np.ndarray:
    """`x` clipped to [0, 1]; an image with a pixel that is not finite becomes NaN."""
    finite = np.isfinite(x).all(axis=(1, 2, 3), keepdims=True)
    return np.where(finite, np.clip(x, 0, 1), np.nan)


def _norm(x: np.ndarray) -> np.ndarray:
    """Euclidean norm of each image, scaled by its largest pixel so that no square overflows."""
    largest = np.abs(x).max(axis=(1, 2, 3))
    scale = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
    return scale * np.sqrt(np.sum((x / scale[:, None, None, None]) ** 2, axis=(1, 2, 3)))


@functools.cache
def _ssim_program(window: int):
    import dm_pix
    import jax

    return jax.jit(full_precision()(functools.partial(dm_pix.ssim, filter_size=window, filter_sigma=SSIM_SIGMA)))


def _ssim_in_blocks(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    side = min(x.shape[1:3])
    program = _ssim_program(min(SSIM_WINDOW, side - 1 + side % 2))
    block = min(SSIM_BLOCK, 1 << (len(x) - 1).bit_length())
    values = []
    for start in range(0, len(x), block):
        a, b = x[start : start + block], truth[start : start + block]
        padding = [(0, block - len(a))] + [(0, 0)] * 3
        values.append(np.asarray(program(np.pad(a, padding), np.pad(b, padding)))[: len(a)])
    return np.concatenate(values)


def labels_right(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Number of labels that are right in any order: the size of the common part of two multisets.

    Args:
        found, true: [..., n].

    Returns:
        [...], from 0 to n.
    """
    classes = np.unique(true)
    found, true = ((np.asarray(labels)[..., None] == classes).sum(-2) for labels in (found, true))
    return np.minimum(found, true).sum(-1)


def vectors_right(found: np.ndarray, true: np.ndarray, bits: bool) -> np.ndarray:
    """Number of target vectors that are right in any order: each found is one true one, and the other way round.

    Args:
        found, true: [t, n, k].
        bits: a vector is right where each number is on the right side of 1/2; else where each is off by at most
            `CLOSE` times the vector's largest magnitude, or times 1 if that is more.

    Returns:
        [t], from 0 to n.
    """
    from scipy.optimize import linear_sum_assignment

    known = np.all(np.isfinite(true), axis=-1)[:, None, :]
    if bits:
        found, true = ((np.asarray(vectors) > 0.5).astype(float) for vectors in (found, true))
    size = np.max(np.abs(np.asarray(true, float))[:, None], axis=-1, initial=1.0)
    apart: Any = np.max(np.abs(found[:, :, None] - true[:, None, :]), axis=-1)
    with np.errstate(invalid="ignore"):  # NaN: not known, or not finite
        alike: Any = (apart <= CLOSE * size) & known
    right = np.zeros(len(alike), np.int64)
    for trial, pairs in enumerate(np.asarray(alike)):
        rows, columns = linear_sum_assignment(pairs, maximize=True)
        right[trial] = int(np.sum(np.asarray(pairs)[rows, columns]))
    return right
