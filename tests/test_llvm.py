"""The kernels that are not convolutions (those: test_conv.py): equal to what they stand for, lane by lane."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.attacks.distances import squared_l2
from jaxleak.attacks.presets import get_attack
from jaxleak.attacks.trial import Job, Trial
from jaxleak.data import load_dataset
from jaxleak.kernels import vectors
from jaxleak.kernels.llvm import primitive
from jaxleak.kernels.llvm.available import available, misfit
from jaxleak.kernels.norm import standardised
from jaxleak.kernels.outer import Outer, outer_distance
from jaxleak.kernels.vectors import pair, products, squared_distance
from jaxleak.models import LeNet
from jaxleak.solvers.compact import advance, append, direction, dropped, empty_history
from jaxleak.threat.from_dataset import make_victim
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.network import draw_params
from jaxleak.threat.observe import factored_gradient
from tests.fixtures import quick_jit

pytestmark = pytest.mark.usefixtures("kernels_as_users_run_them")
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
    """Filling, full, wrapped and dropped histories, refused pairs, lanes in different states."""
    rng = np.random.default_rng(0)
    square = rng.standard_normal((n, n))
    hessian = jnp.asarray(square @ square.T / n + np.eye(n), dtype)

    @quick_jit
    def both(ours, plain, s, accept, gradient, gamma):
        arguments = (s, s @ hessian, gradient, accept, gamma)
        return jax.vmap(advance)(ours, *arguments), jax.vmap(in_two)(plain, *arguments)

    ours = plain = jax.vmap(lambda _: empty_history(m, n, dtype))(jnp.arange(3))
    for step in range(3 * m + 3):
        if step == 2 * m:  # as the solver drops what misleads it: nothing that was there may be left
            lane = jnp.arange(3) == 1
            ours, plain = (dropped(one, lane) for one in (ours, plain))
            nothing = {
                name: jnp.where(lane[:, None, None], np.nan, getattr(plain, name)) for name in ("triangle", "yy")
            }
            plain = plain._replace(**nothing)
        s, gradient = (jnp.asarray(rng.standard_normal((3, n)), dtype) for _ in range(2))
        accept, gamma = jnp.asarray(rng.random(3) < 0.8), jnp.asarray(0.5 + rng.random(3), dtype)
        (ours, got), (plain, wanted) = both(ours, plain, s, accept, gradient, gamma)
        close(got, wanted, dtype, 1000)
        for name in ("pairs", "start", "count"):
            close(getattr(ours, name), getattr(plain, name), dtype)
        for lane in range(3):  # the kernel's matrices are oldest first; XLA's by slot, and the inverse of R
            slots = (int(plain.start[lane]) + np.arange(m)) % m
            inverse, yy = (np.asarray(matrix[lane])[np.ix_(slots, slots)] for matrix in (plain.triangle, plain.yy))
            held = int(plain.count[lane])
            close(np.asarray(ours.yy[lane])[:held, :held], yy[:held, :held], dtype)
            product = np.triu(np.asarray(ours.triangle[lane]))[:held, :held] @ inverse[:held, :held]
            np.testing.assert_allclose(product, np.eye(held), atol=1e5 * np.finfo(dtype).eps)


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

    @quick_jit
    def both(*arguments):
        return [jax.vmap(jax.value_and_grad(f, (0, 1, 2)))(*arguments) for f in (outer_distance, built)]

    got, wanted = both(*arguments)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        close(a, b, dtype)


def test_outer_distance_has_second_derivatives():
    rng = np.random.default_rng(0)
    left, right, target = (jnp.asarray(rng.standard_normal(shape)) for shape in ((1, 6), (1, 4), (6, 4)))
    ours, plain = (
        quick_jit(jax.hessian(f, (0, 1)))(left, right)
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

    @quick_jit
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
        return trial.attacker.objective(shared, problem)(trial.init(shared, problem, job).record.candidate)

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
        got, wanted = quick_jit(jax.vmap(ours))(*(a, b, c)[:count]), jax.vmap(plain)(*exact[:count])
        for value, right in zip(got, wanted, strict=True):
            np.testing.assert_allclose(value, right, rtol=100 * np.finfo(dtype).eps, atol=atol)
    close(quick_jit(jax.vmap(squared_distance))(a, b), np.sum((exact[0] - exact[1]) ** 2, 1), dtype)


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


def plain_norm(x, epsilon):
    axes = tuple(range(x.ndim - 1))
    return (x - jnp.mean(x, axes)) * jax.lax.rsqrt(jnp.var(x, axes) + epsilon)


def third_derivative(norm):
    """The value and three derivatives, each along another direction."""

    def of(x, *along):
        functions = [lambda x: norm(x, 1e-3)]
        for a in along:
            scalar = lambda x, f=functions[-1], a=a: jnp.sum(jnp.sin(f(x)) * a)  # noqa: E731
            functions.append(jax.grad(scalar))
        return [f(x) for f in functions]

    return of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 5, 7), (1, 9, 9, 70), (3, 1, 4, 16), (130, 150), (1, 65, 1)])
def test_norms_and_their_derivatives(dtype, shape):
    """More channels than vectors, more positions than blocks, and their rests; the mean is not small beside x."""
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, (3, *shape), dtype) + 0.5 for key in keys]
    got, wanted = (quick_jit(jax.vmap(third_derivative(norm)))(*arrays) for norm in (standardised, plain_norm))
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        close(a, b, dtype)


def test_norms_differentiate_forwards_backwards_and_by_what_lanes_share():
    x, w = (jax.random.normal(jax.random.key(n), (3, 2, 4, 4, 5), float) for n in range(2))

    def second(norm):
        def reached(x, w):
            return jnp.sum(jnp.square(jax.grad(lambda w: jnp.sum(norm(x, 1e-5) * w * jnp.cos(norm(w, 1e-5))))(w)))

        mixed = jax.jacfwd(lambda x: jax.grad(reached)(x, w[0, 0]).ravel()[:4])
        return quick_jit(
            lambda x, w: (jax.vmap(jax.grad(reached, (0, 1)), (0, None))(x, w[0]), jax.vmap(mixed)(x[:, 0]))
        )(x, w)

    jax.tree.map(lambda a, b: close(a, b, np.float64, 1000), second(standardised), second(plain_norm))


def test_norms_without_kernels(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 5), float)
    ours = third_derivative(standardised)(x, x, x, x)
    monkeypatch.setenv("JAXLEAK_NATIVE", "0")
    jax.tree.map(lambda a, b: close(a, b, np.float64), ours, third_derivative(standardised)(x, x, x, x))
    # What XLA computes where llvmlite does not work.
    monkeypatch.undo()
    monkeypatch.setattr(primitive, "available", lambda: False)
    again = jax.jit(lambda *a: third_derivative(standardised)(*a))(x, x, x, x)
    jax.tree.map(lambda a, b: close(a, b, np.float64), ours, again)


# --- whether they can be called at all ---

HEADER = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()
CHANGES = {
    "another major version": (r"(#define XLA_FFI_API_MAJOR) \d+", r"\1 1"),
    "too old": (r"(#define XLA_FFI_API_MINOR) \d+", r"\1 1"),
    "no version": (r"#define XLA_FFI_API_M.*", ""),
    "a field before the arguments": (r"(XLA_FFI_ExecutionStage stage;)", r"void* new_field; \1"),
    "a longer list of arguments": (r"(void\*\* args; )", r"\1 void* more;"),
    "buffers of another order": (r"(XLA_FFI_DataType dtype;)\s*(void\* data;)", r"\2 \1"),
    "longer extensions": (r"(size_t struct_size;\s*XLA_FFI_\w+_Type type;)", r"\1 void* more;"),
    "no metadata": (r"struct XLA_FFI_Metadata \{", "struct XLA_FFI_Traits {"),
}


def test_the_installed_jaxlib_can_call_them():
    assert misfit(HEADER) is None
    assert available()


@pytest.mark.parametrize("change", CHANGES)
def test_an_interface_that_does_not_fit_is_recognised(change):
    found, instead = CHANGES[change]
    header, count = re.subn(found, instead, HEADER)
    assert count > 0
    assert misfit(header) is not None


def test_fields_behind_those_that_are_read_may_be_added():
    header, count = re.subn(r"(int64_t\* dims;)", r"\1 void* more;", HEADER)
    assert count > 0
    assert misfit(header) is None


WITHOUT = """
import sys, warnings
import jax, jax.numpy as jnp, numpy as np
{broken}
from jaxleak.kernels import vectors
from jaxleak.kernels.conv import fast_conv
import flax.linen as nn

