"""Maxima and means over windows against torch, in two derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.errors import InputError
from jaxleak.models.pooling import avg_pool, max_pool, pooled_size
from tests.fixtures import quick_jit
from tests.oracles.require_torch import require_torch

POOLS = [(max_pool, "max_pool2d"), (avg_pool, "avg_pool2d")]


@pytest.mark.torch
@pytest.mark.parametrize(("pool", "torchs"), POOLS, ids=["max", "mean"])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((2, 8, 7, 2), (3, 2, 1)),  # ResNet's and DenseNet's stem
        ((1, 1, 2, 1), (3, 2, 1)),
        ((2, 8, 7, 2), (3, 2, 0)),  # Inception's
        ((2, 6, 7, 2), (3, 1, 1)),  # beside Inception's convolutions
        ((1, 9, 11, 2), (3, 3, 0)),  # ConvNet's
        ((1, 17, 8, 1), (5, 3, 0)),  # Inception's auxiliary head
        ((2, 5, 4, 3), (2, 2, 0)),  # DenseNet's transition
    ],
    ids=str,
)
def test_value_and_two_derivatives_equal_torch_ties_included(pool, torchs, shape, window):
    torch = require_torch()
    rng = np.random.default_rng(0)
    x = rng.integers(3, size=(2, *shape)).astype(float)  # few values: most windows have several maxima
    along = rng.normal(size=x.shape)

    def slope(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(pool(x, *window))))(x)

    def derivatives(x, along):
        return pool(x, *window), slope(x), jax.grad(lambda x: jnp.vdot(slope(x), along))(x)

    value, first, second = quick_jit(jax.vmap(derivatives))(x, along)

    def nchw(array):
        return torch.from_numpy(np.ascontiguousarray(array.reshape(-1, *shape[1:]).transpose(0, 3, 1, 2)))

    def nhwc(tensor, like):
        return tensor.detach().numpy().transpose(0, 2, 3, 1).reshape(like.shape)

    t = nchw(x).requires_grad_()
    out = getattr(torch.nn.functional, torchs)(t, *window)
    (gradient,) = torch.autograd.grad(out.sin().sum(), t, create_graph=True)
    (curvature,) = torch.autograd.grad((gradient * nchw(along)).sum(), t)
    assert value.shape[2:4] == tuple(pooled_size(size, *window) for size in shape[1:3])
    np.testing.assert_allclose(value, nhwc(out, value), rtol=1e-14 if pool is avg_pool else 0)
    np.testing.assert_allclose(first, nhwc(gradient, first), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(second, nhwc(curvature, second), rtol=1e-12, atol=1e-15)


def test_max_pool_passes_nan_on():
    x = np.zeros((1, 4, 4, 1))
    x[0, 0, 0, 0] = np.nan
    out = quick_jit(partial(max_pool, window=3, stride=2, padding=1))(x)
    np.testing.assert_array_equal(np.isnan(out)[0, :, :, 0], [[True, False], [False, False]])


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_a_window_larger_than_the_image_is_refused(pool):
    with pytest.raises(InputError, match=r"too small for this model: 2 pixels are left where a window of 3 pools"):
        pool(jnp.zeros((1, 5, 2, 1)), 3, 2)
