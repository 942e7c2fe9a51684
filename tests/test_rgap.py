"""The attack rgap: chains that are found and refused, equations with one solution, and images of ReLU networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxleak
from jaxleak.attacks import rgap
from jaxleak.attacks.layer_equations import Equations, least_squares
from jaxleak.attacks.presets import RGAP
from jaxleak.models import build_model
from jaxleak.threat.chain import INVERSES, Link, activate, find_chain, slopes
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.network import draw_params

SHAPE = (16, 16, 3)


class Chain(nn.Module):
    """Not of the package: two convolutions without bias, and two dense layers."""

    num_classes: int
    pool: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(12, (5, 5), strides=2, use_bias=False)(x))
        x = nn.tanh(nn.Conv(12, (3, 3), padding="VALID", use_bias=False)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)) if self.pool else x
        x = nn.relu(nn.Dense(24)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


def chain_of(model, shape=SHAPE):
    return find_chain(model, draw_params(model, jax.random.key(0), shape), shape)


def test_chains_are_found():
    lenet = chain_of(build_model("lenet", 10, activation="relu"))
    assert [(link.path, link.activation, link.dense) for link in lenet] == [
        *((("conv1",), "relu", False), (("conv2",), "relu", False), (("conv3",), "relu", False)),
        (("head",), "none", True),
    ]
    assert [link.activation for link in chain_of(Chain(10))] == ["relu", "tanh", "relu", "none"]
    assert [link.activation for link in chain_of(build_model("mlp", 10, activation="softplus"))][:2] == ["softplus"] * 2


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Chain(10, pool=True), "something pools or joins behind Conv_1"),
        (build_model("convnet", 10), "there is more than a known activation behind conv0"),
        (build_model("lenet", 10, activation="gelu"), "there is more than a known activation behind conv1"),
        (build_model("resnet18", 10, width=8), "there is more than a known activation behind conv1"),
    ],
)
def test_others_are_refused_with_the_reason(model, reason):
    with pytest.raises(jaxleak.InputError, match=rf"^rgap needs .*; of this model {reason}\. Use"):
        chain_of(model, (32, 32, 3))


@pytest.mark.parametrize("name", INVERSES)
def test_activations_are_inverted(name):
    z = jnp.linspace(-2, 3, 11)
    a = activate(name, z)
    wanted = jnp.where(z > 0, z, 0) if name == "relu" else z
    np.testing.assert_allclose(INVERSES[name](a), wanted, atol=1e-10)
    step = 1e-6
    np.testing.assert_allclose(
        slopes(name, z + 0.01), (activate(name, z + 0.01 + step) - activate(name, z + 0.01)) / step, atol=1e-5
    )


@pytest.mark.parametrize("fields", [{"activation": "relu", "weight_init": "torch"}, {"activation": "sigmoid"}])
def test_equations_of_a_middle_layer_have_one_solution(fields):
    model, shape = build_model("lenet", 10, **fields), (16, 16, 3)
    params = draw_params(model, jax.random.key(2), shape)
    x = jax.random.uniform(jax.random.key(1), (1, *shape), float)
    update = loss_gradient(model, params, x, jnp.eye(10)[:1])
    links = find_chain(model, params, shape)
    z = [x]
    for link in links[:-1]:
        weights = params[link.path[0]]
        z.append(activate(link.activation, link.linear(weights["kernel"], z[-1]) + weights["bias"]))
    after, kernel = z[3], params["conv3"]["kernel"]
    known, off = rgap._inverted(links[2].activation, after)
    inverted = INVERSES[links[2].activation](after)
    slope = (params["head"]["kernel"] @ update["head"]["bias"]).reshape(after.shape)
    slope = slope * known * slopes(links[2].activation, inverted)
    bias = params["conv3"]["bias"]
    equations = Equations(kernel, slope, known, off, bias, inverted - bias, update["conv3"]["kernel"])
    found, determined = jax.jit(lambda: least_squares(links[2], equations, jax.random.key(0)))()
    assert determined
    np.testing.assert_allclose(found, z[2], atol=1e-9)
    assert equations.missed(links[2], z[2]) < 1e-20
    blind = equations._replace(known=0 * known)
    assert not jax.jit(lambda: least_squares(links[2], blind._replace(slope=0 * slope), jax.random.key(0)))()[1]


def test_units_whose_outputs_rounding_hides_are_found_by_the_gradient_of_the_bias():
    slope = jax.random.normal(jax.random.key(0), (1, 8, 8, 5), float)
    true = jax.random.bernoulli(jax.random.key(1), 0.4, slope.shape).astype(float)
    bias = jnp.sum(true * slope, axis=(0, 1, 2))
    hidden = true
    for channel in (0, 3):
        row, column = jnp.argwhere(true[0, ..., channel])[2]
        hidden = hidden.at[0, row, column, channel].set(0)
    assert jnp.sum(hidden) == jnp.sum(true) - 2
    known, off = rgap._switched_on(slope, hidden, 1 - hidden, bias)
    np.testing.assert_array_equal(known, true)
    np.testing.assert_array_equal(off, 1 - true)
    same, _ = rgap._switched_on(slope, hidden, 1 - hidden, bias + 10.0)  # no slope is that large
    np.testing.assert_array_equal(same, hidden)


@pytest.mark.slow
def test_inputs_of_at_least_0_are_found_where_the_equations_have_many_solutions():
    """Half of the outputs are known, and no gradient."""
    layer = Link(("conv",), nn.Conv(4, (3, 3), padding="VALID", use_bias=False), "relu", (1, 8, 8, 3))
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 4), float)
    u = jax.random.uniform(jax.random.key(1), layer.shape, float)
    sparse = u * jax.random.bernoulli(jax.random.key(2), 0.15, u.shape)
    known = jnp.ones((1, 6, 6, 4))

    def solved(inputs, nonnegative):
        products = layer.linear(kernel, inputs)
        nothing = jnp.zeros_like(kernel)
        equations = Equations(kernel, 0 * products, known, 1 - known, jnp.zeros(4), products, nothing)
        return jax.jit(lambda: least_squares(layer, equations, jax.random.key(3), nonnegative=nonnegative))()

    assert known.size < u.size
    found, one = solved(sparse, nonnegative=True)
    assert one
    np.testing.assert_allclose(found, sparse, atol=1e-8)
    assert not solved(sparse, nonnegative=False)[1]
    assert not solved(u, nonnegative=True)[1]


@pytest.mark.parametrize("fields", [{"activation": "relu", "weight_init": "torch"}])
def test_an_image_of_a_relu_network_comes_back(fields):
    """Behind ReLUs the solvers end at some 19 dB (experiments/relu)."""
    data = jaxleak.load_dataset("photos")
    victim = jaxleak.make_victim("lenet", data, [1], fields=fields, network="shared")
    found = jaxleak.run_sweep(jaxleak.Sweep(victim=victim, attacks=(RGAP,), seeds=1, snapshots=()))
    assert found.rows[0]["psnr"] > 28
    assert found.rows[0]["relative_objective"] < 1e-8
    assert found.rows[0]["label_correct"]


@pytest.mark.slow
@pytest.mark.parametrize("model", [Chain(10), build_model("mlp", 10, activation="relu", weight_init="torch")])
def test_a_chain_of_ones_own(model):
    data = jaxleak.load_dataset("photos")
    victim = jaxleak.make_victim(model.clone(num_classes=data.num_classes), data, [1], network="shared")
    found = jaxleak.run_sweep(jaxleak.Sweep(victim=victim, attacks=(RGAP,), seeds=1, snapshots=()))
    assert found.rows[0]["psnr"] > 25


def test_one_gradient_of_one_image():
    data = jaxleak.load_dataset("photos")
    victim = jaxleak.make_victim("lenet", data, [0, 1], batch=2)
    with pytest.raises(jaxleak.InputError, match=r"^`attack` rgap reads one image from one gradient"):
        jaxleak.Sweep(victim=victim, attacks=(RGAP,), seeds=1)
