"""Dense layers: products summed in blocks, and weight gradients kept as the outer products they are.

A dense layer's weight gradient is the outer product of its inputs and its outputs' gradients. Matching needs the
distance of that product from the shared gradient and the distance's derivatives: `Outer` and `outer_distance` give them
without building the product (LeNet's head: 307 kB for each trial, read and written several times per evaluation).

The blocks are for accurate float32 gradients. Near the solution the objective is a small difference of nearly equal
gradients, and rounding limits it. Measured on one DLG trajectory on LeNet, ten points: the error of the objective's
gradient against float64 changes by a factor of 0.42 to 1.76, geometric mean 0.83, much as with a float64 product of the
head. Beside PyTorch the iterations to 1e-4 fell by some 6 % for DLG and 4 % for iDLG (experiments/NOTES.md). That XLA
sums the products of a logit in one run is the supposed cause; its code was not looked at.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from jaxleak.native import outer, usable
from jaxleak.native.bilinear import Geometry, native_conv
from jaxleak.native.lanes import lane_primitive

BLOCK = 32


class Outer(NamedTuple):
    """The matrix sum_b left_b right_b^T, not built."""

    left: Float[Array, "b i"]
    right: Float[Array, "b k"]

    def build(self) -> Float[Array, "i k"]:
        """The matrix."""
        return jnp.einsum("bi,bk->ik", self.left, self.right)


def is_outer(leaf: Any) -> bool:
    """Whether a part of a tree is an `Outer`: its leaf, for `jax.tree`'s `is_leaf`."""
    return isinstance(leaf, Outer)


def times(tree: PyTree, factor: Float[Array, ""]) -> PyTree:
    """Every tensor times a number."""

    def one(leaf):
        return leaf._replace(right=factor * leaf.right) if isinstance(leaf, Outer) else factor * leaf

    return jax.tree.map(one, tree, is_leaf=is_outer)


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


@jax.custom_jvp
def _distance_and_slopes(left, right, target):
    """The distance, and its derivatives with respect to `left` and `right`."""
    call = outer.Call.of(left[None], right[None])
    return tuple((_kernel if usable(left, right, target) and call.fits else _by_residual)(left, right, target))


@_distance_and_slopes.defjvp
def _(primals, tangents):
    return jax.jvp(_by_residual, primals, tangents)


_kernel = lane_primitive(_by_residual, outer.outer_distance, lambda left, right, _: outer.Call.of(left, right))


def blocked_dot_general(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
    """Drop-in for `lax.dot_general` in `flax.linen.Dense(dot_general=...)`: inputs [..., i] times kernel [i, k].

    The products are summed within blocks of inputs, and the blocks' sums after that. On a CPU the kernels of a
    convolution whose window is the whole image do it, in blocks of their own. Other contractions are handed to
    `lax.dot_general`.
    """
    if dimension_numbers != (((lhs.ndim - 1,), (0,)), ((), ())) or rhs.ndim != 2:
        return lax.dot_general(
            lhs, rhs, dimension_numbers, precision=precision, preferred_element_type=preferred_element_type
        )
    inputs, outputs = rhs.shape
    layer = Geometry(1, 1, inputs, (1, 1), outputs, (1, 1), ((0, 0), (0, 0)))
    if usable(lhs, rhs) and layer.fits(str(lhs.dtype)):
        out = native_conv(lhs.reshape(-1, 1, 1, inputs), rhs[None, None], layer)
        return out.reshape(*lhs.shape[:-1], outputs)
    missing = -inputs % BLOCK
    lhs = jnp.pad(lhs, [(0, 0)] * (lhs.ndim - 1) + [(0, missing)]).reshape(*lhs.shape[:-1], -1, BLOCK)
    rhs = jnp.pad(rhs, ((0, missing), (0, 0))).reshape(-1, BLOCK, outputs)
    sums = jnp.einsum("...gi,gik->...gk", lhs, rhs, precision=precision, preferred_element_type=preferred_element_type)
    return jnp.sum(sums, axis=-2)
