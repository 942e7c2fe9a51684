"""Models of one's own: stock Flax layers, fast and with a head, and the same numbers as without."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax import lax

from jaxleak import IDLG, Adam, InputError, attack, build_model, load_dataset, make_victim
from jaxleak.kernels.outer import Outer
from jaxleak.models.own import adapt_model, slow_layers
from jaxleak.threat.loss import cross_entropy, loss_gradient
from jaxleak.threat.observe import factored_gradient, observe
from tests.fixtures import quick_jit

SHAPE = (16, 16, 1)
CLASSES = 10


class CNN(nn.Module):
    """The convolutional network of Flax's MNIST example."""

    features: tuple[int, ...] = (32, 64)

    @nn.compact
    def __call__(self, x):
        for features in self.features:
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(CLASSES)(x)


class TwinCNN(nnx.Module):
    """The same in NNX."""

    def __init__(self, *, rngs, features=(32, 64)):
        sizes = zip((1, *features), features, strict=False)
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in sizes])
        self.hidden = nnx.Linear(4 * 4 * features[-1], 256, rngs=rngs)
        self.out = nnx.Linear(256, CLASSES, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs:
            x = nnx.avg_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2))
        x = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return self.out(x)


class Mixed(nn.Module):
    """A depthwise, a dilated and a transposed convolution, in `setup`, before a head of its own name."""

    def setup(self):
        self.depthwise = nn.Conv(8, (3, 3), feature_group_count=4, strides=2)
        self.dilated = nn.Conv(6, (3, 3), kernel_dilation=2, padding="CIRCULAR")
        self.up = nn.ConvTranspose(4, (3, 3), strides=(2, 2))
        self.classifier = nn.Sequential([nn.Dense(12), nn.tanh, nn.Dense(CLASSES)])

    def __call__(self, x):
        x = nn.tanh(self.depthwise(jnp.tile(x, (1, 1, 1, 4))))
        x = nn.tanh(self.up(self.dilated(x)))
        return nn.log_softmax(self.classifier(x.reshape(x.shape[0], -1)))


class Normed(nn.Module):
    """BatchNorm and Dropout, with the argument that Flax's examples have."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (2, *SHAPE)), jax.nn.one_hot(jnp.array([3, 7]), CLASSES)


def params_of(model, shape=SHAPE):
    params = quick_jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    return jax.tree.map(lambda leaf: leaf.astype(float), params)


def assert_close(got, wanted, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def everything(model, params, x, target):
    """Logits, the loss's gradient, and for two lanes the image gradient of its squared distance from ones."""

    def objective(x):
        gradient = loss_gradient(model, params, x, target)
        return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(gradient))

    slopes = jax.vmap(jax.grad(objective))(jnp.stack([x, x + 0.1]))
    return model.apply({"params": params}, x), loss_gradient(model, params, x, target), slopes


def assert_equivalent(adapted, model, own, to_params, images):
    """The adapted model with its parameters is the stock one with its own."""
    got = quick_jit(lambda params: everything(adapted, params, *images))(to_params(own))
    logits, gradient, slopes = quick_jit(lambda params: everything(model, params, *images))(own)
    assert_close(got[:2], (logits, to_params(gradient)))
    # Sums of as many as 10,000 products of both signs.
    np.testing.assert_allclose(got[2], slopes, rtol=0, atol=1e-12 * float(jnp.max(jnp.abs(slopes))) * 100)


@pytest.mark.parametrize(
    ("model", "head"), [(CNN((4, 6)), "Dense_1"), (Mixed(), "classifier/layers_2")], ids=["cnn", "mixed"]
)
def test_an_adapted_model_computes_what_the_stock_one_does(model, head, images):
    adapted = adapt_model(model, SHAPE)
    assert "/".join(adapted.head) == head
    own, params = params_of(model), params_of(adapted)
    assert set(params["head"]) == {"kernel", "bias"}
    assert_close(params, adapted.to_params(own), 0)
    assert_close(adapted.to_own(params), own, 0)
    assert_equivalent(adapted, model, own, adapted.to_params, images)


