"""The three products of a convolution as JAX primitives: any derivative, any nesting of `vmap`, any platform.

On a CPU they run the kernels of `convolution.py`. Elsewhere weights that all lanes share make one convolution of the
platform's library, and weights of each lane matrix products over patches; `JAXLEAK_GPU_CONV=patches` does without the
library. Images of a few channels are flat vectors here, since XLA is slow where the last axis is short
(experiments/NOTES.md).
"""

import functools
import os

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxleak.kernels.llvm import convolution, wide
from jaxleak.kernels.llvm.available import available
from jaxleak.kernels.llvm.convolution import Call, Geometry
from jaxleak.kernels.patches import extract_patches, folded_patches, gathered_patches
from jaxleak.kernels.platform import accelerated

FLAT_BELOW = 8  # channels
NHWC = ("NHWC", "HWIO", "NHWC")


def _primitive(build, build_wide, padding, result, reference, off_cpu, shared) -> Primitive:
    """A product of two arrays whose leading axes are groups.

    Args:
        build: the kernel.
        build_wide: the kernel for many channels, of `wide`, whose left argument comes padded,
        padding: by so much.
        result: the product's shape.
        reference: the product of one group by XLA on a CPU.
        off_cpu: the same elsewhere.
        shared: the same elsewhere of weights that all images share, where there is but one group.
    """
    primitive = Primitive(f"conv_{build.__name__}")

    def abstract(left, right, *, geometry):
        return ShapedArray(result(left, right, geometry), left.dtype)

    def by_xla(left, right, *, geometry):
        return jax.vmap(lambda a, b: reference(a, b, geometry))(left, right)

    def elsewhere(left, right, *, geometry):
        if left.shape[0] == 1 and os.environ.get("JAXLEAK_GPU_CONV") != "patches":
            return shared(left[0], right[0], geometry)[None]
        return jax.vmap(lambda a, b: off_cpu(a, b, geometry))(left, right)

    lowered_by_xla = mlir.lower_fun(by_xla, multiple_results=False)

    lowered_elsewhere = mlir.lower_fun(elsewhere, multiple_results=False)

    def lower(ctx, left, right, *, geometry):
        if accelerated() or not available():
            by = lowered_elsewhere if accelerated() else lowered_by_xla
            return by(ctx, left, right, geometry=geometry)
        from jaxleak.kernels.llvm.emit import target

        x, _ = ctx.avals_in
        call = Call(geometry, x.shape[0], x.shape[1], str(x.dtype))
        if not geometry.wide:
            return jax.ffi.ffi_lowering(target(build, call))(ctx, left, right)

        def with_padding(left, right):
            shape = (geometry.height, geometry.width, -1) if left.ndim == 3 else left.shape[2:]
            left = jnp.pad(left.reshape(*left.shape[:2], *shape), ((0, 0), (0, 0), *padding(geometry), (0, 0)))
            return jax.ffi.ffi_call(target(build_wide, call), ctx.avals_out[0])(left, right)

        return mlir.lower_fun(with_padding, multiple_results=False)(ctx, left, right)

    def batch(arguments, axes, *, geometry):
        left, right = arguments
        size = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
        if build is not convolution.weight and axes[1] is None:
            # Lanes that share the weights are further images of the same group. (`weight` would sum over them.)
            groups = right.shape[0]
            left = jnp.moveaxis(left, axes[0], 1)
            out = primitive.bind(left.reshape(groups, -1, *left.shape[3:]), right, geometry=geometry)
            return out.reshape(groups, size, -1, *out.shape[2:]), 1
        # Otherwise each lane is a group with weights of its own.
        left, right = (
            jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
            for a, axis in zip(arguments, axes, strict=True)
        )
        merged = [a.reshape(-1, *a.shape[2:]) for a in (left, right)]
        out = primitive.bind(*merged, geometry=geometry)
        return out.reshape(size, -1, *out.shape[1:]), 0

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="geometry"))
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lowered_elsewhere)
    mlir.register_lowering(primitive, lower, platform="cpu")
    return primitive


def _image_shape(g: Geometry) -> tuple[int, ...]:
    return (g.height, g.width, g.channels) if g.channels >= FLAT_BELOW else (g.image_size,)