x = jnp.linspace(0, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
ours, stock = (nn.Conv(4, (3, 3), **given) for given in ({{"conv_general_dilated": fast_conv}}, {{}}))
params = stock.init(jax.random.key(0), x)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loss = lambda conv: jax.jit(jax.grad(lambda p: jnp.sum(conv.apply(p, x) ** 2)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), loss(ours), loss(stock))
    value = jax.jit(jax.vmap(vectors.squared_distance))(x[..., 0], x[..., 1])
np.testing.assert_allclose(value, np.sum((x[..., 0] - x[..., 1]) ** 2, (1, 2)), rtol=1e-4)
told = [str(one.message) for one in caught if "kernels" in str(one.message)]
assert len(told) == 1, told
assert "llvmlite.ir" not in sys.modules
print(told[0])
"""


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("sys.modules['llvmlite'] = None", "llvmlite does not work here"),
        (
            "from jaxleak.kernels.llvm import available\n"
            "available.compile_nothing = lambda: None\navailable.OLDEST = (0, 999)",
            "need version 0.999 of XLA's interface",
        ),
    ],
    ids=["no llvmlite", "another interface"],
)
def test_without_kernels_xla_computes_the_same_and_one_line_says_so(broken, told):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(broken=broken)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert told in done.stdout
