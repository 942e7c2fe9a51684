"""Windows of an image as rows of a matrix: a convolution is then a matrix product."""

import jax.numpy as jnp
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