def test_what_the_client_shares_is_observed_without_building_it(images):
    model = CNN((4, 6))
    adapted = adapt_model(model, SHAPE)
    own = params_of(model)
    seen = quick_jit(lambda params: observe(adapted, params, *images))(adapted.to_params(own))

    def loss(params):
        return cross_entropy(jnp.asarray(model.apply({"params": params}, images[0])), images[1])

    wanted = quick_jit(jax.grad(loss))(own)
    outer = {name: isinstance(layer["kernel"], Outer) for name, layer in seen.gradient.items()}
    assert outer == {"Conv_0": False, "Conv_1": False, "Dense_0": True, "head": True}
    assert_close(built(seen.gradient), adapted.to_params(wanted))


class Hidden(nn.Module):
    """A block to be lifted."""

    @nn.compact
    def __call__(self, x):
        return x + nn.tanh(nn.Dense(8)(x))


class Lifted(nn.Module):
    """Layers inside Linen's lifted transformations."""

    lift: Callable

    @nn.compact
    def __call__(self, x):
        x = self.lift(nn.Conv)(2, (3, 3))(x)
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        return nn.Dense(CLASSES)(self.lift(Hidden)()(x))


@pytest.mark.parametrize("lift", [nn.remat, nn.jit])
def test_lifted_layers_are_fast_and_observed(lift, images):
    adapted = adapt_model(Lifted(lift), SHAPE)
    assert slow_layers(adapted, SHAPE) == []
    params = params_of(adapted)
    own = adapted.to_own(params)
    wanted = adapted.to_params(quick_jit(lambda own: loss_gradient(Lifted(lift), own, *images))(own))
    seen = quick_jit(lambda params: factored_gradient(adapted, params, *images))(params)
    outer = [path for path, leaf in flatten_dict(seen).items() if isinstance(leaf, Outer)]
    assert sorted(outer) == [("Dense_0", "kernel"), ("head", "kernel")]
    assert_close(built(seen), wanted)


def built(tree):
    """With outer products multiplied out."""
    return jax.tree.map(
        lambda leaf: leaf.build() if isinstance(leaf, Outer) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Outer),
    )


def renamed_twin(tree):
    """The names of `CNN`'s layers in the tree of its NNX twin."""
    convs = {"0": tree["Conv_0"], "1": tree["Conv_1"]}
    return {"convs": convs, "hidden": tree["Dense_0"], "head": tree["Dense_1"]}


def test_an_nnx_twin_is_the_same_network(images):
    model = CNN((4, 6))
    adapted = adapt_model(partial(TwinCNN, features=(4, 6)), SHAPE)
    assert adapted.head == ("out",)
    assert jax.tree.map(jnp.shape, params_of(adapted)) == jax.tree.map(jnp.shape, renamed_twin(params_of(model)))
    assert_equivalent(adapted, model, params_of(model), renamed_twin, images)
    gradient = jax.eval_shape(lambda p: factored_gradient(adapted, p, *images), params_of(adapted))
    assert isinstance(gradient["head"]["kernel"], Outer)
    assert isinstance(gradient["hidden"]["kernel"], Outer)


def test_nnx_modules_draw_networks_only_where_they_are_made_anew():
    module = TwinCNN(rngs=nnx.Rngs(5), features=(4, 6))
    with pytest.warns(UserWarning, match="same weights"):
        adapted = adapt_model(module, SHAPE)
    drawn = adapted.init(jax.random.key(0), None)["params"]
    np.testing.assert_array_equal(drawn["head"]["kernel"], module.out.kernel[...])
    makes = adapt_model(partial(TwinCNN, features=(4, 6)), SHAPE)
    one, other = (makes.init(jax.random.key(seed), None)["params"]["head"]["kernel"] for seed in (0, 1))
    assert not np.allclose(one, other)


