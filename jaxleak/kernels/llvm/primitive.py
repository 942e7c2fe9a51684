"""A function of one lane as a JAX primitive over lanes: a kernel on a CPU, `vmap` of the function elsewhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxleak.kernels.llvm.available import available
from jaxleak.kernels.platform import accelerated


def lane_primitive(
    function: Callable[..., tuple], build: Callable[[str, Any], str], call: Callable[..., Any], in_place: int = 0
) -> Callable[..., list]:
    """`function` as a JAX primitive over lanes.

    Args:
        function: of one lane's arrays, in `jax.numpy`; returns a tuple of arrays.
        build: the kernel over all lanes (see `emit.target`); its arguments and results have the lanes as leading axis.
        call: makes the sizes and types that the kernel serves from the arguments' abstract values with that axis.
        in_place: how many of the first results take the memory of the arguments at the same places.

    Returns:
        A function with the arguments of `function`, to be mapped with `vmap`; not differentiable.
    """
    primitive = primitive_over_lanes(function, build, call, in_place)

    def apply(*arguments):
        return [out[0] for out in primitive.bind(*(jnp.asarray(a)[None] for a in arguments))]

    return apply


def primitive_over_lanes(function, build, call, in_place: int = 0) -> Primitive:
    """The primitive of `lane_primitive`, whose arguments and results have the lanes as leading axis."""
    primitive = Primitive(build.__name__)
    primitive.multiple_results = True

    def abstract(*arguments):
        types = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments)
        return [ShapedArray(out.shape, out.dtype) for out in jax.eval_shape(jax.vmap(function), *types)]

    def batch(arguments, axes):
        size = next(a.shape[axis] for a, axis in zip(arguments, axes, strict=True) if axis is not None)
        lanes = [
            jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
            for a, axis in zip(arguments, axes, strict=True)
        ]
        # `vmap` within `vmap`: both axes become the lanes of one call.
        results = primitive.bind(*(a.reshape(-1, *a.shape[2:]) for a in lanes))
        return [out.reshape(size, -1, *out.shape[1:]) for out in results], [0] * len(results)

    reference = mlir.lower_fun(jax.vmap(function), multiple_results=True)

    def lower(ctx, *arguments):
        if accelerated() or not available():
            return reference(ctx, *arguments)
        from jaxleak.kernels.llvm.emit import target

        aliases = {place: place for place in range(in_place)}
        rule = jax.ffi.ffi_lowering(target(build, call(*ctx.avals_in)), operand_output_aliases=aliases)
        return rule(ctx, *arguments)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind))
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, reference)
    mlir.register_lowering(primitive, lower, platform="cpu")
    return primitive
