"""Weights in torch's layout for models of one's own: which layers read flattened maps, and what cannot be told."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxleak import IDLG, InputError, attack, load_dataset, make_victim
from jaxleak.models import load_weights, save_weights
from jaxleak.models.own import adapt_model
from jaxleak.models.weights import from_torch, to_torch
from tests.processes import small_pictures

SHAPE = (8, 8, 3)
CLASSES = 5


def channels_last(x):
    return x.reshape(len(x), -1)


def as_in_torch(x):
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)


def by_hand(x):
    return jnp.moveaxis(x, -1, 1).reshape(len(x), x.shape[3], -1).reshape(len(x), -1)


class Branches(nn.Module):
    """Two dense layers that read a map each, one of them under `jit` and pooled, one normalised by groups."""

    flatten: Callable = channels_last

    @nn.compact
    def __call__(self, x):
        a = nn.sigmoid(nn.Conv(4, (3, 3), strides=2, name="first")(x))
        b = nn.GroupNorm(2, name="norm")(nn.Conv(6, (3, 3), name="second")(a))
        left = nn.Dense(7, name="left")(self.flatten(jax.jit(nn.relu)(a)))
        right = nn.Dense(7, name="right")(self.flatten(nn.avg_pool(b, (2, 2), (2, 2))))
        pooled = nn.Dense(7, name="pooled")(b.mean((1, 2)))
        tokens = nn.Dense(3, name="token")(b.reshape(len(b), -1, 6))
        read = nn.Dense(7, name="tokens")(tokens.reshape(len(b), -1))
        return nn.Dense(CLASSES, name="head")(jnp.tanh(left + right + pooled + read))


class NNXBranches(nnx.Module):
    def __init__(self, flatten, *, rngs):
        self.flatten = flatten
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.left, self.right = (nnx.Linear(256, 7, rngs=rngs) for _ in range(2))
        self.head = nnx.Linear(7, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = nnx.sigmoid(self.conv(x))
        return self.head(nnx.sigmoid(self.left(self.flatten(x)) + self.right(self.flatten(x * x))))


def linen(flatten):
    return Branches(flatten)


def nnx_twin(flatten):
    return lambda rngs: NNXBranches(flatten, rngs=rngs)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("make", [linen, nnx_twin])
def test_one_file_means_the_same_however_maps_are_flattened(make, x):
    """A model that puts its maps in torch's order itself is the oracle."""
    ours, oracle = (adapt_model(make(flatten), SHAPE) for flatten in (channels_last, as_in_torch))
    params = ours.init(jax.random.key(0), x)["params"]
    tensors = to_torch(ours, params, SHAPE)
    there = from_torch(oracle, tensors, SHAPE)
    np.testing.assert_allclose(oracle.apply({"params": there}, x), ours.apply({"params": params}, x), atol=1e-5)
    again = from_torch(ours, tensors, SHAPE)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


class Joined(nn.Module):
    """Two maps, flattened one after the other."""

    @nn.compact
    def __call__(self, x):
        a, b = nn.Conv(4, (3, 3))(x), nn.Conv(2, (3, 3))(x)
        return nn.Dense(CLASSES, name="joined")(jnp.concatenate([channels_last(a), channels_last(b)], axis=-1))


