"""The weight gradient of a dense layer as the outer product that it is, and its distance from another gradient.

A dense layer's weight gradient is the outer product of its inputs and its outputs' gradients. Matching needs the
distance of that product from the shared gradient and the distance's derivatives: `Outer` and `outer_distance` give them
without building the product, which would be read and written several times per evaluation.
"""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxleak.kernels.llvm import outer, usable
from jaxleak.kernels.llvm.primitive import lane_primitive

ROWS = 8  # images, up to which sums along a row are taken together


class Outer(NamedTuple):
    """The matrix sum_b left_b right_b^T, not built."""

    left: Float[Array, "b i"]
    right: Float[Array, "b k"]

    def build(self) -> Float[Array, "i k"]:
        """The matrix."""
        return jnp.einsum("bi,bk->ik", self.left, self.right)


def is_outer(leaf: Any) -> bool:
    """True for an `Outer`; as `is_leaf` it makes `jax.tree` take an `Outer` as one leaf."""
    return isinstance(leaf, Outer)


def times(tree: PyTree, factor: Float[Array, ""]) -> PyTree:
    """Every tensor times a number."""

    def scaled(leaf):  # of a product only one factor
        return leaf._replace(right=factor * leaf.right) if isinstance(leaf, Outer) else factor * leaf

    return jax.tree.map(scaled, tree, is_leaf=is_outer)


@jax.custom_jvp
def outer_distance(
    left: Float[Array, "b i"], right: Float[Array, "b k"], target: Float[Array, "i k"]
) -> Float[Array, ""]:
    """Squared Frobenius distance of sum_b left_b right_b^T from `target`."""
    return _distance_and_slopes(left, right, target)[0]


@outer_distance.defjvp
def _(primals, tangents):
    left, right, target = primals
    value, d_left, d_right = _distance_and_slopes(*primals)
    d_target = 2 * (target - Outer(left, right).build())  # dropped by the compiler where `target` is constant
    t_left, t_right, t_target = tangents
    return value, jnp.vdot(d_left, t_left) + jnp.vdot(d_right, t_right) + jnp.vdot(d_target, t_target)


def _by_residual(left, right, target):
    residual = Outer(left, right).build() - target
    return jnp.vdot(residual, residual), 2 * right @ residual.T, 2 * left @ residual


def _by_rows(left, right, target):
    """`_by_residual` with one reading of `target` for two of the sums, where the batch is small."""
    if len(left) > ROWS:
        return _by_residual(left, right, target)
    residual = Outer(left, right).build() - target
    terms = (residual * residual, *(residual * along for along in right))
    zeros = tuple(jnp.zeros((), residual.dtype) for _ in terms)
    squares, *rows = lax.reduce(terms, zeros, lambda a, b: tuple(map(operator.add, a, b)), (1,))
    return jnp.sum(squares), 2 * jnp.stack(rows), 2 * left @ residual


@jax.custom_jvp
def _distance_and_slopes(left, right, target):
    """The distance, and its derivatives with respect to `left` and `right`."""
    call = outer.Call.of(left[None], right[None])
    return tuple((_kernel if usable(left, right, target) and call.fits else _by_residual)(left, right, target))


# The kernel has no derivatives: for second ones the product is built after all.
@_distance_and_slopes.defjvp
def _(primals, tangents):
    return jax.jvp(_by_residual, primals, tangents)


_kernel = lane_primitive(_by_rows, outer.outer_distance, lambda left, right, _: outer.Call.of(left, right))
