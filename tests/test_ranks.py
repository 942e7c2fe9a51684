"""Ranks of the equations that a gradient gives for each layer of a chain."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak
from jaxleak.attacks.layer_equations import Equations
from jaxleak.kernels.precision import float64
from jaxleak.runs.audit import ranks
from jaxleak.threat.chain import Link

KERNELS = {
    "stride": {"strides": 2, "padding": 1},
    "valid": {"padding": "VALID"},
    "circular": {"padding": "CIRCULAR", "use_bias": False},
    "dilated": {"kernel_dilation": 2},
    "groups": {"feature_group_count": 2},
}


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("kind", KERNELS)
def test_ranks_are_those_of_the_equations_written_out(kind, activation):
    shape, layer = (1, 6, 6, 2), nn.Conv(4, (3, 3), **KERNELS[kind])
    keys = jax.random.split(jax.random.key(0), 4)
    with float64():
        link = Link(("conv",), layer, activation, shape)
        kernel = jax.random.normal(keys[0], (3, 3, 2 // KERNELS[kind].get("feature_group_count", 1), 4))
        u = jax.random.normal(keys[1], shape)
        outputs = link.linear(kernel, u)
        # Slopes of 0 everywhere but at some places, so that the gradient alone does not do.
        slope = jax.random.normal(keys[2], outputs.shape) * (jax.random.uniform(keys[3], outputs.shape) < 0.1)
        weights = {"kernel": kernel, "bias": jnp.full(4, -0.5)} if layer.use_bias else {"kernel": kernel}
        found = ranks._rank_of(link, weights, u, outputs, slope)
        known = (outputs + weights.get("bias", 0) > 0) if activation == "relu" else jnp.ones_like(outputs)
        zero = jnp.zeros(())
        equations = Equations(kernel, slope, known.astype(float), zero, zero, outputs, kernel)
        written_out = jax.jacobian(lambda u: jnp.concatenate([part.ravel() for part in equations.left(link, u)]))(u)
    matrix = np.asarray(written_out).reshape(-1, u.size)
    assert found.rank == np.linalg.matrix_rank(matrix, tol=1e-6 * np.linalg.norm(matrix, axis=0).max())
    assert (found.unknowns, found.gradient, found.outputs) == (u.size, kernel.size, int(jnp.sum(known)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "own.npz"
    images = np.random.default_rng(0).random((2, 8, 8, 1))
    np.savez(file, images=images, labels=[0, 1])
    return jaxleak.load_dataset(file)


def _risk(victim):
    return jaxleak.risk(victim, ["fp16"])


def test_risk_says_which_layers_have_one_solution(data):
    """Sigmoids can be inverted: every layer has one. ReLUs that are off tell nothing."""
    found = _risk(jaxleak.make_victim("lenet", data, [0]))
    assert [layer.layer for layer in found.layers] == ["conv1", "conv2", "conv3", "head"]
    assert all(layer.exact for layer in found.layers)
    assert "follows exactly" in found.sentences[1]
    relu = _risk(jaxleak.make_victim("lenet", data, [0], fields={"activation": "relu", "weight_init": "torch"}))
    assert any(layer.outputs < other.outputs for layer, other in zip(relu.layers, found.layers, strict=True))
    assert relu.as_dict()["layers"][0]["rank"] == relu.layers[0].rank


def test_a_layer_without_gradient_has_no_equations(data):
    """Of a dense network one layer is read after the other; a dead head tells nothing of what is before it."""
    victim = jaxleak.make_victim("mlp", data, [0], fields={"hidden": (16,)})
    assert [(layer.unknowns, layer.rank) for layer in _risk(victim).layers] == [(64, 64), (16, 16)]


def test_only_where_rgap_applies(data):
    chain = jaxleak.make_victim("lenet", data, [0])
    pairs = jaxleak.make_victim("lenet", data, [0, 1], batch=2)
    defended = replace(chain, defences=(jaxleak.parse_defence("gaussian:1e-3"),))
    steps = jaxleak.make_victim("lenet", data, [0], client=jaxleak.Client(steps=2))
    tokens = {"patch_size": 4, "dim": 8, "depth": 1, "heads": 2}
    attention = jaxleak.make_victim("vit", data, [0], fields=tokens)
    for victim in (pairs, defended, steps, attention):
        assert not ranks.layer_ranks(victim, *[None] * 3)
    assert not ranks.rank_sentences([])


def test_large_layers_are_counted_only(data, monkeypatch):
    monkeypatch.setattr(ranks, "DIRECT", 63)
    found = _risk(jaxleak.make_victim("lenet", data, [0]))
    assert found.layers[0].rank is None
    assert not found.layers[0].exact
    assert "conv1 has 64" in found.sentences[1]
