"""Initial weights without a program as long as the network: to the last bit those of `jax.jit(model.init)`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.models import build_model, draws
from jaxleak.threat.network import draw_params

SHAPE = (16, 16, 3)
CASES = {
    "lenet": {},
    "lenet flax": {"weight_init": "flax"},
    "mlp torch": {"weight_init": "torch", "hidden": (7, 70)},
    "convnet uniform": {"weight_init": "uniform", "width": 4},
    "resnet18 torch": {"weight_init": "torch", "width": 4},
    "vit": {"dim": 8, "depth": 1},
}


def programs_as_long_as_the_network(model, key):
    return jax.jit(model.init)(key, jnp.zeros((1, *SHAPE)))["params"]


@pytest.mark.parametrize("case", CASES)
def test_drawn_as_by_init(case, monkeypatch):
    model, key = build_model(case.split()[0], 10, **CASES[case]), jax.random.key(3)
    wanted = programs_as_long_as_the_network(model, key)
    monkeypatch.setattr(jax, "jit", only_short(jax.jit))
    got = draws.draw(lambda key: model.init(key, jnp.zeros((1, *SHAPE)))["params"], key)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def only_short(jit):
    """`jax.jit`, but of a whole `init`."""

    def checked(function, *arguments, **options):
        assert getattr(function, "__name__", "") != "<lambda>", "the whole network is compiled"
        return jit(function, *arguments, **options)

    return checked


class Odd(nn.Module):
    """Weights that are drawn together: no function of one element's bits."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", lambda key: jnp.sort(jax.random.normal(key, (768, 4)), axis=0))
        return nn.Dense(3, kernel_init=nn.initializers.orthogonal(), name="head")(x.reshape(len(x), -1) @ kernel)


@jax.jit
def sorted_normal(key):
    return jnp.sort(jax.random.normal(key, (768, 4)), axis=0)


@jax.jit
def with_a_table(key):
    return jnp.asarray(np.arange(768 * 4.0).reshape(768, 4)) * jax.random.normal(key, (768, 4))


class Called(nn.Module):
    """Weights drawn by one call, which is more than one element's bits."""

    drawn: Callable

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(x.reshape(len(x), -1) @ self.param("kernel", self.drawn))


@pytest.mark.parametrize(
    "model", [Odd(), Called(sorted_normal), Called(with_a_table)], ids=["outside", "sorted", "table"]
)
def test_others_are_drawn_by_init(model):
    key = jax.random.key(1)
    wanted = programs_as_long_as_the_network(model, key)
    got = draw_params(model, key, SHAPE)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_tensors_drawn_alike_share_programs():
    model = build_model("resnet18", 10, width=4, weight_init="uniform")
    before = len(draws._programs)
    draw_params(model, jax.random.key(0), SHAPE)
    tensors = len(jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))))
    assert len(draws._programs) - before <= 6 < tensors
