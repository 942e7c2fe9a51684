"""Windows of an image as rows of a matrix: a convolution is then a matrix product."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def extract_patches(
    x: Float[Array, "b h w c"], window: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> Float[Array, "b oh ow p"]:
    """The windows of an already padded image, each flattened in (row, column, channel) order.

    Args:
        x: images, NHWC, already padded.
        window: kernel height and width in pixels.
        strides: vertical and horizontal stride in pixels.
        dilation: vertical and horizontal distance between a window's pixels.

    Returns:
        Patches [b, oh, ow, kh * kw * c].
    """
    b, h, w, c = x.shape
    (kh, kw), (sh, sw), (dh, dw) = window, strides, dilation
    oh, ow = (h - (kh - 1) * dh - 1) // sh + 1, (w - (kw - 1) * dw - 1) // sw + 1
    # Rows first, then columns: kh + kw slices to stack instead of kh * kw (faster on a CPU).
    rows = jnp.stack(
        [lax.slice(x, (0, i, 0, 0), (b, i + sh * (oh - 1) + 1, w, c), (1, sh, 1, 1)) for i in range(0, kh * dh, dh)],
        axis=2,
    )
    patches = jnp.stack(
        [
            lax.slice(rows, (0, 0, 0, j, 0), (b, oh, kh, j + sw * (ow - 1) + 1, c), (1, 1, 1, sw, 1))
            for j in range(0, kw * dw, dw)
        ],
        axis=4,
    )
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, oh, ow, kh * kw * c)


def gathered_patches(
    x: Float[Array, "b h w c"], window: tuple[int, int], strides: tuple[int, int]
) -> Float[Array, "b oh ow p"]:
    """`extract_patches` by indices: one kernel on a GPU, which writes the patches and nothing between."""
    b, *sizes, c = x.shape
    rows, columns = (
        np.arange(0, size - reach + 1, step)[:, None] + np.arange(reach)
        for size, reach, step in zip(sizes, window, strides, strict=True)
    )
    patches = x[:, rows[:, None, :, None], columns[None, :, None, :]]
    return patches.reshape(b, len(rows), len(columns), rows.shape[1] * columns.shape[1] * c)


def folded_patches(
    patches: Float[Array, "b oh ow p"], shape: tuple[int, int, int], window: tuple[int, int], strides: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """The transpose of `gathered_patches` as one sum of shifted images, which a GPU computes in one kernel.

    Args:
        patches: one for each place of the window.
        shape: of the already padded image [h, w, c].
        window, strides: as there.
    """
    b, oh, ow, _ = patches.shape
    h, w, c = shape
    (kh, kw), (sh, sw) = window, strides
    apart = patches.reshape(b, oh, ow, kh, kw, c)
    zero = jnp.zeros((), patches.dtype)

    def shifted(i: int, j: int):
        down, right = h - i - sh * (oh - 1) - 1, w - j - sw * (ow - 1) - 1
        return lax.pad(apart[:, :, :, i, j], zero, ((0, 0, 0), (i, down, sh - 1), (j, right, sw - 1), (0, 0, 0)))

    return sum((shifted(i, j) for i in range(kh) for j in range(kw)), start=jnp.zeros((b, *shape), patches.dtype))
