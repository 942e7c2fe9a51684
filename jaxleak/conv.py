"""A convolution written as patches times kernel, which stays fast when every trial has its own weight gradient.

Under `vmap`, the weight gradient of `lax.conv_general_dilated` becomes a grouped convolution, which runs slower than a
Python loop (design notes: `vmap(grad)` of a convolution). Written as slices, two stacks and one matrix product, every
derivative of any order is again slices and products, whether or not the weights carry the trial axis.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

NHWC = ("NHWC", "HWIO", "NHWC")


def extract_patches(
    x: Float[Array, "b h w c"], window: tuple[int, int], strides: tuple[int, int]
) -> Float[Array, "b oh ow p"]:
    """The windows of an already padded image, each flattened in (row, column, channel) order.

    Args:
        x: images, NHWC, already padded.
        window: kernel height and width in pixels.
        strides: vertical and horizontal stride in pixels.

    Returns:
        Patches [b, oh, ow, kh * kw * c].
    """
    b, h, w, c = x.shape
    (kh, kw), (sh, sw) = window, strides
    oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
    # Rows first, then columns: kh + kw slices to stack instead of kh * kw (design notes: faster on CPU).
    rows = jnp.stack(
        [lax.slice(x, (0, i, 0, 0), (b, i + sh * (oh - 1) + 1, w, c), (1, sh, 1, 1)) for i in range(kh)],
        axis=2,
    )
    patches = jnp.stack(
        [lax.slice(rows, (0, 0, 0, j, 0), (b, oh, kh, j + sw * (ow - 1) + 1, c), (1, 1, 1, sw, 1)) for j in range(kw)],
        axis=4,
    )
    return patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, oh, ow, kh * kw * c)


def patch_conv(
    inputs: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c o"],
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
) -> Float[Array, "b oh ow o"]:
    """Drop-in for `lax.conv_general_dilated` (pass it to `flax.linen.Conv(conv_general_dilated=patch_conv)`).

    The value equals `lax.conv_general_dilated` up to rounding. Dilated and grouped convolutions are handed to it.

    Args:
        inputs: images, NHWC.
        kernel: HWIO.
        window_strides: two ints.
        padding: "SAME", "VALID" or two (low, high) pairs of zero padding in pixels.
        lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision, preferred_element_type: as there.
    """
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if dilated or feature_group_count != 1:
        return lax.conv_general_dilated(
            inputs,
            kernel,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers or NHWC,
            feature_group_count=feature_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    kh, kw, c, o = kernel.shape
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], (kh, kw), window_strides, padding)
    padded = jnp.pad(inputs, ((0, 0), tuple(padding[0]), tuple(padding[1]), (0, 0)))
    patches = extract_patches(padded, (kh, kw), tuple(window_strides))
    return jax.lax.dot_general(patches, kernel.reshape(kh * kw * c, o), (((3,), (0,)), ((), ())), precision=precision)
