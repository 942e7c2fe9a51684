"""Inception v3 against torch: values, gradients, the attack's gradient, parameter counts, weights."""

import importlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.errors import InputError
from jaxleak.models import Inception3, build_model, load_variables, save_weights
from jaxleak.models.inception import (
    EPSILON,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    Unit,
    stem,
)
from jaxleak.models.layers import convolution
from jaxleak.models.norms import normalisation
from jaxleak.models.weight_init import dlg_uniform
from tests.fixtures import quick_jit
from tests.oracles.parity import assert_equals_torch, load, relative_error, some_variables, tensor_of
from tests.oracles.require_torch import require_torch

CLASSES = 3
NARROW = 1 / 32
INPUTS = 4  # channels that come into a block


def unit_of(train: bool, norm: str, width: float) -> partial:
    return partial(
        Unit,
        conv=convolution("uniform", dlg_uniform),
        norm=normalisation(norm, train, 2, "uniform", EPSILON),
        activation=nn.sigmoid,
        width=width,
    )


class Stem(nn.Module):
    unit: Any

    @nn.compact
    def __call__(self, x):
        return stem(self.unit, x)


# --- against torch ---

# Our block, torch's, and the shape that comes in.
BLOCKS = {
    "stem": (Stem, lambda torchs, make: torchs.Stem(make), (27, 29, 3)),
    "a": (partial(InceptionA, pool_channels=64), lambda torchs, make: torchs.block_a(make, INPUTS, 64), (4, 3, INPUTS)),
    "b": (InceptionB, lambda torchs, make: torchs.block_b(make, INPUTS), (6, 5, INPUTS)),
    "c": (partial(InceptionC, channels=96), lambda torchs, make: torchs.block_c(make, INPUTS, 96), (4, 5, INPUTS)),
    "d": (InceptionD, lambda torchs, make: torchs.block_d(make, INPUTS), (6, 5, INPUTS)),
    "e": (InceptionE, lambda torchs, make: torchs.BlockE(make, INPUTS), (3, 4, INPUTS)),
    "auxiliary": (
        lambda unit: InceptionAux(unit, unit, CLASSES, "uniform"),
        lambda torchs, make: torchs.Auxiliary(make, INPUTS, CLASSES),
        (20, 18, INPUTS),
    ),
}


def assert_block_equals_torch(name: str, train: bool, norm: str = "batch", width: float = NARROW) -> None:
    torch = require_torch()
    torchs = importlib.import_module("jaxleak.bench.networks.inception")
    block, oracle, shape = BLOCKS[name]
    net = oracle(torchs, torchs.Make(width, torch.sigmoid, 2 if norm == "group" else None))
    assert_equals_torch(block(unit=unit_of(train, norm, width)), net, train, shape)


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_equals_torch(name, train):
    assert_block_equals_torch(name, train)


@pytest.mark.torch
def test_group_norm_equals_torch():
    assert_block_equals_torch("b", train=True, norm="group", width=1 / 16)  # two groups of two channels or more


def network(train: bool, aux: bool, shape, file):
    """A narrow network with random weights, and torch's with the same weights from a file."""
    torch = require_torch()
    torchs = importlib.import_module("jaxleak.bench.networks.inception")
    load_file = importlib.import_module("safetensors.numpy").load_file
    model = build_model("inception3", CLASSES, train=train, width=NARROW, aux=aux)
    variables = some_variables(model, shape)
    save_weights(file, model, variables["params"], shape, variables.get("batch_stats"))
    jax.tree.map(np.testing.assert_array_equal, load_variables(file, model, shape), variables)
    net = torchs.Inception3(CLASSES, torchs.Make(NARROW, torch.sigmoid), aux)
    return model, variables, load(net, load_file(file)).train(train)


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_narrow_network_equals_torch_through_a_file(train, tmp_path):
    shape = (107, 75, 3)
    model, variables, net = network(train, False, shape, tmp_path / "weights.safetensors")
    x = np.random.default_rng(0).uniform(size=(2, *shape))
    logits = quick_jit(model.apply)(variables, x)
    assert relative_error(logits, net(tensor_of(x))[0].detach().numpy()) < 1e-8


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["train", "eval"])
def test_auxiliary_logits_equal_torch_and_change_nothing(train, tmp_path):
    shape = (299, 299, 3)
    model, variables, net = network(train, True, shape, tmp_path / "weights.safetensors")
    x = np.random.default_rng(0).uniform(size=(2, *shape))
    logits, sown = quick_jit(partial(model.apply, mutable=["aux"]))(variables, x)
    wanted, wanted_aux = net(tensor_of(x))
    assert relative_error(logits, wanted.detach().numpy()) < 1e-8
    if train:
        (aux,) = sown["aux"]["logits"]
        assert relative_error(aux, wanted_aux.detach().numpy()) < 1e-8
    else:
        assert not sown
        assert wanted_aux is None


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_whole_networks_gradients_equal_torch(train):
    torch = require_torch()
    torchs = importlib.import_module("jaxleak.bench.networks.inception")

    class Logits(torchs.Inception3):
        def forward(self, x):
            return super().forward(x)[0]

    model = build_model("inception3", CLASSES, train=train, width=1 / 64)
    net = Logits(CLASSES, torchs.Make(1 / 64, torch.sigmoid), aux=False)
    assert_equals_torch(model, net, train, (107, 75, 3))


