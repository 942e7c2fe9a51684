"""A dense layer's product summed in blocks, for accurate float32 gradients.

Near the solution the objective is a small difference of nearly equal gradients, and rounding limits it. Measured on
one DLG trajectory on LeNet, ten points: the error of the objective's gradient against float64 changes by a factor of
0.42 to 1.76, geometric mean 0.83, much as with a float64 product of the head. Beside PyTorch the iterations to 1e-4
fell by some 6 % for DLG and 4 % for iDLG (experiments/NOTES.md). That XLA sums the products of a logit in one run is
the supposed cause; its code was not looked at.
"""

import jax.numpy as jnp
from jax import lax

BLOCK = 32


def blocked_dot_general(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
    """Drop-in for `lax.dot_general` in `flax.linen.Dense(dot_general=...)`: inputs [..., i] times kernel [i, k].

    The products are summed within blocks of `BLOCK` inputs, and the blocks' sums after that. Other contractions are
    handed to `lax.dot_general`.
    """
    if dimension_numbers != (((lhs.ndim - 1,), (0,)), ((), ())) or rhs.ndim != 2:
        return lax.dot_general(
            lhs, rhs, dimension_numbers, precision=precision, preferred_element_type=preferred_element_type
        )
    inputs, outputs = rhs.shape
    missing = -inputs % BLOCK
    lhs = jnp.pad(lhs, [(0, 0)] * (lhs.ndim - 1) + [(0, missing)]).reshape(*lhs.shape[:-1], -1, BLOCK)
    rhs = jnp.pad(rhs, ((0, missing), (0, 0))).reshape(-1, BLOCK, outputs)
    sums = jnp.einsum("...gi,gik->...gk", lhs, rhs, precision=precision, preferred_element_type=preferred_element_type)
    return jnp.sum(sums, axis=-2)
