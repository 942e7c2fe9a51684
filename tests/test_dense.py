"""The head's product: equal to `lax.dot_general` for any size, and more accurate in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxleak.kernels.dense import blocked_dot_general

DENSE = (((1,), (0,)), ((), ()))


@pytest.mark.parametrize("kernels", ["1", "0"])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 5), (31, 5), (32, 1), (33, 16), (588, 5), (768, 100), (40, 500)])
def test_equals_the_plain_product_and_its_derivatives(inputs, outputs, kernels, monkeypatch):
    monkeypatch.setenv("JAXLEAK_NATIVE", kernels)
    keys = jax.random.split(jax.random.key(inputs), 2)
    x, w = jax.random.normal(keys[0], (5, inputs)), jax.random.normal(keys[1], (inputs, outputs))

    def twice(dot):
        return jax.grad(lambda x, w: jnp.sum(jax.grad(lambda w: jnp.sum(jnp.sin(dot(x, w, DENSE))))(w) ** 2), (0, 1))

    np.testing.assert_allclose(blocked_dot_general(x, w, DENSE), x @ w, rtol=1e-12, atol=1e-12)
    for ours, plain in zip(twice(blocked_dot_general)(x, w), twice(lax.dot_general)(x, w), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-9, atol=1e-9)


def test_other_contractions_are_handed_on():
    x, w = jnp.arange(6.0).reshape(2, 3), jnp.arange(12.0).reshape(4, 3)
    numbers = (((1,), (1,)), ((), ()))
    np.testing.assert_array_equal(blocked_dot_general(x, w, numbers), lax.dot_general(x, w, numbers))


def test_float32_error_is_that_of_blocks():
    """Sigmoid activations are positive, so that a running sum grows and loses digits; blocks' sums stay small."""
    rng = np.random.default_rng(0)
    x, w = rng.uniform(0, 1, (64, 768)), rng.uniform(-0.5, 0.5, (768, 100))
    x, w = x.astype(np.float32), w.astype(np.float32)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    blocked = jax.jit(lambda x, w: blocked_dot_general(x, w, DENSE))(jnp.asarray(x), jnp.asarray(w))
    assert blocked.dtype == jnp.float32
    # A running sum of 768 terms of size 0.14 has an error near 3e-6 here; blocks stay below 1e-6.
    assert np.sqrt(np.mean((np.asarray(blocked) - exact) ** 2)) < 1e-6
