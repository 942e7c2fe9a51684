"""Every solver keeps the protocol; `torch-lbfgs` is torch's L-BFGS step for step, its direction the two-loop's.

`test_trial.py` follows torch's trajectories on LeNet, through a whole trial.
"""

import json
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, asdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak.errors import InputError
from jaxleak.solvers import SOLVERS, Adam, Info, JaxoptLBFGS, OptaxLBFGS, TorchLBFGS, solver_name
from tests.fixtures import quick_jit
from tests.oracles.cases import SolverCase, solver_cases
from tests.oracles.two_loop import dense_inverse_hessian, two_loop_direction

# A new solver is in the battery by being in SOLVERS; these are further settings of the same ones.
BATTERY: dict[str, Any] = {name: kind() for name, kind in SOLVERS.items() if name != "none"} | {
    "torch-lbfgs, short": TorchLBFGS(history=3, inner_steps=4, lr=0.5),
    "jaxopt-lbfgs, fixed": JaxoptLBFGS(line_search="fixed", lr=0.3, history=5, inner_steps=3),
    "jaxopt-lbfgs, hager-zhang": JaxoptLBFGS(line_search="hager-zhang", history=5),
}
CURVATURE = jnp.array([1.0, 1.5, 2.0, 3.0])
STEPS = 120


def quadratic(x):
    """1/2 sum(curvature * x^2), with its gradient; 0 at 0."""
    return 0.5 * jnp.sum(CURVATURE * x * x), CURVATURE * x


def relative_error(got, wanted):
    return float(np.linalg.norm(np.ravel(got - wanted)) / np.linalg.norm(np.ravel(wanted)))


class Run(NamedTuple):
    """`STEPS` steps on the quadratic from one start, by `lax.scan`."""

    initial: Any
    state: Any
    infos: Info  # [STEPS] each
    counted: int  # evaluations, counted where they happen


@pytest.fixture(scope="module", params=BATTERY, ids=str)
def solver(request):
    return BATTERY[request.param]


@pytest.fixture(scope="module")
def run(solver) -> Run:
    calls: list[int] = []

    def counting(x):
        jax.debug.callback(lambda: calls.append(1))
        return quadratic(x)

    def scan(start):
        initial = solver.init(counting, start)
        state, infos = jax.lax.scan(lambda state, _: solver.step(counting, state), initial, length=STEPS)
        return initial, state, infos

    initial, state, infos = quick_jit(scan)(jnp.array([1.0, -0.5, 0.7, 0.2]))
    jax.effects_barrier()
    return Run(initial, state, infos, len(calls))


# --- the battery ---


def test_settings_are_frozen_plain_data(solver):
    assert solver_name(solver) in SOLVERS
    assert hash(solver) == hash(type(solver)(**asdict(solver)))
    assert json.loads(json.dumps(asdict(solver))) == asdict(solver)
    with pytest.raises(FrozenInstanceError):
        solver.lr = 2.0


def test_state_and_info_keep_shape_and_type(solver):
    """Else `scan` would refuse them, and `while_loop` retrace."""
    initial = jax.eval_shape(lambda x: solver.init(quadratic, x), jnp.ones(4))
    state, info = jax.eval_shape(lambda state: solver.step(quadratic, state), initial)
    assert jax.tree.structure(state) == jax.tree.structure(initial)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), initial
    )
    assert isinstance(info, Info)
    assert (info.x.shape, info.x.dtype) == ((4,), np.float64)
    assert (info.value.shape, info.value.dtype) == ((), np.float64)
    assert (info.boundary.shape, info.boundary.dtype) == ((), bool)
    assert (info.evaluations.shape, info.evaluations.dtype) == ((), np.int32)
    assert (info.stalled.shape, info.stalled.dtype) == ((), bool)


def test_first_step_reports_the_start(run):
    np.testing.assert_array_equal(run.infos.x[0], [1.0, -0.5, 0.7, 0.2])
    assert run.infos.boundary[0]
    assert not run.infos.stalled[0]


def test_info_holds_the_value_at_its_candidate(run):
    values = jax.vmap(lambda x: quadratic(x)[0])(run.infos.x)
    np.testing.assert_allclose(run.infos.value, values, rtol=1e-12, atol=1e-300)


def test_the_objective_falls(run):
    assert run.infos.value[-1] < 1e-3 * run.infos.value[0]
    assert np.all(np.isfinite(run.infos.value))


def test_a_stalled_solver_stays_where_it_is(run):
    if np.any(run.infos.stalled):
        later = run.infos.x[np.argmax(run.infos.stalled) :]
        np.testing.assert_array_equal(later, np.broadcast_to(later[0], later.shape))


