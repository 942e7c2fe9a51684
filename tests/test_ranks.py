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
from jaxleak.runs.audit.counting import told_at_most
from jaxleak.runs.audit.information import information, sharing
from jaxleak.runs.audit.risk import write_risk
from jaxleak.threat.chain import Link
from jaxleak.threat.network import draw_params

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


class Small(nn.Module):
    """Two convolutions and a head, on [b, 8, 8, 1]."""

    activation: str = "tanh"

    @nn.compact
    def __call__(self, x):
        act = getattr(nn, self.activation)
        x = act(nn.Conv(3, (3, 3), strides=2, name="first")(x))
        x = act(nn.Conv(4, (3, 3), strides=2, name="second")(x))
        return nn.Dense(5, name="head")(x.reshape(len(x), -1))


COUNTED = {  # model, and the numbers that an update of 1 and of 4 images tells at most
    # Behind the first convolution 48 numbers of each image follow from its outputs, behind the second 16.
    "chain": (Small(), {1: 27 + 3 + 48, 4: 27 + 3 + 108 + 4 + 4 * 16}),
    # The first gradient has the rank of the batch; what is behind follows from 7 numbers of each image.
    "mlp": (jaxleak.build_model("mlp", 5, hidden=(7,)), {1: (64 + 7 - 1) + 7 + 7, 4: 4 * (64 + 7 - 4) + 7 + 4 * 7}),
}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", COUNTED)
def test_an_update_tells_no_more_numbers_than_counting_says(name, batch, tmp_path, monkeypatch):
    """Beside the Jacobian's rank; where pixels are more, the randomised spectrum has that many free directions."""
    model, counted = COUNTED[name]
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", images=rng.random((5, 8, 8, 1)), labels=np.arange(5))
    data = jaxleak.load_dataset(tmp_path / "own.npz")
    victim = jaxleak.make_victim(model, data, list(range(batch)), batch=batch, network="shared")
    pixels, target = rng.random((batch, 8, 8, 1)), np.eye(5)[np.arange(batch)]
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), draw_params(victim.model, jax.random.key(0), (8, 8, 1))
    )
    exact = information(victim, params, pixels, target)
    with float64():
        update = jax.tree.map(np.asarray, sharing(victim, params, pixels.shape, target)(jnp.asarray(pixels).ravel()))
    weights = jax.tree.map(lambda _: np.ones(()), params)
    told = told_at_most(victim, params, update, weights, batch)
    rank = int(np.sum(exact.values > 1e-11 * exact.values[-1]))
    assert rank <= told
    assert told == counted[batch]
    monkeypatch.setattr("jaxleak.runs.audit.information.EXACT", 10)
    guessed = information(victim, params, pixels, target)
    assert not guessed.exact
    assert np.sum(guessed.counts) == pytest.approx(pixels.size)
    free = np.sum(guessed.counts[guessed.free])
    assert free >= max(0, pixels.size - told)
    if told < pixels.size:
        assert guessed.error(1e-9) == exact.error(1e-9)
        np.testing.assert_allclose(guessed.error_map(1e-9), exact.error_map(1e-9), rtol=0.2)


def test_a_page_says_how_much_of_a_batch_is_left_open(tmp_path, monkeypatch):
    np.savez(tmp_path / "own.npz", images=np.random.default_rng(0).random((5, 8, 8, 1)), labels=np.arange(5))
    data = jaxleak.load_dataset(tmp_path / "own.npz")
    victim = jaxleak.make_victim(Small(), data, [0, 1, 2, 3], batch=4, network="shared")
    for exact in (True, False):
        if not exact:
            monkeypatch.setattr("jaxleak.runs.audit.information.EXACT", 10)
        found = jaxleak.risk(victim, [])
        assert found.free_directions >= 4 * 64 - COUNTED["chain"][1][4]
        text = write_risk([found], tmp_path / "RISK", victim)[0].read_text()
        assert "It may show the picture" in text
        assert f"{found.free_directions:,} of 256 numbers of the picture are left open" in text
        assert ("looked at by samples" in text) != exact
        assert any("randomised spectrum" in sentence for sentence in found.sentences) != exact
