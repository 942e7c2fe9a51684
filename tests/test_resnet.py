"""The ResNet family against torch: values, shared gradients, the attack's gradient, parameter counts, weights."""

import importlib
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import one_hot

from jaxleak.attacks.distances import squared_l2
from jaxleak.errors import InputError
from jaxleak.models import ResNet, ResNet18, ResNet50, build_model, load_variables, load_weights, save_weights
from jaxleak.models.resnet import BasicBlock, Bottleneck
from jaxleak.models.weights import from_torch, to_torch, variables_from_torch
from jaxleak.threat.loss import cross_entropy
from tests.fixtures import quick_jit
from tests.oracles.parity import load, relative_error, some_variables
from tests.oracles.require_torch import require_torch

CLASSES = 3


# --- the networks against torch ---


class Case(NamedTuple):
    model: ResNet
    image_shape: tuple[int, int, int]
    batch: int
    torch_activation: str


CASES = {
    "basic blocks, cifar stem": Case(ResNet(CLASSES, (2, 1), BasicBlock, width=3), (8, 9, 3), 1, "sigmoid"),
    "bottlenecks, imagenet stem": Case(
        ResNet(CLASSES, (2, 1), Bottleneck, width=2, stem="imagenet", activation=nn.softplus),
        (33, 32, 3), 2, "softplus",
    ),
    "eval mode": Case(
        ResNet(CLASSES, (1, 1), BasicBlock, width=3, activation=nn.tanh, train=False), (8, 9, 3), 2, "tanh"
    ),
    "group norm": Case(
        ResNet(CLASSES, (1,), Bottleneck, width=4, norm="group", groups=2, activation=nn.relu), (8, 7, 3), 1, "relu"
    ),
    # Whole networks, which take longer to compile.
    "resnet18": Case(ResNet18(num_classes=CLASSES, width=2), (16, 17, 3), 1, "sigmoid"),
    "resnet18, imagenet stem": Case(ResNet18(num_classes=CLASSES, width=2, stem="imagenet"), (64, 33, 3), 1, "sigmoid"),
    "resnet18, eval mode": Case(ResNet18(num_classes=CLASSES, width=2, train=False), (16, 17, 3), 1, "sigmoid"),
    "resnet50": Case(ResNet50(num_classes=CLASSES, width=2), (16, 17, 3), 1, "sigmoid"),
}  # fmt: skip


def evaluate(model, variables, labels, update, x):
    """Logits, loss gradient, matching objective and its gradient, all at `x`.

    Each tensor's error counts relative to its norm in the update, so that no layer is too small to be tested.
    """

    def loss(params, x):
        logits = model.apply({**variables, "params": params}, x)
        return cross_entropy(logits, labels), logits

    def objective(x):
        gradient, logits = jax.grad(loss, has_aux=True)(variables["params"], x)
        scaled = [jax.tree.map(lambda g, u: g / jnp.linalg.norm(u), tree, update) for tree in (gradient, update)]
        return squared_l2(*scaled), (gradient, logits)

    (value, (gradient, logits)), slope = jax.value_and_grad(objective, has_aux=True)(x)
    return logits, gradient, value, slope


