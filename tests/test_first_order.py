"""Adam with the sign, schedules, decay and noise of the published attacks: torch's loop step for step, and properties.

`test_solvers.py` holds what every solver keeps.
"""

import functools
import itertools
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxleak.errors import InputError
from jaxleak.solvers import Adam, Context
from tests.oracles.require_torch import require_torch

SIZE = 24
RNG = np.random.default_rng(0)
MIX, START = RNG.standard_normal((SIZE, SIZE)), RNG.standard_normal(SIZE)
BOX = (-0.9, 0.8)  # some coordinates come to it within a few steps, others never
KEY = jax.random.key(7)


def bowl(x, xp=jnp):
    """Not convex, with gradients from 1e-3 to 30."""
    scales = xp.asarray(np.logspace(-2, 1, SIZE), dtype=x.dtype)
    mix = xp.asarray(MIX, dtype=x.dtype)
    return (0.5 * scales * x * x).sum() + xp.cos(mix @ x).sum()


def clip(x):
    return jnp.clip(x, *BOX)


def path(solver, *, fun=bowl, start=START, steps=60, horizon=None, project=None, key=None, dtype=float):
    """The candidates [steps + 1, n], and the last state."""
    fun, horizon = jax.value_and_grad(fun), steps if horizon is None else horizon

    def step(state, _):
        state, info = solver.step(fun, state, Context(horizon, project, key))
        return state, info.x

    @jax.jit
    def scan(start):
        state, xs = jax.lax.scan(step, solver.init(fun, start), length=steps)
        return jnp.concatenate([xs, state.x[None]]), state

    return scan(jnp.asarray(start, dtype))


# --- torch ---

PARITY = {
    "plain": (Adam(), 60),
    "inverting gradients": (Adam(sign="hard", schedule="step"), 60),
    "inverting gradients, 61": (Adam(sign="hard", schedule="step"), 61),
    "inverting gradients, 300": (Adam(sign="hard", schedule="step", lr=0.01), 300),
    "modern": (Adam(sign="soft", schedule="cosine", warmup=9), 60),
    "gradinversion": (Adam(schedule="cosine", warmup=5, langevin=0.7), 60),
    "noise before sign": (Adam(sign="hard", schedule="step", langevin=3.0), 60),
    "cpl, 64 pixels": (Adam(lr=0.01, weight_decay=0.01), 60),
    "decay and cosine": (Adam(weight_decay=0.3, schedule="cosine"), 60),
    "decay and step": (Adam(weight_decay=0.3, schedule="step", warmup=4, sign="soft"), 60),
    "soft": (Adam(sign="soft"), 60),
    "warm-up alone": (Adam(warmup=11), 60),
    "warm-up longer than the run": (Adam(warmup=11, schedule="cosine"), 8),
    **{f"milestones of {n}": (Adam(schedule="step"), n) for n in (1, 2, 3, 5, 8)},
}


@pytest.mark.parametrize("boxed", [False, True], ids=["free", "boxed"])
@pytest.mark.parametrize("name", PARITY)
def test_adam_follows_torch(name, boxed):
    torch = require_torch()
    from tests.oracles.torch_first_order import run_adam

    solver, steps = PARITY[name]
    noise = np.stack([jax.random.normal(jax.random.fold_in(KEY, t), (SIZE,)) for t in range(steps)])
    value = functools.partial(bowl, xp=torch)
    wanted = run_adam(value, START, steps=steps, noise=noise, box=BOX if boxed else None, **asdict(solver))
    got, _ = path(solver, steps=steps, project=clip if boxed else None, key=KEY)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)
    assert np.ptp(wanted, axis=0).max() > 9e-5  # it went somewhere


def test_the_published_milestones():
    """Of 4,800 and 24,000 steps: `scheduler.step` follows the update, so step 1,799 is the first at the lower rate."""
    assert Adam.iterations == 4800
    for steps, milestones in ((4800, (1799, 2999, 4203)), (24000, (8998, 14999, 21015))):
        rates = np.asarray(jax.vmap(Adam(schedule="step").rates(steps))(jnp.arange(steps)))
        np.testing.assert_array_equal(np.flatnonzero(np.diff(rates)) + 1, milestones)
        np.testing.assert_allclose(rates[[0, *milestones]], [1e-1, 1e-2, 1e-3, 1e-4], rtol=1e-12)


