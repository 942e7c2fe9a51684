"""The kernels that are not convolutions (those: test_conv.py): equal to what they stand for, lane by lane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import vectors
from jaxleak.attacks import get_attack
from jaxleak.data import load_dataset
from jaxleak.dense import Outer, outer_distance
from jaxleak.distances import squared_l2
from jaxleak.models import LeNet
from jaxleak.objectives import factored_gradient, loss_gradient
from jaxleak.solvers.compact import History, advance, append, direction, empty_history
from jaxleak.trial import Job, Trial
from jaxleak.vectors import pair, products, squared_distance
from jaxleak.victim import draw_params, make_victim

DTYPES = [np.float32, np.float64]


def close(got, wanted, dtype, factor=100):
    """Equal up to rounding, on the scale of the largest element."""
    wanted = np.asarray(wanted)
    scale = max(float(np.max(np.abs(wanted), initial=0)), 1e-30)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=factor * np.finfo(dtype).eps * scale)


def in_two(history, s, y, gradient, accept, gamma):
    history, s_g, y_g = append(history, s, y, gradient, accept)
    return history, direction(history, s_g, y_g, gradient, gamma)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(5, 37), (1, 3), (18, 16)])
def test_advance_is_append_and_direction(dtype, m, n):
    """Filling, full and wrapped histories, refused pairs, lanes in different states."""
    rng = np.random.default_rng(0)
    square = rng.standard_normal((n, n))
    hessian = jnp.asarray(square @ square.T / n + np.eye(n), dtype)

    @jax.jit
    def both(ours, plain, s, accept, gradient, gamma):
        arguments = (s, s @ hessian, gradient, accept, gamma)
        return jax.vmap(advance)(ours, *arguments), jax.vmap(in_two)(plain, *arguments)

    ours = plain = jax.vmap(lambda _: empty_history(m, n, dtype))(jnp.arange(3))
    for _ in range(2 * m + 3):
        s, gradient = (jnp.asarray(rng.standard_normal((3, n)), dtype) for _ in range(2))
        accept, gamma = jnp.asarray(rng.random(3) < 0.8), jnp.asarray(0.5 + rng.random(3), dtype)
        (ours, got), (plain, wanted) = both(ours, plain, s, accept, gradient, gamma)
        close(got, wanted, dtype, 1000)
        for name, a, b in zip(History._fields, ours, plain, strict=True):
            assert a.shape == b.shape, name
            close(a, b, dtype)


def test_a_lane_that_is_not_finite_leaves_the_others_alone():
    history = jax.vmap(lambda _: empty_history(3, 5, float))(jnp.arange(2))
    s = jnp.ones((2, 5)).at[0].set(jnp.nan)
    accept, gamma = jnp.ones(2, bool), jnp.ones(2)
    arguments = (history, s, s, s, accept, gamma)
    _, found = jax.vmap(advance)(*arguments)
    _, alone = jax.vmap(advance)(*jax.tree.map(lambda a: a[1:], arguments))
    assert np.all(np.isnan(found[0]))
    np.testing.assert_array_equal(found[1], alone[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("images", "inputs", "outputs"), [(1, 70, 100), (3, 33, 5), (2, 1, 1), (1, 5, 300)])
def test_outer_distance_and_its_derivatives(dtype, images, inputs, outputs):
    rng = np.random.default_rng(0)
    shapes = (2, images, inputs), (2, images, outputs), (2, inputs, outputs)
    arguments = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]

    def built(left, right, target):
        return jnp.sum(jnp.square(Outer(left, right).build() - target))

    @jax.jit
    def both(*arguments):
        return [jax.vmap(jax.value_and_grad(f, (0, 1, 2)))(*arguments) for f in (outer_distance, built)]

    got, wanted = both(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        close(a, b, dtype)


def test_outer_distance_has_second_derivatives():
    rng = np.random.default_rng(0)
    left, right, target = (jnp.asarray(rng.standard_normal(shape)) for shape in ((1, 6), (1, 4), (6, 4)))
    ours, plain = (
        jax.jit(jax.hessian(f, (0, 1)))(left, right)
        for f in (
            lambda a, b: outer_distance(a, b, target),
            lambda a, b: jnp.sum(jnp.square(Outer(a, b).build() - target)),
        )
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        close(a, b, np.float64)


@pytest.mark.parametrize("images", [1, 3])
def test_a_factored_gradient_is_the_gradient(images):
    model = LeNet(num_classes=7)
    params = draw_params(model, jax.random.key(0), (12, 12, 2))
    x = jax.random.uniform(jax.random.key(1), (images, 12, 12, 2))
    target = jax.nn.softmax(jax.random.normal(jax.random.key(2), (images, 7)))

    @jax.jit
    def both(x):
        factored = factored_gradient(model, params, x, target)
        assert isinstance(factored["head"]["kernel"], Outer)
        plain = loss_gradient(model, params, x, target)
        update = jax.tree.map(jnp.cos, plain)
        built = jax.tree.map(
            lambda leaf: leaf.build() if isinstance(leaf, Outer) else leaf,
            factored,
            is_leaf=lambda leaf: isinstance(leaf, Outer),
        )
        values = [squared_l2(gradient, update) for gradient in (factored, plain)]
        return built, plain, values

    built, plain, values = both(x)
    assert jax.tree.structure(built) == jax.tree.structure(plain)
    for a, b in zip(jax.tree.leaves(built), jax.tree.leaves(plain), strict=True):
        close(a, b, np.float64)
    np.testing.assert_allclose(*values, rtol=1e-12)


def test_without_kernels_the_same(monkeypatch):
    """`JAXLEAK_NATIVE=0`: the objective's value and gradient on LeNet."""
    victim = make_victim("lenet", load_dataset("photos"), [0], network="shared")
    trial = Trial(attack=get_attack("dlg"), victim=victim, threshold=1e-4)
    shared, job = trial.shared(), Job(*np.zeros(4, np.int32))

    def run(shared, job):
        problem = trial.prepare(shared, job)
        return trial.objective(shared, problem)(trial.init(shared, problem, job).record.candidate)

    found = []
    for switch, kernels in (("1", True), ("0", False)):
        monkeypatch.setenv("JAXLEAK_NATIVE", switch)
        lowered = jax.jit(lambda *arguments: run(*arguments)).lower(shared, job)
        assert ("jaxleak_" in lowered.as_text()) is kernels
        found.append(lowered.compile()(shared, job))
    (value, slope), (plain_value, plain_slope) = found
    np.testing.assert_allclose(value, plain_value, rtol=1e-12)
    close(slope, plain_slope, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 7, 16, 37, 64, 3172])