def test_evaluations_are_counted(solver, run):
    reported = int(np.sum(run.infos.evaluations))
    # Two evaluate ahead: a step reports what led to the value it returns, and the last update's come with the next.
    ahead = 0
    if isinstance(solver, JaxoptLBFGS):
        ahead = int(run.state.inner.num_fun_eval) - reported
    elif isinstance(solver, OptaxLBFGS):
        ahead = int(run.state.evaluations)
    assert run.counted == reported + ahead
    assert np.all(np.asarray(run.infos.evaluations) >= 0)


def test_vmap_equals_one_at_a_time(solver):
    starts = jnp.array([[1.0, -0.5, 0.7, 0.2], [3.0, 0.0, -2.0, 0.1], [np.nan, 0.0, 1.0, 1.0]])

    def scan(start):
        initial = solver.init(quadratic, start)
        return jax.lax.scan(lambda state, _: solver.step(quadratic, state), initial, length=5)[1]

    together = quick_jit(jax.vmap(scan))(starts)
    alone = [quick_jit(scan)(start) for start in starts]
    # Near the minimum Hager and Zhang's search compares values that differ by rounding: one evaluation more or fewer.
    searches = isinstance(solver, JaxoptLBFGS) and solver.line_search == "hager-zhang"
    for lane, infos in enumerate(alone):
        for name, a, b in zip(infos._fields, infos, together, strict=True):
            atol = 1 if searches and name == "evaluations" else 1e-12
            np.testing.assert_allclose(a, b[lane], rtol=1e-10, atol=atol)
    assert np.isnan(together.value[2]).all()
    assert not np.any(together.stalled[2])  # not a number is not the same as standing still


def test_lbfgs_stalls_at_a_minimum(solver):
    if isinstance(solver, Adam):
        pytest.skip("Adam has no stopping test")
    state = solver.init(quadratic, jnp.zeros(4))
    _, info = quick_jit(lambda state: solver.step(quadratic, state))(state)
    assert bool(info.stalled)


@pytest.mark.parametrize("kind", [Adam, JaxoptLBFGS, TorchLBFGS])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_the_step_size_must_be_positive(kind, value):
    with pytest.raises(InputError, match=r"^`lr` must be above 0"):
        kind(lr=value)