def test_the_cosine_goes_from_lr_to_0():
    rate = Adam(lr=0.3, schedule="cosine").rates(100)
    np.testing.assert_allclose([rate(t) for t in (0, 50, 100, 200)], [0.3, 0.15, 0, 0], rtol=1e-12, atol=1e-16)


def test_the_warm_up_goes_from_0_to_lr_before_the_schedule():
    warm, cold = Adam(schedule="cosine", warmup=10).rates(100), Adam(schedule="cosine").rates(100)
    np.testing.assert_allclose([warm(t) for t in range(11)], 0.01 * np.arange(11), rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose([warm(11 + t) for t in range(89)], [cold(t) for t in range(89)], rtol=1e-12)


# --- what each setting does ---


def test_the_defaults_are_optax_adam():
    fun, x = jax.grad(bowl), jnp.asarray(START)
    optimizer = optax.adam(0.1)
    state = optimizer.init(x)
    for _ in range(20):
        updates, state = optimizer.update(fun(x), state)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(path(Adam(), steps=20, horizon=0)[0][-1], x, rtol=1e-14)


def test_settings_of_0_and_a_horizon_change_nothing():
    plain, _ = path(Adam(), horizon=0)
    same, _ = path(Adam(warmup=0, weight_decay=0.0, langevin=0.0), horizon=60, key=KEY, project=lambda x: x)
    np.testing.assert_array_equal(plain, same)


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_the_hard_sign_does_not_see_the_objectives_scale(scale):
    solver = Adam(sign="hard", schedule="step")
    one, _ = path(solver, project=clip)
    other, _ = path(solver, fun=lambda x: scale * bowl(x), project=clip)
    np.testing.assert_array_equal(one, other)


def test_the_soft_sign_is_the_gradient_near_0_and_the_sign_far_from_it():
    for limit, scale in ((Adam(), 1e-7), (Adam(sign="hard"), 1e7)):
        got, wanted = (
            path(solver, fun=lambda x, scale=scale: scale * bowl(x), steps=1, horizon=60)[1].optimizer[0].mu
            for solver in (Adam(sign="soft"), limit)
        )
        np.testing.assert_allclose(got, wanted, rtol=1e-9)


@pytest.mark.parametrize("sign", ["none", "hard", "soft"])
def test_a_step_past_the_last_stays_finite(sign):
    """The engine may take it, and throws it away."""
    xs, _ = path(Adam(sign=sign, schedule="cosine"), steps=8, horizon=5)
    assert np.isfinite(xs).all()
    np.testing.assert_array_equal(xs[5], xs[8])


@pytest.mark.parametrize(
    "solver",
    [Adam(lr=0.5), Adam(sign="hard", schedule="step"), Adam(weight_decay=0.5, warmup=3), Adam(langevin=20.0)],
    ids=str,
)
def test_the_box_holds_after_every_step(solver):
    xs, _ = path(solver, project=clip, key=KEY)
    assert not np.all((xs[0] >= BOX[0]) & (xs[0] <= BOX[1]))  # nothing is done to the start
    assert np.all((xs[1:] >= BOX[0]) & (xs[1:] <= BOX[1]))
    assert np.any(xs[1:] == BOX[0])
    assert np.any(xs[1:] == BOX[1])


def test_weight_decay_pulls_to_0_whatever_the_gradient():
    xs, _ = path(Adam(weight_decay=0.5), fun=lambda x: 0 * x.sum(), steps=10)
    np.testing.assert_allclose(xs, START * (1 - 0.1 * 0.5) ** np.arange(11)[:, None], rtol=1e-12)


# --- noise ---


def noises(solver, key, *, steps=3, size=20_000):
    """What is added to the gradient at each step, read off Adam's first moment [steps, size]."""
    moments = [np.zeros(size)]
    state = solver.init(None, jnp.zeros(size))
    for _ in range(steps):
        state, _ = solver.step(lambda x: (jnp.zeros(()), jnp.zeros_like(x)), state, Context(horizon=100, key=key))
        moments.append(np.asarray(state.optimizer[0].mu))
    return np.stack([(new - 0.9 * old) / 0.1 for old, new in itertools.pairwise(moments)])


def test_the_noise_alone_makes_a_solver_random():
    """Restarts from one start then differ, which an audit asks."""
    assert Adam(langevin=0.01).random
    assert not Adam(sign="hard", schedule="step", warmup=3, weight_decay=0.1).random


def test_the_noise_has_the_stated_size():
    solver = Adam(lr=0.3, langevin=0.2, warmup=2)
    for t, noise in enumerate(noises(solver, KEY)):
        size = 0.2 * 0.3 * t / 2
        assert abs(noise.mean()) <= 5 * size / np.sqrt(noise.size)
        assert noise.std() == pytest.approx(size, rel=5 / np.sqrt(2 * noise.size))


def test_the_noise_is_the_keys_and_the_steps():
    solver = Adam(langevin=0.01)
    one, again, other = noises(solver, KEY), noises(solver, KEY), noises(solver, jax.random.key(8))
    np.testing.assert_array_equal(one, again)
    draws = np.concatenate([one, other])
    correlation = np.corrcoef(draws)
    assert np.abs(correlation - np.eye(len(draws))).max() < 5 / np.sqrt(draws.shape[1])


# --- lanes, number types, values ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_vmap_equals_one_at_a_time(dtype):
    solver = Adam(sign="soft", schedule="step", warmup=3, weight_decay=0.1, langevin=0.5)
    starts, keys = jnp.asarray(RNG.standard_normal((3, SIZE)), dtype), jax.random.split(KEY, 3)

    def run(start, key):
        return path(solver, start=start, key=key, steps=20, project=clip, dtype=dtype)

    together, states = jax.vmap(run)(starts, keys)
    assert together.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(states)} == {np.dtype(dtype), np.dtype(np.int32)}
    tolerance = 1e-12 if dtype == np.float64 else 1e-4
    for lane in range(3):
        alone, _ = run(starts[lane], keys[lane])
        np.testing.assert_allclose(together[lane], alone, rtol=tolerance, atol=tolerance)


