"""Batches from the gradient of a dense layer with a ReLU behind it."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import Client, InputError, Sweep, load_dataset, make_victim, parse_defence
from jaxleak.attacks import spear
from jaxleak.attacks.check import check_attack
from jaxleak.attacks.presets import ATTACKS
from jaxleak.attacks.spear import Batch, Layer, in_order_of_labels, recover_inputs
from jaxleak.runs.run import run_sweep
from tests.fixtures import quick_jit

SPEAR = ATTACKS["spear"]
RELU = {"activation": "relu", "weight_init": "torch", "hidden": (200,)}


def layer_of(rng: np.random.Generator, batch: int, width: int, inputs: int = 48, offset: float = 0.0):
    """Random inputs, a layer, and the gradient of a random loss behind its ReLU."""
    x = rng.normal(size=(batch, inputs)) + offset
    kernel, bias = rng.normal(size=(inputs, width)) / np.sqrt(inputs), rng.normal(size=width) / 10
    slopes = rng.normal(size=(batch, width)) * (x @ kernel + bias > 0)
    return x, slopes, Layer(kernel, bias, x.T @ slopes, slopes.sum(axis=0))


def run(layer: Layer, count: int, seed: int = 0) -> Batch:
    return quick_jit(recover_inputs, static_argnums=1)(layer, count, jax.random.key(seed))


def apart(found, wanted) -> float:
    """The largest distance of a true row from the nearest one found."""
    distances = np.linalg.norm(np.asarray(found)[:, None] - wanted[None], axis=2)
    return float(distances.min(axis=0).max())


@pytest.mark.parametrize(("batch", "width"), [(1, 7), (2, 20), (4, 60), (8, 60)])
@pytest.mark.parametrize("multiple", [1.0, -1e-100])
def test_inputs_and_slopes_of_a_layer(batch, width, multiple):
    x, slopes, layer = layer_of(np.random.default_rng(batch), batch, width)
    scaled = layer._replace(
        kernel_gradient=multiple * layer.kernel_gradient, bias_gradient=multiple * layer.bias_gradient
    )
    found = run(scaled, batch)
    assert apart(found.inputs, x) < 1e-6
    assert apart(found.slopes / multiple, slopes) < 1e-6
    assert float(found.contradictions) == 0


def test_images_that_are_alike():
    """Most units are on for all of them or off for all: fewer rows are sparse, and some are empty."""
    x, _, layer = layer_of(np.random.default_rng(5), 4, 200, offset=2.0)
    off = np.mean(np.all(x @ layer.kernel + layer.bias <= 0, axis=0))
    assert 0.2 < off < 0.45
    assert apart(run(layer, 4).inputs, x) < 1e-6


def test_the_sparsest_independent_vectors_are_chosen():
    """By hand: copies, and sums of others that are sparser than the last."""
    one, two, three = np.eye(3)
    vectors = np.stack([one, -one, two, (one + two) / np.sqrt(2), three, np.zeros(3)])
    chosen = spear._sparsest(jnp.asarray(vectors), jnp.asarray([5, 6, 9, 8, 3, 10]), 3)
    np.testing.assert_array_equal(chosen, vectors[[2, 3, 4]])


def test_without_a_relu_everything_contradicts(monkeypatch):
    """It gives up after its rounds, and says how far off it is."""
    monkeypatch.setattr(spear, "ROUNDS", 2)
    rng = np.random.default_rng(3)
    x, d = rng.normal(size=(3, 30)), rng.normal(size=(3, 40))
    found = run(Layer(rng.normal(size=(30, 40)), np.zeros(40), x.T @ d, d.sum(axis=0)), 3)
    assert float(found.contradictions) > 0.2
    assert np.all(np.isfinite(found.inputs))


def test_inputs_go_to_the_labels_that_explain_them():
    """Whatever their order; one wrong label gets what is left."""
    rng = np.random.default_rng(4)
    x, told = rng.normal(size=(4, 5)), rng.normal(size=(6, 9))
    labels = np.array([2, 0, 5, 2])
    order = np.array([3, 1, 0, 2])

    def slope(one, label):
        return jnp.asarray(told)[label] * (1 + jnp.sum(one**2))

    slopes = 0.1 * np.stack([told[label] * (1 + np.sum(one**2)) for one, label in zip(x, labels, strict=True)])
    batch = Batch(jnp.asarray(x[order]), jnp.asarray(slopes[order]), jnp.ones(()))
    found = in_order_of_labels(batch, slope, jnp.asarray(labels))
    alike = np.asarray(found)[[0, 3]]
    np.testing.assert_array_equal(found[1:3], x[1:3])
    assert {tuple(row) for row in alike} == {tuple(x[0]), tuple(x[3])}
    wrong = in_order_of_labels(batch, slope, jnp.asarray([2, 1, 5, 2]))
    np.testing.assert_array_equal(wrong[2], x[2])
    assert {tuple(row) for row in np.asarray(wrong)} == {tuple(row) for row in x}


# --- the attack ---


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixteen pictures of 8 by 8 pixels in five classes."""
    path = tmp_path_factory.mktemp("pictures") / "sixteen.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(16) % 5)
    return load_dataset(path)