@pytest.mark.parametrize("kind", [TorchLBFGS, JaxoptLBFGS, OptaxLBFGS])
@pytest.mark.parametrize("name", ["history", "inner_steps"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_counts_must_be_positive_whole_numbers(kind, name, value):
    with pytest.raises(InputError, match=f"^`{name}` must be"):
        kind(**{name: value})


def test_unknown_line_search_names_the_closest():
    with pytest.raises(InputError, match=r"`line_search` .* got 'zom'. Did you mean 'zoom'\?$"):
        JaxoptLBFGS(line_search="zom")


@pytest.mark.parametrize(
    ("solver", "period"),
    [(TorchLBFGS(inner_steps=4), 4), (JaxoptLBFGS(inner_steps=3), 3), (OptaxLBFGS(inner_steps=2), 2), (Adam(), 1)],
)
def test_iterations_begin_every_so_many_steps(solver, period):
    def scan(start):
        initial = solver.init(quadratic, start)
        return jax.lax.scan(lambda state, _: solver.step(quadratic, state), initial, length=7)[1]

    boundary = quick_jit(scan)(jnp.array([1.0, -0.5, 0.7, 0.2])).boundary
    np.testing.assert_array_equal(np.flatnonzero(boundary), np.arange(0, 7, period))


# --- torch's L-BFGS ---


def test_the_defaults_are_torchs():
    """torch 2.13, `LBFGS.__init__`; `max_eval` is 5/4 of `max_iter`."""
    solver = TorchLBFGS()
    assert (solver.lr, solver.history, solver.inner_steps, solver.evaluation_limit) == (1, 100, 20, 25)
    assert (solver.tolerance_gradient, solver.tolerance_change) == (1e-7, 1e-9)
    assert TorchLBFGS(inner_steps=7).evaluation_limit == 8
    assert TorchLBFGS(inner_steps=7, max_evaluations=5).evaluation_limit == 5
    with pytest.raises(TypeError, match="positional"):
        TorchLBFGS(0.1)  # type: ignore[call-arg]


def openings(solver: TorchLBFGS, slope: float) -> list[bool]:
    """Which of six evaluations open an outer step, on a line that falls by `slope` where the gradient says 1."""

    def fun(x):
        return slope * jnp.sum(x), jnp.ones_like(x)

    def scan(x):
        return jax.lax.scan(lambda state, _: solver.step(fun, state), solver.init(fun, x), length=6)[1]

    return quick_jit(scan)(jnp.ones(1)).boundary.tolist()


def test_torch_lbfgs_ends_where_step_and_change_are_both_small():
    assert openings(TorchLBFGS(lr=1e-12), 1.0) == [True, False] * 3


def test_torch_lbfgs_ends_where_the_step_is_small_and_evaluations_are_spent():
    assert openings(TorchLBFGS(lr=1e-12, max_evaluations=2), 1e12) == [True, False] * 3


def test_a_change_as_large_as_torchs_tolerance_does_not_end_its_step():
    assert openings(TorchLBFGS(tolerance_change=0.5), 0.5) == [True] + [False] * 5
    assert openings(TorchLBFGS(tolerance_change=0.5), 0.4) == [True, False] * 3


class OuterStep(NamedTuple):
    """Where the solver stands as an outer step opens, and what the evaluation that opens it says."""

    state: Any
    info: Info
    stalled: bool  # whether the outer step before said that no later one will move


def outer_steps(case: SolverCase) -> Iterator[OuterStep]:
    """`case.iterations + 1` openings: the state before each is torch's after as many `optimizer.step`."""
    solver = TorchLBFGS(
        lr=case.lr,
        history=case.history,
        inner_steps=case.max_iter,
        max_evaluations=case.max_eval,
        tolerance_gradient=case.tolerance_grad,
        tolerance_change=case.tolerance_change,
    )
    fun = jax.value_and_grad(case.value)
    step = quick_jit(lambda state: solver.step(fun, state))
    state, stalled, opened = solver.init(fun, jnp.asarray(case.start)), False, 0
    while opened <= case.iterations:
        previous, (state, info) = state, step(state)
        if info.boundary:
            yield OuterStep(previous, info, stalled)
            opened += 1
        stalled = bool(info.stalled)


@pytest.mark.parametrize("case", solver_cases(), ids=str)
def test_torch_lbfgs_follows_torch(case):
    golden = case.golden
    for k, (state, info, stalled) in enumerate(outer_steps(case)):
        # The cases are chosen so that rounding of 1e-12 grows to less than 1e-8 (`make_goldens.check_calm`).
        np.testing.assert_allclose(info.x, golden["x"][k], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(info.value, golden["objective"][k], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(state.gamma, golden["gamma"][k], rtol=1e-6)
        assert int(state.total_evaluations) == golden["evaluations"][k]
        assert int(state.total_inner) == golden["inner_iterations"][k]
        assert int(state.history.count) == golden["pairs"][k]
        if k > 0:
            # Torch would end every later outer step in the same way.
            assert stalled == (golden["stop"][k - 1] in ("gradient-at-start", "directional-derivative"))
    assert k == case.iterations


def test_the_cases_reach_every_stopping_test():
    reached = {case.name: set(case.golden["stop"].tolist()) for case in solver_cases()}
    assert set().union(*reached.values()) == {
        "gradient-at-start",
        "directional-derivative",
        "max-iter",
        "max-eval",
        "gradient",
        "step",
        "objective",
    }


class Directions(NamedTuple):
    """One random run: what `TorchLBFGS` chose at each step, beside the pairs it should have used."""

    direction: np.ndarray
    gradient: np.ndarray
    gamma: float
    s: list[np.ndarray]
    y: list[np.ndarray]
    refused: bool  # whether the step before offered a pair without curvature


@pytest.fixture(scope="module", params=[1, 4, 30])
def directions(request) -> list[Directions]:
    """25 steps of the solver, fed gradients that change by a random matrix times the step it took.

    The matrix is positive definite, or at every fourth step negative: that pair must be refused.
    """
    history, size, rng = request.param, 12, np.random.default_rng(request.param)
    solver = TorchLBFGS(history=history, inner_steps=1000, lr=0.5)

    @jax.jit
    def step(state, value, gradient):
        return solver.step(lambda x: (value, gradient), state)[0]

    state = solver.init(quadratic, jnp.asarray(rng.standard_normal(size)))
    gradient, gamma, s, y, out, refused = rng.standard_normal(size), 1.0, [], [], [], False
    for k in range(25):
        before = np.asarray(state.x)
        state = step(state, -float(k), gradient)
        out.append(Directions(np.asarray(state.direction), gradient, gamma, list(s), list(y), refused))
        change = np.asarray(state.x) - before
        root = rng.standard_normal((size, size)) / np.sqrt(size)
        difference = (root @ root.T + 0.3 * np.eye(size)) @ change
        refused = k % 4 == 2
        difference = -difference if refused else difference
        if not refused:
            s, y = [*s, change][-history:], [*y, difference][-history:]
            gamma = float(change @ difference / (difference @ difference))
        gradient = gradient + difference
    return out


def test_direction_is_the_two_loop_recursions(directions):
    for step in directions:
        wanted = two_loop_direction(step.s, step.y, step.gradient, step.gamma)
        assert relative_error(step.direction, wanted) < 1e-8
    assert sum(step.refused for step in directions) == 6


def test_direction_is_the_dense_inverse_hessians(directions):
    for step in directions:
        dense = dense_inverse_hessian(step.s, step.y, step.gradient.size, step.gamma)
        assert relative_error(step.direction, -dense @ step.gradient) < 1e-8