@pytest.mark.torch
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name.startswith("resnet") else []) for name in CASES]
)
def test_logits_update_and_attack_gradient_equal_torch(name):
    torch = require_torch()
    names = ("jaxleak.bench.networks.resnet", "tests.oracles.torch_lenet")
    oracle, lenet = map(importlib.import_module, names)
    model, shape, batch, torch_activation = CASES[name]
    rng = np.random.default_rng(1)
    variables = some_variables(model, shape)
    private, start = rng.uniform(size=(2, batch, *shape))
    labels = rng.integers(CLASSES, size=batch)

    run = quick_jit(partial(evaluate, model))
    target = one_hot(labels, CLASSES)
    logits, update, _, _ = run(variables, target, variables["params"], private)
    _, _, value, slope = run(variables, target, update, start)

    groups = model.groups if model.norm == "group" else None
    net = oracle.ResNet(
        CLASSES, model.stage_sizes, model.block is Bottleneck, model.width, model.stem,
        getattr(torch.nn.functional, torch_activation), groups,
    )  # fmt: skip
    state = to_torch(model, variables["params"], shape, variables.get("batch_stats"))
    net = load(net, state).train(model.train)
    image, candidate = (torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))) for x in (private, start))
    label = torch.from_numpy(labels)
    wanted = dict(zip(dict(net.named_parameters()), lenet.dlg_gradient(net, image, label), strict=True))
    gradient = lenet.parameter_gradient(net, candidate.requires_grad_(), label, create_graph=True)
    errors = [(g - u) / u.norm() for g, u in zip(gradient, wanted.values(), strict=True)]
    wanted_value = torch.stack([(error**2).sum() for error in errors]).sum()
    (wanted_slope,) = torch.autograd.grad(wanted_value, candidate)

    assert relative_error(logits, net(image).detach().numpy()) < 1e-10
    shared = to_torch(model, update, shape)
    assert set(shared) == set(wanted)
    for tensor, tensor_gradient in wanted.items():
        assert relative_error(shared[tensor], tensor_gradient.numpy()) < 1e-8, tensor
    assert float(value) == pytest.approx(wanted_value.item(), rel=1e-8)
    assert relative_error(slope, wanted_slope.numpy().transpose(0, 2, 3, 1)) < 1e-8


def test_trials_at_once_equal_a_loop():
    """The objective and its gradient, with one network for all trials and with one each."""
    shape, trials = (16, 16, 3), 2
    model = ResNet(CLASSES, (1,), BasicBlock, width=2, stem="imagenet")
    rng = np.random.default_rng(0)
    networks = [some_variables(model, shape, seed) for seed in range(trials)]
    updates = [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), network["params"]) for network in networks]
    start = rng.uniform(size=(trials, 1, *shape))
    labels = one_hot(rng.integers(CLASSES, size=(trials, 1)), CLASSES)

    def stacked(trees):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

    def attack(*arguments):
        return evaluate(model, *arguments)[2:]

    one = quick_jit(attack)
    for axis, variables, each in ((None, networks[0], networks[:1] * trials), (0, stacked(networks), networks)):
        many = quick_jit(jax.vmap(attack, (axis, 0, 0, 0)))
        values, slopes = many(variables, labels, stacked(updates), start)
        for trial, arguments in enumerate(zip(each, labels, updates, start, strict=True)):
            value, slope = one(*arguments)
            assert float(values[trial]) == pytest.approx(float(value), rel=1e-10)
            assert relative_error(slopes[trial], slope) < 1e-10


# --- size, initialisation, mistakes ---


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_parameter_count_is_torchvisions(name, parameters):
    model = build_model(name, 1000, stem="imagenet")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_initialisations():
    def drawn(**fields):
        model = ResNet(CLASSES, (1,), BasicBlock, width=16, **fields)
        return quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]

    uniform, torchs = drawn(weight_init="uniform", norm="group", groups=4), drawn(weight_init="torch")
    for leaf in jax.tree.leaves(uniform):
        assert np.abs(leaf).max() <= 0.5
        assert np.unique(leaf).size == leaf.size
    plain_norms = drawn(weight_init="uniform-weights")
    assert np.all(plain_norms["bn1"]["scale"] == 1)
    assert np.all(plain_norms["bn1"]["bias"] == 0)
    assert 0.49 < np.abs(plain_norms["conv1"]["kernel"]).max() <= 0.5
    assert 0.45 < np.abs(plain_norms["head"]["kernel"]).max() <= 0.5
    kernel = torchs["layer1.0"]["conv2"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 16)), rel=5 / np.sqrt(2 * kernel.size))
    assert np.all(torchs["layer1.0"]["bn2"]["scale"] == 1)  # the last of the block too
    assert np.all(torchs["layer1.0"]["bn2"]["bias"] == 0)
    head = np.concatenate([np.ravel(torchs["head"][name]) for name in ("kernel", "bias")])
    assert 0.2 < np.abs(head).max() <= 0.25  # 1 / sqrt(16)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"stem": "cifar10"}, "`stem` must be one of cifar, imagenet; got 'cifar10'. Did you mean 'cifar'?"),
        ({"norm": "layer"}, "`norm` must be one of batch, group"),
        ({"weight_init": "kaiming"}, "`weight_init` must be one of flax, torch, uniform, uniform-weights"),
        ({"norm": "group", "width": 8}, "`groups` must divide the channels of every norm; got 32 groups for 8."),
        ({"width": 0}, "`width` must be above 0"),
        ({"widht": 8}, "`field` must be one of .*got 'widht'. Did you mean 'width'?"),
    ],
)
def test_a_wrong_field_is_named(fields, complaint):
    with pytest.raises(InputError, match=complaint.replace("?", r"\?")):
        build_model("resnet18", CLASSES, **fields)


