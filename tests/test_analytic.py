"""Inputs of dense layers from their gradients: exact, whatever their size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.analytic import dense_input, dense_inputs, recover_image
from jaxleak.data import load_dataset
from jaxleak.errors import InputError
from jaxleak.models import MLP, LeNet, build_model
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.network import draw_params
from tests.fixtures import quick_jit


def share(model, image, label: int, seed: int = 0):
    """A fresh network, and the gradient it shares for one image."""
    params = draw_params(model, jax.random.key(seed), image.shape[1:])
    target = jax.nn.one_hot(jnp.array([label]), model.num_classes)
    return params, quick_jit(lambda p: loss_gradient(model, p, image, target))(params)


@pytest.fixture(scope="module")
def photo():
    return jnp.asarray(load_dataset("photos").images([7])[0], float)


# --- one layer ---


def test_dense_input_is_the_ratio_of_gradients():
    """Phong et al.: of each output by itself, all outputs agreeing."""
    x, d = np.random.default_rng(0).normal(size=(2, 9))
    found = dense_input(jnp.outer(x, d), d)
    np.testing.assert_allclose(found, x, rtol=1e-13)
    for ratio in (np.outer(x, d) / d).T:
        np.testing.assert_allclose(found, ratio, rtol=1e-13)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1, 1e160])
@pytest.mark.parametrize("multiple", [1, -0.01])
def test_dense_input_at_any_scale(size, multiple):
    """|d|^2 alone would be 0 or infinite; a difference of weights is a multiple of the gradient."""
    rng = np.random.default_rng(0)
    x, d = rng.normal(size=5), size * rng.normal(size=4)
    np.testing.assert_allclose(dense_input(multiple * np.outer(x, d), multiple * d), x, rtol=1e-12)


def test_dense_input_of_an_update_that_holds_nothing():
    np.testing.assert_array_equal(dense_input(jnp.zeros((3, 2)), jnp.zeros(2)), np.zeros(3))


def test_dense_input_of_several_images_is_a_weighted_mean():
    rng = np.random.default_rng(0)
    x, d = rng.normal(size=(3, 5)), rng.normal(size=(3, 4))
    weights = d @ d.sum(axis=0) / np.square(d.sum(axis=0)).sum()
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(dense_input(jnp.asarray(x.T @ d), d.sum(axis=0)), weights @ x, rtol=1e-10)


# --- whole updates ---


@pytest.mark.parametrize("weight_init", ["uniform", "torch"])
@pytest.mark.parametrize("hidden", [(), (16,), (24, 8, 12)])
def test_image_and_every_layers_input_of_an_mlp(hidden, weight_init, photo):
    model = MLP(num_classes=5, hidden=hidden, weight_init=weight_init)
    params, update = share(model, photo, label=3)
    assert float(jnp.abs(recover_image(update, photo.shape[1:]) - photo).max()) < 1e-10
    inputs = dense_inputs(update)
    assert set(inputs) == set(params) == {*(f"dense{i + 1}" for i in range(len(hidden))), "head"}
    h = photo.reshape(-1)
    for name in [*(f"dense{i + 1}" for i in range(len(hidden))), "head"]:
        np.testing.assert_allclose(inputs[name], h, atol=1e-10, err_msg=name)
        h = jax.nn.sigmoid(h @ params[name]["kernel"] + params[name]["bias"])


def test_the_default_mlp_gives_its_photo_away(photo):
    _, update = share(build_model("mlp", 100), photo, label=42)
    recovered = recover_image(update, photo.shape[1:])
    assert recovered.shape == photo.shape
    assert float(jnp.abs(recovered - photo).max()) < 1e-10
    # Weights after one step of SGD instead of the gradient, and images at once under vmap and jit.
    steps = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.05 * leaf]), update)
    again = jax.jit(jax.vmap(lambda one: recover_image(one, photo.shape[1:])))(steps)
    assert again.shape == (2, *photo.shape)
    assert float(jnp.abs(again - photo).max()) < 1e-10


def test_dense_layers_within_blocks_and_what_is_no_dense_layer():
    x, d = np.random.default_rng(0).normal(size=(2, 3))
    dense = {"kernel": jnp.outer(x, d), "bias": jnp.asarray(d)}
    update = {
        "head": dense,
        "block": {"inner": {"dense1": dense}, "norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)}},
        "conv": {"kernel": jnp.ones((5, 5, 1, 3)), "bias": jnp.ones(3)},
        "plain": {"kernel": jnp.outer(x, d)},
    }
    inputs = dense_inputs(update)
    assert set(inputs) == {"head", "block/inner/dense1"}
    for found in inputs.values():
        np.testing.assert_allclose(found, x, rtol=1e-12)


def refused(update, image_shape=(32, 32, 3)) -> str:
    with pytest.raises(InputError) as caught:
        recover_image(update, image_shape)
    message = str(caught.value)
    start = "analytic recovery needs a model whose first layer is dense, such as mlp; got "
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


def layer(*kernel: int, bias: bool = True):
    tensors = {"kernel": jnp.ones(kernel)}
    return {**tensors, "bias": jnp.ones(kernel[-1])} if bias else tensors


def test_models_whose_first_layer_is_not_dense_are_refused():
    shapes = jax.eval_shape(LeNet(num_classes=4).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    update = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    assert refused(update).startswith("conv1 [5, 5, 3, 12], conv2 [5, 5, 12, 12], conv3 [5, 5, 12, 12], head [768, 4] ")
    # Another size, no bias, another name; and a convolution before layers whose sizes happen to fit.
    assert refused({"dense1": layer(768, 4), "head": layer(4, 2)}).endswith("for 32x32x3 images.")
    assert refused({"dense1": layer(12, 4, bias=False), "head": layer(4, 2)}, (2, 2, 3)) == (
        "dense1 [12, 4] without bias, head [4, 2] for 2x2x3 images."
    )
    assert refused({"fc": layer(12, 4), "head": layer(4, 2)}, (2, 2, 3)).startswith("fc [12, 4], head [4, 2]")
    assert refused({"conv1": layer(5, 5, 3, 12), "dense1": layer(12, 4)}, (2, 2, 3)).startswith("conv1 [5, 5, 3, 12]")
    assert refused({"norm": {"scale": jnp.ones(3)}, "head": layer(12, 4)}, (2, 2, 3)).startswith("head [12, 4], norm")
    assert recover_image({"head": layer(12, 4)}, (2, 2, 3)).shape == (1, 2, 2, 3)
