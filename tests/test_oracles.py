"""The references themselves: against torch, against each other, and against the committed golden arrays."""

import importlib
from typing import Any

import numpy as np
import pytest

from tests.oracles.cases import LenetCase, SolverCase, lenet_cases, lenet_shapes, solver_cases
from tests.oracles.numpy_lbfgs import STOP_REASONS, NumpyLBFGS
from tests.oracles.require_torch import require_torch
from tests.oracles.two_loop import dense_inverse_hessian, two_loop_direction

ATTACKS = ("dlg", "idlg")
COUNTERS = ("evaluations", "inner_iterations")


@pytest.fixture(scope="module")
def make_goldens() -> Any:
    """The module tests.oracles.make_goldens, which needs torch."""
    require_torch()
    return importlib.import_module("tests.oracles.make_goldens")


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(got - wanted)) / np.linalg.norm(np.ravel(wanted)))


def history(rng: np.random.Generator, pairs: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Steps and gradient differences of a random convex quadratic."""
    root = rng.standard_normal((size, size))
    hessian = root @ root.T + np.eye(size)
    s = [rng.standard_normal(size) for _ in range(pairs)]
    return s, [hessian @ step for step in s]


# --- without torch ---


@pytest.mark.parametrize("pairs", [0, 1, 3, 9])
def test_two_loop_is_dense_bfgs(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    s, y = history(rng, pairs, size=6)
    gradient = rng.standard_normal(6)
    direction = two_loop_direction(s, y, gradient, gamma=0.3)
    dense = -dense_inverse_hessian(s, y, 6, gamma=0.3) @ gradient
    assert relative_error(direction, dense) < 1e-10


def test_two_loop_keeps_the_secant_equation() -> None:
    s, y = history(np.random.default_rng(0), 4, size=7)
    assert relative_error(two_loop_direction(s, y, y[-1], gamma=2.0), -s[-1]) < 1e-12


@pytest.mark.parametrize("case", solver_cases(), ids=str)
def test_numpy_lbfgs_follows_the_golden_trajectory(case: SolverCase) -> None:
    golden = case.golden
    solver = NumpyLBFGS(case.value_and_gradient, case.start, **case.settings)
    with np.errstate(all="ignore"):
        for iteration in range(1, case.iterations + 1):
            solver.step()
            np.testing.assert_allclose(solver.x, golden["x"][iteration], rtol=1e-9, atol=1e-9)
            assert solver.func_evals == golden["evaluations"][iteration]
            assert solver.n_iter == golden["inner_iterations"][iteration]
            assert len(solver.s) == golden["pairs"][iteration]
            np.testing.assert_allclose(solver.gamma, golden["gamma"][iteration], rtol=1e-6)
    assert solver.stops == golden["stop"].tolist()
    assert len(solver.values) == solver.func_evals


def test_every_stopping_test_is_reached() -> None:
    reached = {case.name: set(case.golden["stop"].tolist()) for case in solver_cases()}
    for case in solver_cases():
        assert set(case.stops) <= reached[case.name], case
    assert set().union(*reached.values()) == set(STOP_REASONS)


def test_history_rules_are_reached() -> None:
    golden = {case.name: case.golden for case in solver_cases()}
    assert golden["short-history"]["pairs"].max() == 5 < golden["short-history"]["inner_iterations"].max()
    assert golden["no-curvature"]["pairs"].max() == 0
    assert golden["double-well"]["pairs"][1] < 15  # of the 19 that the first outer step offers
    assert np.isinf(golden["overflow"]["x"]).any()
    assert np.isnan(golden["not-a-number"]["x"]).any()


@pytest.mark.parametrize("case", lenet_cases(), ids=str)
def test_lenet_case_is_whole(case: LenetCase) -> None:
    golden = case.golden
    _, height, width, channels = case.image.shape
    shapes = lenet_shapes(height, width, channels, case.num_classes)
    assert {name: tensor.shape for name, tensor in case.state_dict.items()} == shapes
    assert {name: tensor.shape for name, tensor in case.update.items()} == shapes
    assert golden["idlg/label"] == case.label
    for attack in ATTACKS:
        assert golden[f"{attack}/gradient_image"].shape == case.image.shape
        trace = {key: golden[f"{attack}/trace_{key}"] for key in ("objective", "image", "evaluations", "stop")}
        np.testing.assert_array_equal(trace["image"][0], case.candidate_image)
        assert trace["objective"][0] == pytest.approx(golden[f"{attack}/objective"], rel=1e-12)
        assert trace["objective"][-1] < trace["objective"][0] / 10
        assert len(trace["objective"]) == len(trace["image"]) == len(trace["stop"]) + 1 == case.iterations + 1


# --- with torch ---


@pytest.mark.torch
@pytest.mark.parametrize("case", lenet_cases(), ids=str)
def test_lenet_goldens_equal_torch(case: LenetCase, make_goldens: Any) -> None:
    golden = case.golden
    made = make_goldens.lenet_arrays(case)
    assert set(made) | {f"{attack}/trace_stop" for attack in ATTACKS} == set(golden)
    for key, wanted in golden.items():
        if key.endswith(("label", *COUNTERS)):
            np.testing.assert_array_equal(made[key], wanted, err_msg=key)
        elif key.endswith("trace_objective"):
            np.testing.assert_allclose(made[key], wanted, rtol=1e-6, atol=1e-12, err_msg=key)
        elif not key.endswith("trace_stop"):
            assert relative_error(made[key], wanted) < (1e-6 if "trace" in key else 1e-9), key


@pytest.mark.torch
@pytest.mark.parametrize("case", solver_cases(), ids=str)
def test_solver_goldens_equal_torch(case: SolverCase, make_goldens: Any) -> None:
    golden = case.golden
    made = make_goldens.solver_arrays(case)
    assert set(made) | {"stop"} == set(golden)
    for key in COUNTERS:
        np.testing.assert_array_equal(made[key], golden[key], err_msg=key)
    for key in ("objective", "x", "gamma"):
        np.testing.assert_allclose(made[key], golden[key], rtol=1e-6, atol=1e-9, err_msg=key)


@pytest.mark.torch
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("case", lenet_cases(), ids=str)
def test_numpy_lbfgs_equals_torch_on_lenet(case: LenetCase, attack: str, make_goldens: Any) -> None:
    golden = case.golden
    solver = make_goldens.LenetProblem(case).numpy_lbfgs(attack)
    pixels = case.image.size
    for iteration in range(1, case.iterations + 1):
        assert solver.step() == pytest.approx(golden[f"{attack}/trace_objective"][iteration - 1], rel=1e-6, abs=1e-12)
        image = np.moveaxis(solver.x[:pixels].reshape(case.image_nchw.shape), 1, -1)
        assert relative_error(image, golden[f"{attack}/trace_image"][iteration]) < 1e-6
        assert solver.func_evals == golden[f"{attack}/trace_evaluations"][iteration]
        assert solver.n_iter == golden[f"{attack}/trace_inner_iterations"][iteration]
    assert solver.stops == golden[f"{attack}/trace_stop"].tolist()


@pytest.mark.torch
def test_objective_is_zero_at_the_private_image(make_goldens: Any) -> None:
    problem = make_goldens.LenetProblem(lenet_cases()[-1])
    value, gradient = problem.value_and_gradient("idlg", problem.image.numpy().ravel())
    assert value < 1e-25
    assert np.abs(gradient).max() < 1e-12


@pytest.mark.torch
@pytest.mark.parametrize("attack", ATTACKS)
def test_objective_gradient_is_its_finite_difference(attack: str, make_goldens: Any) -> None:
    problem = make_goldens.LenetProblem(lenet_cases()[-1])
    start = problem.start(attack)
    along = np.random.default_rng(0).standard_normal(start.shape)
    step = 1e-6
    values = [problem.value_and_gradient(attack, start + sign * step * along)[0] for sign in (1.0, -1.0)]
    slope = problem.value_and_gradient(attack, start)[1] @ along
    # Central differences: rounding of about 1e-15 / step, truncation of about step**2.
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-6)


@pytest.mark.torch
def test_attack_reports_its_threshold_iteration_and_stops() -> None:
    require_torch()
    torch_dlg = importlib.import_module("tests.oracles.torch_dlg")
    make_goldens = importlib.import_module("tests.oracles.make_goldens")
    case = next(case for case in lenet_cases() if case.name == "gray12")
    problem = make_goldens.LenetProblem(case)
    start = importlib.import_module("torch").from_numpy(case.candidate_image_nchw)
    trace = torch_dlg.run_attack(problem.net, problem.update, start, None, iterations=10, stop_below=1e-6)
    below = case.golden["idlg/trace_objective"]
    assert trace.threshold_iterations == np.flatnonzero(below < 1e-4)[0]
    assert len(trace.objective) - 1 == np.flatnonzero(below < 1e-6)[0]
    np.testing.assert_array_equal(trace.closure_calls, trace.evaluations)


def test_missing_torch_fails_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    monkeypatch.setenv("JAXLEAK_REQUIRE_TORCH", "1")
    with pytest.raises(pytest.fail.Exception, match="JAXLEAK_REQUIRE_TORCH=1"):
        require_torch()
    monkeypatch.setenv("JAXLEAK_REQUIRE_TORCH", "0")
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        require_torch()
