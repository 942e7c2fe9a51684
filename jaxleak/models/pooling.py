"""Maxima and means over windows, as slices and selections or sums: every derivative of any order is again that."""

from collections.abc import Iterator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxleak.errors import InputError

AXES = (2, 1)  # columns before rows: the first of a window is the leftmost of its topmost row


def max_pool(x: Float[Array, "b h w c"], window: int, stride: int, padding: int = 0) -> Float[Array, "b oh ow c"]:
    """Maximum over square windows: torch's `MaxPool2d(window, stride, padding)`, ties included.

    Of equal values the first in the window has the derivative.

    Args:
        x: images, NHWC.
        window, stride: in pixels.
        padding: pixels of minus infinity on each side.

    Raises:
        InputError: the window is larger than the padded image.
    """
    for axis in AXES:
        x, *others = _slices(x, axis, window, stride, padding, -jnp.inf)
        for other in others:
            x = jnp.where((other > x) | jnp.isnan(other), other, x)
    return x


def avg_pool(x: Float[Array, "b h w c"], window: int, stride: int, padding: int = 0) -> Float[Array, "b oh ow c"]:
    """Mean over square windows: torch's `AvgPool2d(window, stride, padding)`, which counts the zeros it pads with.

    Arguments and errors as for `max_pool`.
    """
    for axis in AXES:
        x = sum(_slices(x, axis, window, stride, padding, 0.0), start=jnp.zeros((), x.dtype)) / window
    return x


def pooled_size(size: int, window: int, stride: int, padding: int = 0) -> int:
    """Windows along one side of `size` pixels."""
    return (size + 2 * padding - window) // stride + 1


def _slices(
    x: Float[Array, "b h w c"], axis: int, window: int, stride: int, padding: int, fill: float
) -> Iterator[Float[Array, "b oh ow c"]]:
    """Along one axis, the first values of all windows, then the second, and so on."""
    count = pooled_size(x.shape[axis], window, stride, padding)
    if count < 1:
        raise InputError(
            f"the image is too small for this model: {x.shape[axis]} pixels are left where a window of {window} pools. "
            "Use larger images."
        )
    widths = [(0, 0)] * x.ndim
    widths[axis] = (padding, padding)
    padded = jnp.pad(x, widths, constant_values=fill)
    for offset in range(window):
        yield lax.slice_in_dim(padded, offset, offset + stride * (count - 1) + 1, stride, axis)
