"""Image priors: their formulas, torch's numbers, and what they are at images that are flat, black or alike."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.priors import consistency, norm_prior, total_variation
from tests.oracles.require_torch import require_torch

PRIORS = {"total_variation": total_variation, "norm_prior": norm_prior, "consistency": consistency}


def images(name, seed=0):
    """A batch [b h w c], for `consistency` a group of them; the second image is black, the first partly flat."""
    x = np.random.default_rng(seed).uniform(-1, 1, (3, 2, 5, 4, 3))
    x[:, 1], x[:, 0, 1:3, 1:3] = 0, 0.25
    return x if name == "consistency" else x[0]


@pytest.mark.torch
@pytest.mark.parametrize("name", PRIORS)
def test_values_and_gradients_equal_torch(name):
    torch = require_torch()
    oracle = importlib.import_module("tests.oracles.torch_objectives")
    x = images(name)
    value, slope = jax.value_and_grad(PRIORS[name])(jnp.asarray(x))
    nchw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, -3)))
    wanted, wanted_slope = oracle.value_and_slope(getattr(oracle, name), nchw)
    assert float(value) == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(slope, np.moveaxis(wanted_slope.numpy(), -3, -1), rtol=1e-12, atol=1e-15)


def test_total_variation_counts_both_directions_by_their_own_means():
    x = jnp.array([[0.0, 1.0, 3.0], [4.0, 4.0, 4.0]])[None, :, :, None]
    assert float(total_variation(x)) == pytest.approx((1 + 2 + 0 + 0) / 4 + (4 + 3 + 1) / 3)
    twice = jnp.concatenate([x, x])
    assert float(total_variation(twice)) == pytest.approx(float(total_variation(x)))


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (1, 1, 5, 3), (1, 4, 1, 1)])
def test_flat_images_have_no_total_variation(shape):
    value, slope = jax.value_and_grad(total_variation)(jnp.full(shape, 0.3))
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)


def test_norm_is_the_mean_of_norms():
    x = jnp.zeros((2, 1, 2, 1)).at[0, 0, :, 0].set(jnp.array([3.0, 4.0]))
    value, slope = jax.value_and_grad(norm_prior)(x)
    assert float(value) == pytest.approx(2.5)
    np.testing.assert_allclose(slope.ravel(), [0.3, 0.4, 0, 0])


def test_a_group_that_agrees_is_consistent():
    x = jnp.asarray(images("norm_prior"))
    alike = jnp.stack([x, x])  # of two, the mean is exact
    value, slope = jax.value_and_grad(consistency)(alike)
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)
    assert float(consistency(alike.at[0].add(0.2))) == pytest.approx(0.1**2 * x.size)


@pytest.mark.parametrize("name", PRIORS)
def test_trials_at_once_equal_a_loop(name):
    many = jnp.stack([jnp.asarray(images(name, seed)) for seed in range(3)])
    together = jax.vmap(jax.value_and_grad(PRIORS[name]))(many)
    for trial, x in enumerate(many):
        value, slope = jax.value_and_grad(PRIORS[name])(x)
        np.testing.assert_allclose(together[0][trial], value, rtol=1e-12)
        np.testing.assert_allclose(together[1][trial], slope, rtol=1e-12, atol=1e-15)
