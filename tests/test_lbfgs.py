"""`LBFGS`: descent, the answers of scipy, independence of the objective's scale, recovery; the battery has the rest."""

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from jaxleak.errors import InputError
from jaxleak.solvers import LBFGS
from jaxleak.solvers.compact import advance, append, direction, empty_history
from tests.fixtures import quick_jit
from tests.oracles import numpy_armijo


def rosenbrock(x):
    return jnp.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def powell_singular(x):
    a, b, c, d = x
    return jnp.array([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


def wood(x):
    a, b, c, d = x
    return jnp.array([10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])


def helical_valley(x):
    a, b, c = x
    turn = jnp.arctan2(b, a) / (2 * jnp.pi)
    return jnp.array([10 * (c - 10 * turn), 10 * (jnp.sqrt(a**2 + b**2) - 1), c])


def beale(x):
    return jnp.array([1.5, 2.25, 2.625]) - x[0] * (1 - x[1] ** jnp.array([1, 2, 3]))


# More, Garbow & Hillstrom 1981, with their starts; all have residual zero.
PROBLEMS: dict[str, Any] = {
    "rosenbrock": (rosenbrock, [-1.2, 1.0]),
    "powell singular": (powell_singular, [3.0, -1.0, 0.0, 1.0]),
    "wood": (wood, [-3.0, -1.0, -3.0, -1.0]),
    "helical valley": (helical_valley, [-1.0, 0.0, 0.0]),
    "beale": (beale, [1.0, 1.0]),
}


def squares(residuals, scale=1.0):
    return jax.value_and_grad(lambda x: scale * jnp.sum(jnp.square(residuals(x))))


def solve(fun, start, steps, solver=LBFGS(max_step=1.0)):  # noqa: B008
    """All states and infos of so many steps."""

    def scan(start):
        def one(state, _):
            state, info = solver.step(fun, state)
            return state, (state, info)

        return jax.lax.scan(one, solver.init(fun, start), length=steps)[1]

    return quick_jit(scan)(jnp.asarray(start))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_standard_problems_have_scipys_answers(name):
    residuals, start = PROBLEMS[name]
    wanted = least_squares(residuals, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, method="lm")
    # How long Wood's plateau holds is decided by rounding: 129 to 858 evaluations from starts 1e-13 apart.
    _, infos = solve(squares(residuals), start, 2000)
    assert infos.value[-1] < 1e-12
    # Powell's Jacobian is singular at the solution: x follows only as the fourth root of the objective.
    np.testing.assert_allclose(infos.x[-1], wanted.x, atol=1e-2 if name == "powell singular" else 1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_reported_only_goes_down(name):
    residuals, start = PROBLEMS[name]
    states, infos = solve(squares(residuals), start, 200)
    moved = np.any(np.diff(infos.x, axis=0) != 0, axis=1)
    change = np.diff(infos.value)
    assert np.all(change[moved] < 0)
    assert np.all(change[~moved] == 0)
    assert 0 < np.count_nonzero(~moved[:40]) < 40  # some are rejected, most are not
    assert np.all(states.slope[infos.value > 1e-20] < 0)
    length = np.linalg.norm(states.x - states.base, axis=1) / np.sqrt(len(start))
    assert np.max(length) <= 1.0 + 1e-12


@pytest.mark.parametrize("scale", [2.0**-27, 2.0**27])
@pytest.mark.parametrize("name", ["rosenbrock", "wood"])
def test_the_path_does_not_depend_on_the_objectives_scale(name, scale):
    """Powers of two, nearly 1e-8 and 1e8: products are rounded alike, so the paths are equal almost in every bit."""
    residuals, start = PROBLEMS[name]
    _, plain = solve(squares(residuals), start, 150)
    _, scaled = solve(squares(residuals, scale), start, 150)
    np.testing.assert_allclose(scaled.x, plain.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(scaled.stalled, plain.stalled)


@pytest.mark.parametrize("beyond", [(np.nan, np.nan), (-1.0, np.nan), (-np.inf, 1.0)], ids=["both", "slope", "value"])
def test_what_is_not_finite_is_rejected(beyond):
    """sum (log x)^2, beyond whose domain the value, the gradient or both are not finite."""

    def fun(x):
        found = jax.value_and_grad(lambda x: jnp.sum(jnp.square(jnp.log(x))))(x)
        return tuple(jnp.where(jnp.any(x <= 0), other, own) for own, other in zip(found, beyond, strict=True))

    states, infos = solve(fun, [6.0, 0.3, 9.0], 80, LBFGS(max_step=100.0))
    assert np.any(np.any(np.asarray(states.x) <= 0, axis=1))  # it was tried
    assert np.all(np.isfinite(infos.value))
    assert np.all(np.asarray(infos.x) > 0)
    assert np.all(np.diff(infos.value) <= 0)
    np.testing.assert_allclose(infos.x[-1], 1.0, atol=1e-6)


def stairs(x):
    """sum x^2, lifted by 1 in every other strip of width 1/3: it jumps up on the way down, however short a step."""
    return jax.value_and_grad(lambda x: jnp.sum(jnp.square(x)) + jnp.sum(jnp.floor(3 * x) % 2))(x)


def test_jumps_of_the_objective_are_climbed(monkeypatch):
    start, solver = [2.03, -1.72, 1.41, 0.93], LBFGS(max_step=0.05)
    states, infos = solve(stairs, start, 300, solver)
    assert infos.value[-1] < 1e-12
    assert np.any(np.diff(states.value) > 0)  # it went up
    assert np.all(np.diff(infos.value) <= 0)  # and reported the lowest
    np.testing.assert_allclose(infos.value, jax.vmap(lambda x: stairs(x)[0])(infos.x))
    monkeypatch.setattr("jaxleak.solvers.lbfgs.HIGHEST", 0.0)
    _, without = solve(stairs, start, 300, solver)
    assert without.value[-1] > 1


def test_a_solver_that_finds_nothing_lower_stalls():
    """A gradient that promises what the objective does not hold: fifty steps, each after six candidates."""
    states, infos = solve(lambda x: (jnp.ones(()), jnp.ones_like(x)), [1.0, 2.0], 400)
    assert int(np.argmax(infos.stalled)) == 300
    np.testing.assert_array_equal(infos.x, np.broadcast_to(infos.x[0], infos.x.shape))  # the lowest is the first
    assert states.climbs[300] == 50


def test_a_solver_whose_sixth_candidate_is_rounded_away_does_not_climb():
    states, infos = solve(lambda x: (jnp.ones(()), jnp.ones_like(x)), [1e8], 16, LBFGS(max_step=2.4e-7))
    np.testing.assert_array_equal(np.flatnonzero(states.x[:, 0] < 1e8), np.arange(5))
    np.testing.assert_array_equal(states.climbs, 0)
    assert int(np.argmax(infos.stalled)) == 6


def test_a_solver_whose_first_candidate_is_rounded_away_stalls():
    """Though its gain, too, is lost in the rounding of the objective."""
    _, infos = solve(lambda x: (jnp.ones(()), 1e-6 * jnp.ones_like(x)), [1e8], 4, LBFGS(max_step=1e-9))
    np.testing.assert_array_equal(infos.stalled, [False, True, True, True])


def test_a_solver_at_the_very_bottom_stalls():
    _, infos = solve(lambda x: (x @ x / 2, x), [2.0], 4)
    np.testing.assert_array_equal(infos.value, [2.0, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(infos.stalled, [False, False, True, True])


def test_a_start_below_0_is_the_lowest_until_there_is_a_lower_one():
    _, infos = solve(lambda x: (x @ x / 2 - 3, x), [2.0], 3)
    np.testing.assert_array_equal(infos.value, [-1.0, -2.5, -3.0])


def test_a_start_that_is_not_finite_is_reported():
    _, infos = solve(squares(rosenbrock), [np.nan, 1.0], 5)
    assert np.all(np.isnan(infos.value))
    assert not np.any(infos.stalled)


def test_a_lane_does_not_feel_the_others():
    fun = squares(wood)
    starts = jnp.array([[-3.0, -1.0, -3.0, -1.0], [2.0, 0.5, np.inf, 1.0], [0.1, 3.0, -1.0, 2.0]])
    solver = LBFGS(max_step=1.0)

    def scan(start):
        return jax.lax.scan(lambda s, _: solver.step(fun, s), solver.init(fun, start), length=60)[1]

    together = quick_jit(jax.vmap(scan))(starts)
    for lane in (0, 2):
        alone = quick_jit(jax.vmap(scan))(starts[lane : lane + 1])
        np.testing.assert_allclose(together.value[lane], alone.value[0], rtol=1e-6, atol=1e-20)


@pytest.mark.parametrize("length", [1e-10, 1e-3, 10.0])
def test_curvature_is_learned_from_steps_of_any_length(length):
    """Only the angle between the step and the change of the slope decides whether it counts."""
    solver = LBFGS()

    def fun(x):
        return jnp.sum(x**2), 2 * x

    state = solver.init(fun, jnp.zeros(2))
    state, _ = solver.step(fun, state)
    state, _ = solver.step(fun, state._replace(x=state.base + length * jnp.asarray([0.6, 0.8])))
    assert float(state.gamma) == pytest.approx(0.5, rel=1e-9)


def test_an_iteration_is_so_many_evaluations():
    _, infos = solve(squares(wood), [-3.0, -1.0, -3.0, -1.0], 21, LBFGS(inner_steps=6))
    np.testing.assert_array_equal(np.flatnonzero(infos.boundary), [0, 6, 12, 18])
    assert np.all(infos.evaluations == 1)


def test_the_defaults_are_those_of_the_stored_results():
    assert asdict(LBFGS()) == {"history": 100, "history_type": "auto", "max_step": 0.05, "inner_steps": 20}


@pytest.mark.parametrize(
    ("name", "value"), [("max_step", 0), ("history", 0), ("inner_steps", 0), ("history", 1.5), ("inner_steps", 1.5)]
)
def test_settings_must_be_positive_and_counts_whole(name, value):
    with pytest.raises(InputError, match=f"`{name}`"):
        LBFGS(**{name: value})
    with pytest.raises(TypeError, match="positional"):
        LBFGS(10)  # type: ignore[call-arg]


def test_a_history_in_bfloat16_is_that_of_rounded_pairs():
    """So the Gram matrices are those of the pairs it keeps, and a pair without curvature once rounded is left out."""
    rng, rounded = np.random.default_rng(3), lambda x: x.astype(jnp.bfloat16).astype(x.dtype)
    short, full = (empty_history(2, 6, np.float64, kept) for kept in (jnp.bfloat16, None))
    advance_now, append_now = quick_jit(advance), quick_jit(append)
    for k in range(4):
        s, g = jnp.asarray(rng.normal(size=(2, 6)))
        y = jnp.asarray(s * rng.uniform(0.5, 2, 6))
        short, ours = advance_now(short, s, y, g, k != 1, 0.7)
        full, s_g, y_g = append_now(full, rounded(s), rounded(y), g, k != 1)
        np.testing.assert_allclose(ours, direction(full, s_g, y_g, g, 0.7), rtol=1e-12)
        np.testing.assert_allclose(short.pairs.astype(float), full.pairs)
        np.testing.assert_allclose(short.yy, full.yy, rtol=1e-12)
        np.testing.assert_allclose(short.triangle, full.triangle, rtol=1e-12)
    assert short.count == 2
    s, y = jnp.array([1.0, -1.0, 0, 0, 0, 0]), jnp.array([1.001, 1.0, 0, 0, 0, 0])
    assert jnp.vdot(s, y) > 0
    same, _ = advance_now(short, s, y, g, True, 0.7)
    np.testing.assert_array_equal(same.pairs, short.pairs)


@pytest.mark.parametrize("on_accelerator", [False, True], ids=["cpu", "accelerator"])
def test_a_history_has_the_type_that_was_asked_for(monkeypatch, on_accelerator):
    monkeypatch.setattr("jaxleak.solvers.lbfgs.accelerated", lambda: on_accelerator)
    wanted = {
        "same": ["float32", "float64"],
        "bfloat16": ["bfloat16", "bfloat16"],
        "auto": ["bfloat16" if on_accelerator else "float32", "float64"],
    }
    for history_type, types in wanted.items():
        starts = (jnp.zeros(3, dtype) for dtype in (jnp.float32, jnp.float64))
        histories = [LBFGS(history_type=history_type).init(squares(beale), start).history for start in starts]
        assert [history.pairs.dtype.name for history in histories] == types


# --- stored trajectories ---


def cliff(lift):
    return jax.value_and_grad(lambda x: jnp.sum(jnp.arange(1, x.size + 1) * jnp.square(x)) + lift * (x[0] < 1))


FUNCTIONS: dict[str, Any] = {
    "rosenbrock": squares(rosenbrock),
    "short history": squares(rosenbrock),
    "valley": jax.value_and_grad(lambda x: jnp.sum(jnp.logspace(0, 2, x.size) * jnp.square(jnp.sin(x) + x / 5))),
    "stairs": stairs,
    "cliff": cliff(9.0),
    "ledge": cliff(3.2),
    "full, then dropped": cliff(9.0),
    "flat": lambda x: (jnp.ones(()), jnp.ones_like(x)),
}


@pytest.mark.parametrize("name", numpy_armijo.CASES)
def test_the_stored_trajectory_is_followed(name):
    """By the solver and by the slow reference that it was stored from."""
    case, stored = numpy_armijo.CASES[name], numpy_armijo.stored()[name]
    for key, array in numpy_armijo.trajectory(case).items():
        # NumPy's own products are rounded as the processor's BLAS likes.
        np.testing.assert_allclose(array, stored[key], rtol=1e-6, atol=1e-8)
    solver = LBFGS(history=case.history, max_step=case.max_step)
    states, infos = solve(FUNCTIONS[name], case.start, case.steps, solver)
    # Rounding grows along the way: to less than 1e-8 in these cases.
    np.testing.assert_allclose(states.x[:-1], stored["x"][1:], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(infos.x, stored["lowest"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(infos.value, stored["value"], rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(states.history.count, stored["pairs"])
    np.testing.assert_array_equal(infos.stalled, stored["stalled"])
