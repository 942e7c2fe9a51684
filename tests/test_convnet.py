"""ConvNet of Inverting Gradients and CPL's LeNet against torch."""

import importlib
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.errors import InputError
from jaxleak.models import ConvNet, build_model
from tests.fixtures import quick_jit
from tests.oracles.parity import assert_equals_torch
from tests.oracles.require_torch import require_torch

CLASSES = 3


@pytest.mark.torch
@pytest.mark.parametrize(
    ("fields", "groups"),
    [({"activation": nn.relu}, None), ({"train": False}, None), ({"norm": "group", "groups": 2}, 2)],
    ids=["train", "eval", "group norm"],
)
def test_convnet_equals_torch(fields, groups):
    torch = require_torch()
    oracle = importlib.import_module("jaxleak.bench.networks.convnet")
    model = ConvNet(CLASSES, width=2, **{"activation": nn.sigmoid, **fields})
    activation = torch.nn.ReLU() if model.activation is nn.relu else torch.nn.Sigmoid()
    net = oracle.ConvNet(CLASSES, (9, 19), 2, activation, groups)
    assert_equals_torch(model, net, model.train, (9, 19, 3))


@pytest.mark.torch
def test_cpls_lenet_equals_torch():
    require_torch()
    oracle = importlib.import_module("jaxleak.bench.networks.lenet")
    shape = (9, 7, 3)
    assert_equals_torch(build_model("lenet-cpl", CLASSES), oracle.LeNet(*shape, CLASSES, (2, 2, 1, 1)), True, shape)


def test_parameter_count():
    """Of convolutions 9 * i * o + o, of norms 2 * o, of the head 36 * 64 * k + k."""
    model = build_model("convnet", 10)
    assert (model.width, model.activation, model.weight_init) == (64, nn.relu, "torch")  # as published
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    channels = [3, 64, 128, 128, 256, 256, 256, 256, 256]
    layers = sum(9 * i * o + 3 * o for i, o in itertools.pairwise(channels))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == layers + 36 * 64 * 10 + 10
    assert model.head_input_shape((32, 32, 3)) == (3, 3, 256)


@pytest.mark.parametrize(
    ("weight_init", "bounds"), [("torch", (27**-0.5, 72**-0.5, 64**-0.5)), ("uniform", (0.5,) * 3)]
)
def test_initialisations(weight_init, bounds):
    model = ConvNet(num_classes=50, width=8, weight_init=weight_init)
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 12, 18, 3)))["params"]
    for name, bound in zip(("conv0", "conv1", "head"), bounds, strict=True):
        assert 0.95 * bound < np.abs(params[name]["kernel"]).max() <= bound
        assert 0.3 * bound < np.abs(params[name]["bias"]).max() <= bound
    assert (np.ptp(params["bn0"]["scale"]) > 0) == (weight_init == "uniform")


def test_flax_initialisation():
    model = ConvNet(num_classes=50, width=8, weight_init="flax")
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 12, 18, 3)))["params"]
    for name, fan_in in (("conv3", 9 * 16), ("head", 64)):
        kernel = params[name]["kernel"]
        assert np.std(kernel) == pytest.approx(fan_in**-0.5, rel=5 / np.sqrt(2 * kernel.size))
        assert np.all(params[name]["bias"] == 0)
    assert np.all(params["bn0"]["scale"] == 1)


def test_an_image_without_a_window_is_refused():
    with pytest.raises(InputError, match="2 pixels are left where a window of 3 pools"):
        jax.eval_shape(build_model("convnet", 10).init, jax.random.key(0), jnp.zeros((1, 8, 9, 3)))
