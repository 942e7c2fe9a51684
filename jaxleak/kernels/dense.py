"""The product of a dense layer, summed in blocks.

The blocks are for accurate float32 gradients. Near the solution the objective is a small difference of nearly equal
gradients, and rounding limits it (measured: experiments/NOTES.md).
"""

import jax.numpy as jnp
from jax import lax

from jaxleak.kernels.llvm import usable
from jaxleak.kernels.llvm.bilinear import Geometry, native_conv
from jaxleak.kernels.platform import accelerated

BLOCK = 32  # inputs whose products are summed before the blocks are


def blocked_dot_general(lhs, rhs, dimension_numbers, precision=None, preferred_element_type=None):
    """Drop-in for `lax.dot_general` in `flax.linen.Dense(dot_general=...)`: inputs [..., i] times kernel [i, k].

    The products are summed within blocks of inputs, and the blocks' sums after that. On a CPU the kernels of a
    convolution whose window is the whole image do it, in blocks of their own. Other contractions are handed to
    `lax.dot_general`.

    Example:
        >>> import flax.linen as nn
        >>> import jax
        >>> import jaxleak
        >>> layer = nn.Dense(10, dot_general=jaxleak.blocked_dot_general)
        >>> layer.init_with_output(jax.random.key(0), jax.numpy.ones((2, 64)))[0].shape
        (2, 10)
    """
    if dimension_numbers != (((lhs.ndim - 1,), (0,)), ((), ())) or rhs.ndim != 2:
        return lax.dot_general(
            lhs, rhs, dimension_numbers, precision=precision, preferred_element_type=preferred_element_type
        )
    inputs, outputs = rhs.shape
    layer = Geometry(1, 1, inputs, (1, 1), outputs, (1, 1), ((0, 0), (0, 0)))
    if not accelerated() and usable(lhs, rhs) and layer.fits(str(lhs.dtype)):
        out = native_conv(lhs.reshape(-1, 1, 1, inputs), rhs[None, None], layer)
        return out.reshape(*lhs.shape[:-1], outputs)
    missing = -inputs % BLOCK
    lhs = jnp.pad(lhs, [(0, 0)] * (lhs.ndim - 1) + [(0, missing)]).reshape(*lhs.shape[:-1], -1, BLOCK)
    rhs = jnp.pad(rhs, ((0, missing), (0, 0))).reshape(-1, BLOCK, outputs)
    sums = jnp.einsum("...gi,gik->...gk", lhs, rhs, precision=precision, preferred_element_type=preferred_element_type)
    return jnp.sum(sums, axis=-2)