class TwinNormed(nnx.Module):
    """An NNX module with BatchNorm, Dropout and a transposed convolution."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.up = nnx.ConvTranspose(4, 2, (2, 2), strides=(2, 2), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(512, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = self.up(nnx.relu(self.norm(self.conv(x))))
        return self.head(self.drop(x.reshape(x.shape[0], -1)))


def test_nnx_modules_run_in_evaluation_mode(images):
    x, _ = images
    module = TwinNormed(rngs=nnx.Rngs(0))
    adapted = adapt_model(TwinNormed, SHAPE)
    params = adapted.init(jax.random.key(0), x)["params"]
    before = nnx.state(module, nnx.BatchStat)
    copy = nnx.clone(module)
    copy.eval()
    graph, _, rest = nnx.split(copy, nnx.Param, ...)
    own = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(own, params)
    np.testing.assert_allclose(
        adapted.apply({"params": params}, x), nnx.merge(graph, own, rest)(x), rtol=1e-12, atol=1e-12
    )
    assert not module.drop.deterministic
    assert_close(nnx.state(module, nnx.BatchStat), before, 0)


def test_batch_norm_and_dropout_in_evaluation(images):
    """`train` has no default: the model is told that it does not train, and keeps the statistics of a new one."""
    x, _ = images
    model = Normed()
    adapted = adapt_model(model, SHAPE)
    assert adapted.arguments == (("train", False),)
    assert adapted.head == ("head",)
    variables = model.init(jax.random.key(0), x, train=False)
    assert_close(adapted.apply({"params": variables["params"]}, x), model.apply(variables, x, train=False))
    trained = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf + 1, variables["batch_stats"])}
    assert_close(adapted.apply(trained, x), model.apply(trained, x, train=False))


def test_statistics_of_a_stock_batch_norm_are_observed(images):
    """Those of the layer's input, whatever mode the layer is in."""
    x, target = images
    model = Normed()
    adapted = adapt_model(model, SHAPE)
    params = adapted.init(jax.random.key(0), x)["params"]
    _, seen = model.apply(
        model.init(jax.random.key(0), x, train=False),
        x,
        train=False,
        mutable="intermediates",
        capture_intermediates=lambda module, _: isinstance(module, nn.Conv),
    )
    (inputs,) = jax.tree.leaves(seen)
    (moments,) = observe(adapted, params, x, target, statistics=True).statistics.values()
    assert_close(moments.mean, jnp.mean(inputs, axis=(0, 1, 2)))
    assert_close(moments.var, jnp.var(inputs, axis=(0, 1, 2)))