def test_batch_norm_refuses_a_single_value_per_channel():
    model = build_model("resnet18", CLASSES, width=2, stem="imagenet")
    with pytest.raises(InputError, match=r"^`train` BatchNorm needs more than one value .* \[1, 1, 1, 16\]"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_eval_mode_without_statistics_has_those_of_a_new_network():
    model = build_model("resnet18", CLASSES, width=2, train=False)
    variables = some_variables(model, (8, 8, 3))
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    fresh = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, path[-1].key == "var"), variables["batch_stats"]
    )
    wanted = model.apply({"params": variables["params"], "batch_stats": fresh}, x)
    np.testing.assert_array_equal(model.apply({"params": variables["params"]}, x), wanted)


def test_images_may_be_normalised_by_the_network():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    plain = build_model("resnet18", CLASSES, width=2, train=False)
    variables = some_variables(plain, (8, 8, 3))
    x = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    got = plain.clone(mean=mean, std=std).apply(variables, x)
    wanted = plain.apply(variables, (x - np.array(mean)) / np.array(std))
    assert relative_error(got, wanted) < 1e-9


# --- weights in and out ---

SHAPE = (16, 16, 3)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_have_torchs_names_and_come_back(name, tmp_path):
    require_torch()
    oracle = importlib.import_module("jaxleak.bench.networks.resnet")
    model = build_model(name, CLASSES, width=2, train=False)
    net = oracle.ResNet(CLASSES, model.stage_sizes, model.block is Bottleneck, 2, "cifar", abs, None)
    state = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    variables = variables_from_torch(model, state, SHAPE)
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, variables["params"], SHAPE, variables["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, load_variables(path, model, SHAPE), variables)
    assert state.keys() - to_torch(model, **variables, image_shape=SHAPE).keys() == {
        key for key in state if "num_batches_tracked" in key
    }
    # In train mode the statistics are read past.
    trained = model.clone(train=True)
    jax.tree.map(np.testing.assert_array_equal, load_weights(path, trained, SHAPE), variables["params"])


def test_a_file_without_statistics_serves_train_mode_only(tmp_path):
    model = build_model("resnet18", CLASSES, width=2)
    params = some_variables(model, SHAPE)["params"]
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, params, SHAPE)
    assert jax.tree.structure(load_weights(path, model, SHAPE)) == jax.tree.structure(params)
    with pytest.raises(InputError, match=r"missing .*running_mean.*and \d+ more\. Save all of state_dict"):
        load_variables(path, model.clone(train=False), SHAPE)


def test_statistics_are_not_dropped_unsaid():
    model = build_model("resnet18", CLASSES, width=2, train=False)
    state = to_torch(model, **some_variables(model, SHAPE), image_shape=SHAPE)
    with pytest.raises(InputError, match="read them with `load_variables`"):
        from_torch(model, state, SHAPE)
    grouped = build_model("resnet18", CLASSES, width=2, norm="group", groups=2)
    with pytest.raises(InputError, match=r"unknown bn1\.running_mean"):
        from_torch(grouped, state, SHAPE)