def test_the_value_is_passed_on_and_the_candidate_is_the_one_evaluated():
    def fun(x):
        return jnp.stack([jnp.sum(x), jnp.nan]), jnp.ones_like(x)

    solver = Adam()
    first = solver.init(fun, jnp.asarray(START))
    second, info = jax.jit(functools.partial(solver.step, fun))(first)
    np.testing.assert_array_equal(info.x, START)
    np.testing.assert_allclose(info.value, [START.sum(), np.nan])
    np.testing.assert_allclose(second.x, START - 0.1, rtol=1e-6)
    assert info.boundary
    assert not info.stalled
    assert info.evaluations == 1
    assert Adam.passes_value_on


# --- mistakes ---


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("lr", 0, "above 0"),
        ("sign", "hrad", "one of hard, none, soft; .* Did you mean 'hard'"),
        ("schedule", "cos", "one of constant, cosine, step"),
        ("warmup", -1, "0 or above"),
        ("warmup", 2.5, "a whole number"),
        ("weight_decay", -0.1, "0 or above"),
        ("weight_decay", float("inf"), "finite"),
        ("langevin", float("nan"), "0 or above"),
    ],
)
def test_bad_fields_are_named(field, value, rule):
    with pytest.raises(InputError, match=f"^`{field}` must be {rule}"):
        Adam(**{field: value})
    with pytest.raises(TypeError, match="positional"):
        Adam(0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("solver", "need"),
    [
        (Adam(schedule="step"), "`schedule` 'step'"),
        (Adam(schedule="cosine", sign="soft"), "`schedule` 'cosine'"),
        (Adam(sign="soft"), "`sign` 'soft'"),
    ],
)
def test_a_missing_horizon_is_named_while_tracing(solver, need):
    with pytest.raises(InputError, match=f"^`horizon` must be above 0, .* for {need}; got 0"):
        path(solver, horizon=0)


def test_a_missing_key_is_named_while_tracing():
    with pytest.raises(InputError, match=r"^`key` must be a random key for `langevin` 0\.01; got None"):
        path(Adam(langevin=0.01))