# --- size, initialisation, mistakes ---


@pytest.mark.parametrize(("aux", "parameters"), [(True, 27_161_264), (False, 23_834_568)])
@pytest.mark.parametrize("train", [True, False])
def test_parameter_count_is_torchvisions(aux, parameters, train):
    model = build_model("inception3", 1000, aux=aux, train=train)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
    assert set(variables) == ({"params"} if train else {"params", "batch_stats"})
    params = variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert model.head_input_shape((299, 299, 3)) == (1, 1, params["head"]["kernel"].shape[0])


def test_maps_have_the_published_sizes():
    """Szegedy et al. 2016, table 1: 35x35x288, 17x17x768, 8x8x2048 before the blocks named here, and after the last."""
    model = Inception3(num_classes=CLASSES)
    seen = {}

    def look(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            seen["/".join(context.module.path)] = output.shape[1:]
        return output

    with nn.intercept_methods(look):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
    assert seen["Conv2d_4a_3x3"] == (71, 71, 192)
    assert seen["Mixed_5d"] == (35, 35, 288)
    assert seen["Mixed_6e"] == (17, 17, 768)
    assert seen["Mixed_7a"] == (8, 8, 1280)
    assert seen["Mixed_7c"] == (8, 8, 2048)


def layers_of(model, image_shape):
    """Every convolution and dense layer by its path, seen as the model is initialised."""
    seen = {}

    def look(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv | nn.Dense):
            seen["/".join(context.module.path)] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return seen


def test_torchs_initialisation_is_torchvisions():
    layers = layers_of(Inception3(num_classes=CLASSES, aux=True, weight_init="torch"), (299, 299, 3))
    assert len(layers) == 94 + 2 + 2  # convolutions, the auxiliary head's, and the dense layers
    own = {"AuxLogits/conv1/conv": 0.01, "AuxLogits/fc": 0.001}
    for path in ("Conv2d_1a_3x3/conv", "Mixed_6e/branch7x7_2/conv", "AuxLogits/conv0/conv", "head", *own):
        drawn = layers[path].kernel_init(jax.random.key(0), (2000,))
        assert np.std(drawn) == pytest.approx(own.get(path, 0.1), rel=5 / np.sqrt(2 * drawn.size))
    bias = layers["head"].bias_init(jax.random.key(0), (2000,))
    assert 0.9 * 2048**-0.5 < np.abs(bias).max() <= 2048**-0.5


@pytest.mark.parametrize(
    ("fields", "size", "complaint"),
    [
        ({}, (75, 74), "needs images of 75x75 pixels or more; got 75x74"),
        ({"aux": True}, (298, 299), "with `aux` needs images of 299x299 pixels or more; got 298x299"),
    ],
)
def test_too_small_an_image_is_refused(fields, size, complaint):
    model = build_model("inception3", CLASSES, train=False, **fields)
    with pytest.raises(InputError, match=complaint):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize("aux", [False, True])
def test_the_smallest_image_is_enough(aux):
    size = 299 if aux else 75
    model = build_model("inception3", CLASSES, train=False, aux=aux)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    assert variables["params"]["head"]["kernel"].shape == (2048, CLASSES)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"norm": "group", "groups": 32}, "`groups` must divide the channels of every norm; got 32 groups for 48"),
        ({"width": 0}, "`width` must be above 0"),
        ({"weight_init": "torhc"}, "`weight_init` must be one of flax, torch, uniform, uniform-weights"),
    ],
)
def test_a_wrong_field_is_named(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        build_model("inception3", CLASSES, **fields)