class OwnProducts(nn.Module):
    """Products that the author chose."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (3, 3), conv_general_dilated=lax.conv_general_dilated)(x)
        return nn.Dense(CLASSES, dot_general=lax.dot_general)(x.reshape(x.shape[0], -1))


class Slow(nn.Module):
    """Convolutions that have no fast form here."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(2, (2, 2, 1), name="volume")(x[..., None])[..., 0]
        x = lax.conv_general_dilated_patches(x, (2, 2), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = nn.ConvLocal(2, (2, 2), padding="VALID")(x)
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


def test_layers_that_stay_slow_are_named():
    with pytest.warns(UserWarning, match=r"stay slow: .*volume") as caught:
        adapted = adapt_model(Slow(), (4, 4, 1))
    assert len(caught) == 1
    volume, patches = slow_layers(adapted, (4, 4, 1))
    assert "volume" in volume
    assert "[1, 4, 4, 1, 1] * [2, 2, 1, 1, 2]" in volume
    assert "Slow" in patches
    assert "ConvLocal" not in patches
    assert slow_layers(adapt_model(Mixed(), SHAPE), SHAPE) == []
    with pytest.warns(UserWarning, match="Conv_0"):
        adapt_model(OwnProducts(), SHAPE)


def test_jaxleak_models_are_left_alone():
    model = build_model("lenet", 10)
    assert adapt_model(model, (16, 16, 3)) is model


def test_equal_models_are_equal_and_read_the_same_in_every_process():
    one, other = (adapt_model(CNN((4, 6)), SHAPE) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != adapt_model(CNN((4, 5)), SHAPE)
    twins = [adapt_model(TwinCNN, SHAPE) for _ in range(2)]
    assert twins[0] == twins[1]
    models = "adapt_model(Normed(), SHAPE), adapt_model(TwinCNN, SHAPE)"
    printed = f"models = [{models}]; print(models, [one.program(SHAPE) for one in models])"
    script = f"import tests.conftest; from tests.test_models_own import *; {printed}"
    elsewhere = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    here = [adapt_model(Normed(), SHAPE), twins[0]]
    assert elsewhere.strip() == f"{here} {[one.program(SHAPE) for one in here]}"
    assert "0x" not in elsewhere


class Headless(nn.Module):
    """Class scores from a convolution."""

    @nn.compact
    def __call__(self, x):
        x = x * nn.sigmoid(nn.Dense(1)(jnp.mean(x, axis=(1, 2), keepdims=True)))
        return jnp.mean(nn.Conv(CLASSES, (1, 1))(x), axis=(1, 2))


class NoLogits(nn.Module):
    """A feature map."""

    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (3, 3))(x)


class NeedsMore(nn.Module):
    """An argument that nobody knows."""

    @nn.compact
    def __call__(self, x, text):
        return nn.Dense(CLASSES)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Headless(), r"end in a dense layer that gives the logits \[1, 10\]; its last dense layer Dense_0 gives"),
        (NoLogits(), r"must give class logits, \[1, k\] for one image; got \[1, 16, 16, 3\]"),
        (NeedsMore(), r"must run on images of shape 16x16x1 as model.apply\(variables, x\).*'text'"),
        (lambda x: x, "must make an NNX module from `rngs` alone"),
        (3, "must be a module of Flax Linen or NNX.*got int"),
    ],
    ids=["no dense head", "no logits", "more arguments", "a function", "a number"],
)
def test_what_cannot_be_attacked_is_refused(model, message):
    with pytest.raises(InputError, match=message) as caught:
        adapt_model(model, SHAPE)
    assert "\n" not in str(caught.value)


def test_the_number_of_classes_has_to_fit():
    with pytest.raises(InputError, match=r"logits, \[1, 7\] for one image; got \[1, 10\]"):
        adapt_model(CNN((3, 4)), SHAPE, num_classes=7)


class TwoHeads(nn.Module):
    """A part named "head" whose last layer is the head."""

    def setup(self):
        self.head_ = nn.Dense(5)
        self.head = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(3)])

    def __call__(self, x):
        return self.head(self.head_(x.reshape(x.shape[0], -1)))


def test_another_part_named_head_makes_room():
    adapted = adapt_model(TwoHeads(), SHAPE)
    own = params_of(TwoHeads())
    params = adapted.to_params(own)
    assert jax.tree.map(jnp.shape, params) == {
        "head": {"kernel": (4, 3), "bias": (3,)},
        "head_": {"layers_0": {"kernel": (5, 4), "bias": (4,)}},
        "head__": {"kernel": (256, 5), "bias": (5,)},
    }
    np.testing.assert_array_equal(params["head"]["kernel"], own["head"]["layers_2"]["kernel"])
    assert_close(adapted.to_own(params), own, 0)


@pytest.mark.parametrize("model", [CNN((3, 4)), partial(TwinCNN, features=(3, 4))], ids=["linen", "nnx"])
def test_an_attack_from_end_to_end(model, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "small.npz", images=rng.integers(0, 256, (10, *SHAPE), np.uint8), labels=np.arange(10))
    victim = make_victim(adapt_model(model, SHAPE), load_dataset(tmp_path / "small.npz"), [1, 2], network="per-trial")
    quick = replace(IDLG, solver=Adam(), iterations=3)
    result = attack(victim, quick, seeds=2, out=tmp_path / "run", quiet=True)
    assert len(result.rows) == 4
    assert all(np.isfinite(row["objective"]) for row in result.rows)
    assert all(row["label_found"] == row["label"] for row in result.rows)