class Scaled(nn.Module):
    """A flattened map with a weight for each of its numbers."""

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="scaled")(channels_last(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(CLASSES, name="out")(x)


class Up(nn.Module):
    turned: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.ConvTranspose(3, (3, 3), transpose_kernel=self.turned, name="up")(x)
        return nn.Dense(CLASSES)(channels_last(x))


class NNXUp(nnx.Module):
    def __init__(self, *, rngs):
        self.up = nnx.ConvTranspose(3, 3, (3, 3), rngs=rngs)
        self.out = nnx.Linear(192, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.out(channels_last(self.up(x)))


@pytest.mark.parametrize(
    ("model", "layer"),
    [(Joined(), "head"), (Scaled(), "scaled"), (Up(), "up"), (NNXUp, "up"), (Branches(by_hand), "left, right")],
    ids=["joined", "scaled", "up", "nnx-up", "by-hand"],
)
def test_an_order_that_cannot_be_told_is_refused(model, layer, tmp_path):
    adapted = adapt_model(model, SHAPE)
    params = adapted.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    message = rf"`model` has layers whose weights in torch's layout cannot be told: {layer}\. Let a dense layer"
    with pytest.raises(InputError, match=message):
        save_weights(tmp_path / "w.safetensors", adapted, params, SHAPE)
    np.savez(tmp_path / "w.npz", a=np.zeros(2))  # what is not a tree of Flax
    with pytest.raises(InputError, match=message):
        load_weights(tmp_path / "w.npz", adapted, SHAPE)


def test_a_turned_kernel_is_torchs():
    assert adapt_model(Up(turned=True), SHAPE).unlike_torch(SHAPE) == []


class Learned(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES)(channels_last(nn.PReLU(name="act")(x)))


def test_a_learned_slope_is_called_and_shaped_as_in_torch(x):
    model = adapt_model(Learned(), SHAPE)
    params = model.init(jax.random.key(0), x)["params"]
    tensors = to_torch(model, params, SHAPE)
    assert tensors["act.weight"].tolist() == [pytest.approx(0.01)]
    assert from_torch(model, tensors, SHAPE)["act"]["negative_slope"] == pytest.approx(0.01)


# --- the program ---


def net(activation, classes=CLASSES):
    """A class whose name and fields say nothing about its activation."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(classes)(channels_last(activation(nn.Conv(4, (3, 3))(x))))

    return Net()


def test_edited_code_is_another_model(tmp_path):
    data = load_dataset(small_pictures(tmp_path))
    short = replace(IDLG, label="known", iterations=1)

    def run(model):
        return attack(make_victim(model, data, [0]), [short], seeds=1, out=tmp_path / "run", quiet=True)

    run(net(nn.sigmoid, 3))
    assert len(run(net(nn.sigmoid, 3)).rows) == 1
    with pytest.raises(InputError, match="model_program"):
        run(net(nn.relu, 3))


def test_the_program_covers_constants_and_initialisation():
    def program(model):
        return adapt_model(model, SHAPE).program(SHAPE)

    assert program(net(nn.sigmoid)) == program(net(nn.sigmoid)) != program(net(nn.tanh))
    first, second = (np.full(SHAPE, value, np.float32) for value in (1, 2))
    assert program(net(lambda x: x * first[..., :1])) != program(net(lambda x: x * second[..., :1]))
    drawn = [nn.Dense(CLASSES, kernel_init=init) for init in (nn.initializers.zeros, nn.initializers.ones)]
    assert len({program(nn.Sequential([channels_last, layer])) for layer in drawn}) == 2
    assert program(nnx_twin(channels_last)) != program(nnx_twin(as_in_torch))


# --- the head ---


def ending(end):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return end(nn.Dense(CLASSES, name="last")(channels_last(x)))

    return Net()


@pytest.mark.parametrize("end", [lambda x: x, nn.log_softmax, lambda x: x.astype(jnp.float32)])
def test_logits_are_the_last_layers(end):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adapt_model(ending(end), SHAPE).head == ("last",)


@pytest.mark.parametrize("end", [lambda x: 4 * x, lambda x: x / 2, jnp.tanh])
def test_logits_that_are_others_are_told(end):
    with pytest.warns(UserWarning, match="changes what its last dense layer last gives: labels that are read"):
        adapt_model(ending(end), SHAPE)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(channels_last(x))


def test_statistics_that_training_does_not_learn_are_told(tmp_path):
    data = load_dataset(small_pictures(tmp_path, 100))
    with pytest.warns(UserWarning, match="its running statistics stay as they were drawn"):
        make_victim(Normed(), data, [0], network="shared", trained_steps=1)


def test_fields_are_of_named_models(tmp_path):
    with pytest.raises(InputError, match="`fields` are of a model that is given by its name"):
        make_victim(net(nn.sigmoid, 3), load_dataset(small_pictures(tmp_path)), [0], fields={"width": 3})
