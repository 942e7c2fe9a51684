"""Convolutions that stay fast when every trial has its own weight gradient.

Under `vmap`, the weight gradient of `lax.conv_general_dilated` becomes a grouped convolution, which runs slower than a
Python loop (design notes: `vmap(grad)` of a convolution). `patch_conv` writes the convolution as slices, two stacks and
one matrix product: every derivative of any order is again slices and products, whether or not the weights carry the
trial axis. `fast_conv` does the same with kernels of its own on a CPU, for images and kernels that fit a core's cache.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxleak.native import usable
from jaxleak.native.bilinear import Geometry, native_conv
from jaxleak.patches import extract_patches

NHWC = ("NHWC", "HWIO", "NHWC")


def fast_conv(
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
    """Drop-in for `lax.conv_general_dilated` (pass it to `flax.linen.Conv(conv_general_dilated=fast_conv)`).

    The value equals `lax.conv_general_dilated` up to rounding; products are always full precision. What the kernels
    do not take (large planes, other types, `JAXLEAK_NATIVE=0` in the environment) goes to `patch_conv`, dilated and
    grouped convolutions to `lax.conv_general_dilated`.

    Args:
        inputs: images, NHWC.
        kernel: HWIO.
        window_strides: two ints.
        padding: "SAME", "VALID" or two (low, high) pairs of zero padding in pixels.
        lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision, preferred_element_type: as there.
    """
    plain = feature_group_count == 1 and not _dilated(lhs_dilation, rhs_dilation)
    if plain and usable(inputs, kernel):
        kh, kw, _, o = kernel.shape
        pads = _pads(inputs, kernel, window_strides, padding)
        _, height, width, channels = inputs.shape
        geometry = Geometry(height, width, channels, (kh, kw), o, tuple(window_strides), pads)
        if geometry.fits(str(inputs.dtype)):
            return native_conv(inputs, kernel, geometry)
    return patch_conv(
        inputs,
        kernel,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        precision,
        preferred_element_type,
    )


def _dilated(*dilations) -> bool:
    return any(d != 1 for dilation in dilations for d in dilation or ())


def _pads(inputs, kernel, strides, padding) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(inputs.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


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
    """The same by patches and matrix products, on any platform.

    Dilated and grouped convolutions are handed to `lax.conv_general_dilated`. Arguments as for `fast_conv`.
    """
    if feature_group_count != 1 or _dilated(lhs_dilation, rhs_dilation):
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
    pads = _pads(inputs, kernel, window_strides, padding)
    padded = jnp.pad(inputs, ((0, 0), *pads, (0, 0)))
    patches = extract_patches(padded, (kh, kw), tuple(window_strides))
    return jax.lax.dot_general(patches, kernel.reshape(kh * kw * c, o), (((3,), (0,)), ((), ())), precision=precision)