def swept(victim, **changes):
    return run_sweep(Sweep(victim=victim, attacks=(replace(SPEAR, **changes),), seeds=1), None, quiet=True).rows


@pytest.mark.parametrize(
    "fields",
    [
        {"batch": 4},
        pytest.param({"batch": 8, "client": Client(clients=2)}, marks=pytest.mark.slow),
        pytest.param({"batch": 4, "defences": (parse_defence("dp-sgd:0.1:0"),)}, marks=pytest.mark.slow),
    ],
    ids=["batch", "clients", "clipped one by one"],
)
def test_the_attack_recovers_whole_batches(pictures, fields):
    """With labels that are read, but where clipping hides them."""
    victim = make_victim("mlp", pictures, list(range(16)), fields=RELU, normalise="cifar100", **fields)
    for row in swept(victim, label="known" if "defences" in fields else "counts"):
        assert row["relative_error"] < 1e-3
        assert row["images_recovered"] == row["batch"] == victim.batch
        assert "defences" in fields or row["success"]  # each image with its label: the objective is 0


class Own(nn.Module):
    """Three layers, whose activation no field names."""

    relu: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(64, name="dense1")(x.reshape(len(x), -1))
        x = nn.relu(x) if self.relu else nn.leaky_relu(x)
        return nn.Dense(5, name="head")(x)


def test_a_relu_of_an_own_model_is_found(pictures):
    check_attack(SPEAR, make_victim(Own(), pictures, [0, 1], batch=2))
    with pytest.raises(InputError, match=r"^spear needs a ReLU right behind the first dense layer, .* own has none"):
        check_attack(SPEAR, make_victim(Own(relu=False), pictures, [0, 1], batch=2))


@pytest.mark.parametrize(
    ("model", "fields", "changes", "message"),
    [
        ("mlp", {}, {}, "spear needs a ReLU right behind the first dense layer, whose gradient is 0 for a unit that"),
        ("mlp", {"activation": "leaky_relu"}, {}, "spear needs a ReLU right behind the first dense layer, whose"),
        ("mlp", {"hidden": ()}, {}, "spear needs a ReLU right behind the first dense layer, whose gradient is 0"),
        ("mlp", {"hidden": (3,), "activation": "relu"}, {}, "spear needs a first dense layer at least as wide as"),
        ("lenet", {}, {}, "spear needs a model whose first layer is dense, such as mlp; got conv1 [5, 5, 3, 12]"),
        ("mlp", RELU, {"dummies": 2}, "`dummies` must be the update's images, 4, with the start spear."),
    ],
)  # fmt: skip
def test_where_it_does_not_apply(pictures, model, fields, changes, message):
    attack = replace(SPEAR, dummies=changes.pop("dummies", None))
    victim = make_victim(model, pictures, [0, 1, 2, 3], batch=4, fields=fields, **changes)
    with pytest.raises(InputError) as error:
        Sweep(victim=victim, attacks=(attack,), seeds=1)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
