"""The DenseNet family against torch: values, gradients, the attack's gradient, parameter counts, weights."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.errors import InputError
from jaxleak.models import DenseNet, build_model, load_variables, save_weights
from jaxleak.models.densenet import DenseLayer, Transition
from jaxleak.models.layers import convolution
from jaxleak.models.norms import normalisation
from jaxleak.models.weight_init import dlg_uniform
from tests.fixtures import quick_jit
from tests.oracles.parity import assert_equals_torch, load, relative_error, some_variables, tensor_of
from tests.oracles.require_torch import require_torch

CLASSES = 3
FIELDS = {"growth": 2, "width": 4, "bottleneck": 2}


def parts(train: bool):
    return {
        "conv": convolution("uniform", dlg_uniform),
        "norm": normalisation("batch", train, 1, "uniform"),
        "activation": nn.sigmoid,
    }


def oracle_of(model, activation):
    oracle = importlib.import_module("jaxleak.bench.networks.densenet")
    groups = model.groups if model.norm == "group" else None
    sizes = (model.block_sizes, model.growth, model.width, model.bottleneck)
    return oracle.DenseNet(CLASSES, *sizes, model.stem, activation, groups)


# --- against torch ---


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, False])
def test_a_dense_layer_equals_torch(train):
    torch = require_torch()
    oracle = importlib.import_module("jaxleak.bench.networks.densenet")
    net = oracle.DenseLayer(4, 3, 2, torch.nn.BatchNorm2d, torch.sigmoid)
    assert_equals_torch(DenseLayer(growth=3, bottleneck=2, **parts(train)), net, train, (5, 4, 4))


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, False])
def test_a_transition_equals_torch(train):
    torch = require_torch()
    oracle = importlib.import_module("jaxleak.bench.networks.densenet")
    net = oracle.Transition(5, torch.nn.BatchNorm2d, torch.sigmoid)
    assert_equals_torch(Transition(**parts(train)), net, train, (5, 6, 5))


CASES = {
    "cifar stem": ({"stem": "cifar"}, "sigmoid", (8, 9, 3)),
    "cifar stem, eval mode": ({"stem": "cifar", "train": False, "activation": nn.tanh}, "tanh", (8, 9, 3)),
    "imagenet stem": ({"stem": "imagenet", "activation": nn.relu}, "relu", (16, 19, 3)),
    "imagenet stem, eval mode": ({"stem": "imagenet", "train": False}, "sigmoid", (16, 19, 3)),
    "group norm": ({"norm": "group", "groups": 2}, "sigmoid", (6, 5, 3)),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_a_small_densenet_equals_torch(name):
    torch = require_torch()
    fields, activation, shape = CASES[name]
    model = DenseNet(CLASSES, (2, 1), **{**FIELDS, **fields})
    net = oracle_of(model, getattr(torch, activation))
    assert_equals_torch(model, net, model.train, shape)


@pytest.mark.torch
@pytest.mark.parametrize("train", [True, False])
def test_narrow_densenet121_equals_torch_through_a_file(train, tmp_path):
    torch = require_torch()
    load_file = importlib.import_module("safetensors.numpy").load_file
    shape, path = (33, 64, 3), tmp_path / "weights.safetensors"
    model = build_model("densenet121", CLASSES, train=train, stem="imagenet", **FIELDS)
    variables = some_variables(model, shape)
    save_weights(path, model, variables["params"], shape, variables.get("batch_stats"))
    jax.tree.map(np.testing.assert_array_equal, load_variables(path, model, shape), variables)
    x = np.random.default_rng(0).uniform(size=(2, *shape))
    net = load(oracle_of(model, torch.sigmoid), load_file(path)).train(train)
    logits = quick_jit(model.apply)(variables, x)
    assert relative_error(logits, net(tensor_of(x)).detach().numpy()) < 1e-8


@pytest.mark.torch
def test_torchs_names_are_ours():
    """Both ways: every tensor of torch's state dict but the counters is read."""
    torch = require_torch()
    model = build_model("densenet121", CLASSES, train=False, **FIELDS)
    state = {name: tensor.numpy() for name, tensor in oracle_of(model, torch.sigmoid).state_dict().items()}
    from_torch = importlib.import_module("jaxleak.models.weights").variables_from_torch
    variables = from_torch(model, state, (8, 8, 3))
    assert len(jax.tree.leaves(variables)) == sum("num_batches" not in name for name in state)


# --- size, initialisation, mistakes ---


def test_parameter_count_is_torchvisions():
    model = build_model("densenet121", 1000, stem="imagenet")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 7_978_856
    assert model.head_input_shape((224, 224, 3)) == (1, 1, params["head"]["kernel"].shape[0])


def test_torchs_initialisation_is_torchvisions():
    model = DenseNet(num_classes=50, block_sizes=(1,), growth=16, width=16, weight_init="torch")
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    kernel = params["features.denseblock1.denselayer1"]["conv2"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=5 / np.sqrt(2 * kernel.size))
    assert 0.95 * 32**-0.5 < np.abs(params["head"]["kernel"]).max() <= 32**-0.5
    assert np.all(params["head"]["bias"] == 0)
    assert np.all(params["features.norm5"]["scale"] == 1)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"norm": "group", "groups": 48}, "`groups` must divide the channels of every norm; got 48 groups for 64"),
        ({"growth": 0}, "`growth` must be above 0"),
        ({"block_sizes": ()}, "`block_sizes` must name at least one block"),
        ({"stem": "cifra"}, "`stem` must be one of cifar, imagenet"),
    ],
)
def test_a_wrong_field_is_named(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        build_model("densenet121", CLASSES, **fields)


def test_too_small_an_image_is_refused():
    model = build_model("densenet121", CLASSES, train=False)
    with pytest.raises(InputError, match="1 pixels are left where a window of 2 pools"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
