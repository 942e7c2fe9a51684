"""Convolutions that stay fast when every trial has its own weight gradient.

Under `vmap`, the weight gradient of `lax.conv_general_dilated` becomes a grouped convolution, which runs slower than a
Python loop. `patch_conv` writes the convolution as slices, two stacks and one matrix product (one for each group of
channels): every derivative of any order is again slices and products, whether or not the weights carry the trial axis.
`fast_conv` does the same with kernels of its own on a CPU.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxleak.kernels.llvm import usable
from jaxleak.kernels.llvm.bilinear import Geometry, native_conv
from jaxleak.kernels.patches import extract_patches
from jaxleak.kernels.platform import accelerated

NHWC = ("NHWC", "HWIO", "NHWC")

Pads = tuple[tuple[int, int], tuple[int, int]]


def fast_conv(
    inputs: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw i o"],
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    out_sharding=None,
) -> Float[Array, "b oh ow o"]:
    """Drop-in for `lax.conv_general_dilated` (pass it to `flax.linen.Conv(conv_general_dilated=fast_conv)`).

    The value equals `lax.conv_general_dilated` up to rounding; products are always full precision. What the kernels
    do not take (groups, dilated windows, negative padding, other types, `JAXLEAK_NATIVE=0` in the environment) goes to
    `patch_conv`.

    Args:
        inputs: images, NHWC.
        kernel: HWIO, where i is c divided by the number of groups.
        window_strides: two ints.
        padding: "SAME", "SAME_LOWER", "VALID" or two (low, high) pairs of zero padding in pixels; negative ones crop.
        lhs_dilation: distances between the images' pixels, two ints, with zeros between (a transposed convolution).
        rhs_dilation: distances between the window's pixels, two ints.
        dimension_numbers: None is NHWC here, as Flax has it.
        feature_group_count, precision, preferred_element_type, out_sharding: as there.

    Example:
        >>> import flax.linen as nn
        >>> import jax
        >>> import jaxleak
        >>> layer = nn.Conv(12, (5, 5), strides=2, padding=2, conv_general_dilated=jaxleak.fast_conv)
        >>> layer.init_with_output(jax.random.key(0), jax.numpy.ones((2, 32, 32, 3)))[0].shape
        (2, 16, 16, 12)
    """
    if feature_group_count == 1 and not _dilated(rhs_dilation) and serves(inputs, kernel, dimension_numbers):
        pads = _pads(inputs, kernel, window_strides, padding, lhs_dilation, rhs_dilation)
        spread = _spread(inputs, lhs_dilation)
        _, height, width, channels = spread.shape
        kh, kw, _, o = kernel.shape
        geometry = Geometry(height, width, channels, (kh, kw), o, tuple(window_strides), pads)
        # The kernels keep their arguments' type and know no sharding: `patch_conv` takes the rest.
        own_type = preferred_element_type in (None, inputs.dtype) and out_sharding is None
        if own_type and usable(inputs, kernel) and (accelerated() or geometry.fits(str(inputs.dtype))):
            return native_conv(spread, kernel, geometry)
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
        out_sharding,
    )


def patch_conv(
    inputs: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw i o"],
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    out_sharding=None,
) -> Float[Array, "b oh ow o"]:
    """The same convolution by patches and matrix products, on any platform.

    What is not a convolution of floating-point images in NHWC (`serves`), and what leaves no pixel, is handed to
    `lax.conv_general_dilated`. Arguments as for `fast_conv`.
    """
    if serves(inputs, kernel, dimension_numbers) and out_sharding is None:
        pads = _pads(inputs, kernel, window_strides, padding, lhs_dilation, rhs_dilation)
        kh, kw, *_ = kernel.shape
        window = _reach((kh, kw), rhs_dilation)
        padded = (size + sum(pair) for size, pair in zip(_reach(inputs.shape[1:3], lhs_dilation), pads, strict=True))
        # A window larger than the image has no patches; lax gives the empty result.
        if all(size >= needed for size, needed in zip(padded, window, strict=True)):
            spread = _spread(inputs, lhs_dilation, pads)
            patches = extract_patches(spread, (kh, kw), tuple(window_strides), _pair(rhs_dilation))
            return _products(patches, kernel, feature_group_count, precision, preferred_element_type)
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers or (NHWC if inputs.ndim == 4 else None),
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )


def serves(inputs: Array, kernel: Array, dimension_numbers=None) -> bool:
    """True for a convolution of floating-point images [b, h, w, c] with a kernel [kh, kw, i, o]."""
    if inputs.ndim != 4 or kernel.ndim != 4 or not jnp.issubdtype(inputs.dtype, jnp.floating):
        return False
    layout = lax.conv_dimension_numbers(inputs.shape, kernel.shape, dimension_numbers or NHWC)
    return layout == lax.conv_dimension_numbers(inputs.shape, kernel.shape, NHWC) and inputs.dtype == kernel.dtype


def _products(
    patches: Float[Array, "b oh ow p"], kernel: Float[Array, "kh kw i o"], groups: int, precision, element_type
) -> Float[Array, "b oh ow o"]:
    """Each group of channels times its own part of the kernel."""
    kh, kw, i, o = kernel.shape
    if groups == 1:
        return lax.dot_general(
            patches,
            kernel.reshape(kh * kw * i, o),
            (((3,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=element_type,
        )
    shape = patches.shape[:3]
    out = jnp.einsum(
        "bhwtgi,tigo->bhwgo",
        patches.reshape(*shape, kh * kw, groups, i),
        kernel.reshape(kh * kw, i, groups, o // groups),
        precision=precision,
        preferred_element_type=element_type,
    )
    return out.reshape(*shape, o)


def _pair(dilation: Sequence[int] | None) -> tuple[int, int]:
    first, second = dilation or (1, 1)
    return int(first), int(second)


def _dilated(dilation: Sequence[int] | None) -> bool:
    return any(d != 1 for d in dilation or ())


def _reach(sizes: Sequence[int], dilation: Sequence[int] | None) -> tuple[int, int]:
    """Height and width from the first to the last pixel, with the distances between them."""
    (height, width), (rows, columns) = sizes, _pair(dilation)
    return (height - 1) * rows + 1, (width - 1) * columns + 1


def _spread(inputs: Float[Array, "b h w c"], dilation, pads: Pads = ((0, 0), (0, 0))) -> Float[Array, "b ph pw c"]:
    """Zeros between the pixels, and `pads` of them around; negative ones crop."""
    if not _dilated(dilation) and not any(map(any, pads)):
        return inputs
    rows, columns = ((low, high, step - 1) for (low, high), step in zip(pads, _pair(dilation), strict=True))
    return lax.pad(inputs, jnp.zeros((), inputs.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


def _pads(inputs, kernel, strides, padding, lhs_dilation, rhs_dilation) -> Pads:
    """Zeros above and below, left and right.

    Raises:
        ValueError: a name for the padding of a transposed convolution, which lax refuses as well.
    """
    if isinstance(padding, str):
        if _dilated(lhs_dilation):
            raise ValueError("`padding` of a convolution with `lhs_dilation` must be given in pixels.")
        window = _reach(kernel.shape[:2], rhs_dilation)
        padding = lax.padtype_to_pads(inputs.shape[1:3], window, strides, padding)
    (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))