def test_sums_over_vectors(dtype, n):
    rng = np.random.default_rng(n)
    a, b, c = (jnp.asarray(rng.standard_normal((3, n)), dtype) for _ in range(3))
    exact = [np.asarray(value, np.float64) for value in (a, b, c)]
    atol = 1000 * np.finfo(dtype).eps * (1 + n**0.5)
    for ours, plain, count in ((pair, vectors._pair, 3), (products, vectors._products, 2)):
        got, wanted = jax.jit(jax.vmap(ours))(*(a, b, c)[:count]), jax.vmap(plain)(*exact[:count])
        for value, right in zip(got, wanted, strict=True):
            np.testing.assert_allclose(value, right, rtol=0, atol=atol)
    close(jax.jit(jax.vmap(squared_distance))(a, b), np.sum((exact[0] - exact[1]) ** 2, 1), dtype)


def test_sums_over_vectors_pass_on_what_is_not_a_number():
    ones = jnp.ones((2, 40))
    for place in (3, 39):
        broken = ones.at[0, place].set(jnp.nan)
        for find in (pair, vectors._pair):
            for value in jax.vmap(find)(broken, ones, broken)[1:]:
                np.testing.assert_array_equal(jnp.isfinite(value), [False, True])


def test_the_squared_distance_has_derivatives():
    a, b = (jnp.asarray(np.random.default_rng(k).standard_normal((3, 2, 9))) for k in range(2))

    def plain(a, b):
        return jnp.sum(jnp.square(a - b))

    for one in (lambda f: jax.value_and_grad(f, (0, 1)), lambda f: jax.hessian(f, (0, 1))):
        ours, wanted = jax.vmap(one(squared_distance))(a, b), jax.vmap(one(plain))(a, b)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), ours, wanted)