def _padded(x, g: Geometry):
    return jnp.pad(x.reshape(-1, g.height, g.width, g.channels), ((0, 0), *g.padding, (0, 0)))


def _patches(x, geometry: Geometry):
    return extract_patches(_padded(x, geometry), geometry.window, geometry.strides)


def _gathered(x, geometry: Geometry):
    return gathered_patches(_padded(x, geometry), geometry.window, geometry.strides)


def _forward(x, w, geometry: Geometry, patches=_patches):
    return jnp.einsum("nhwp,po->nhwo", patches(x, geometry), w.reshape(-1, geometry.outputs))


def _weight(x, d, geometry: Geometry, patches=_patches):
    shape = (*geometry.window, geometry.channels, geometry.outputs)
    return jnp.einsum("nhwp,nhwo->po", patches(x, geometry), d).reshape(shape)


def _input(d, w, geometry: Geometry):
    shape = jax.ShapeDtypeStruct((d.shape[0], *_image_shape(geometry)), d.dtype)
    patches = jnp.einsum("nhwo,po->nhwp", d, w.reshape(-1, geometry.outputs))
    return jax.linear_transpose(lambda x: _patches(x, geometry), shape)(patches)[0]


def _folded(d, w, g: Geometry):
    """`_input` by one sum of shifted images."""
    (top, bottom), (left, right) = g.padding
    padded = (g.height + top + bottom, g.width + left + right, g.channels)
    patches = jnp.einsum("nhwo,po->nhwp", d, w.reshape(-1, g.outputs))
    image = folded_patches(patches, padded, g.window, g.strides)
    return image[:, top : top + g.height, left : left + g.width].reshape(len(d), *_image_shape(g))


def _convolved(x, w, geometry: Geometry):
    """`_forward` by the platform's own convolution."""
    x = x.reshape(-1, geometry.height, geometry.width, geometry.channels)
    return lax.conv_general_dilated(x, w, geometry.strides, geometry.padding, dimension_numbers=NHWC)


def _convolved_input(d, w, geometry: Geometry):
    shape = jax.ShapeDtypeStruct((d.shape[0], *_image_shape(geometry)), d.dtype)
    return jax.linear_transpose(lambda x: _convolved(x, w, geometry), shape)(d)[0]


_forward_gathered, _weight_gathered = (functools.partial(made, patches=_gathered) for made in (_forward, _weight))
conv_forward = _primitive(
    convolution.forward,
    wide.wide_forward,
    lambda g: g.padding,
    lambda x, w, g: (*x.shape[:2], *g.out, g.outputs),
    _forward,
    _forward_gathered,
    _convolved,
)
conv_weight = _primitive(
    convolution.weight,
    wide.wide_weight,
    lambda g: g.padding,
    lambda x, d, g: (x.shape[0], *g.window, g.channels, g.outputs),
    _weight,
    _weight_gathered,
    _weight_gathered,
)
conv_input = _primitive(
    convolution.input,
    wide.wide_input,
    wide.margins,
    lambda d, w, g: (*d.shape[:2], *_image_shape(g)),
    _input,
    _folded,
    _convolved_input,
)

# Of each product, the cotangents of its left and of its right argument, given the cotangent c of its result.
ad.defbilinear(
    conv_forward,
    lambda c, x, w, *, geometry: conv_input.bind(c, w, geometry=geometry),
    lambda c, x, w, *, geometry: conv_weight.bind(x, c, geometry=geometry),
)
ad.defbilinear(
    conv_weight,
    lambda c, x, d, *, geometry: conv_input.bind(d, c, geometry=geometry),
    lambda c, x, d, *, geometry: conv_forward.bind(x, c, geometry=geometry),
)
ad.defbilinear(
    conv_input,
    lambda c, d, w, *, geometry: conv_forward.bind(c, w, geometry=geometry),
    lambda c, d, w, *, geometry: conv_weight.bind(c, d, geometry=geometry),
)


def native_conv(x, w, geometry: Geometry):
    """Convolution of images [b, h, w, c] with one kernel [kh, kw, c, o]."""
    x = x.reshape(1, x.shape[0], *_image_shape(geometry))
    return conv_forward.bind(x, w[None], geometry=geometry)[0]
