"""Products and norms of the vectors that a solver works with; on a CPU by kernels of our own.

A kernel takes several sums in one reading, so that the whole step is faster than with XLA's (experiments/NOTES.md).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxleak.kernels.llvm import usable, vectors
from jaxleak.kernels.llvm.primitive import lane_primitive


class Pair(NamedTuple):
    """Change of the gradient over one step, inner products with it, and the norms that a solver's tests need."""

    y: Float[Array, "n"]  # change of the gradient
    ys: Float[Array, ""]
    yy: Float[Array, ""]
    ss: Float[Array, ""]
    gradient_sum: Float[Array, ""]  # of absolute values
    gradient_max: Float[Array, ""]
    step_max: Float[Array, ""]


def pair(gradient: Float[Array, "n"], previous: Float[Array, "n"], s: Float[Array, "n"]) -> Pair:
    """The `Pair` of the step `s`, over which the gradient goes from `previous` to `gradient`."""
    return Pair(*(_pair_kernel if usable(gradient, previous, s) else _pair)(gradient, previous, s))


def _pair(gradient, previous, s):
    y, size = gradient - previous, jnp.abs(gradient)
    return y, jnp.vdot(y, s), jnp.vdot(y, y), jnp.vdot(s, s), jnp.sum(size), jnp.max(size), jnp.max(jnp.abs(s))


def products(a: Float[Array, "n"], b: Float[Array, "n"]) -> tuple[Float[Array, ""], ...]:
    """The inner products a a, a b and b b; not differentiable."""
    return tuple((_products_kernel if usable(a, b) else _products)(a, b))


def _products(a, b):
    return jnp.vdot(a, a), jnp.vdot(a, b), jnp.vdot(b, b)


@jax.custom_jvp
def squared_distance(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, ""]:
    """Sum of (a - b)^2."""
    a, b = jnp.ravel(a), jnp.ravel(b)
    return (_distance_kernel if usable(a, b) else _distance)(a, b)[0]


@squared_distance.defjvp
def _(primals, tangents):
    a, b = primals
    difference = a - b
    return squared_distance(a, b), 2 * (jnp.vdot(difference, tangents[0]) - jnp.vdot(difference, tangents[1]))


def _distance(a, b):
    return (jnp.sum(jnp.square(a - b)),)


_pair_kernel = lane_primitive(_pair, vectors.pair, lambda gradient, *_: vectors.Call.of(gradient))
_products_kernel = lane_primitive(_products, vectors.products, lambda a, _: vectors.Call.of(a))
_distance_kernel = lane_primitive(_distance, vectors.squared_distance, lambda a, _: vectors.Call.of(a))
