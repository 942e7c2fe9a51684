"""One trial, stepped in a plain Python loop: torch's trajectories on LeNet, how trials end, what they record."""

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxleak import Sweep
from jaxleak.attacks import presets as attacks
from jaxleak.attacks.attacker import Attacker
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.trial import ENDINGS, RUNNING, Job, Outcome, Trial
from jaxleak.errors import InputError
from jaxleak.models import LeNet
from jaxleak.models.weights import from_torch
from jaxleak.solvers import LBFGS, Adam, Info, JaxoptLBFGS, TorchLBFGS
from jaxleak.threat.loss import loss_gradient
from jaxleak.threat.patches import PatchMixture
from jaxleak.threat.victim import Victim
from tests.fixtures import quick_jit
from tests.oracles.cases import LenetCase, lenet_cases
from tests.trials import Ran, job, run_trial

DLG, IDLG = (replace(preset, solver=TorchLBFGS()) for preset in (attacks.DLG, attacks.IDLG))  # as published
ATTACKS = {"dlg": DLG, "idlg": IDLG}
GRAY8 = lenet_cases()[-1]


def victim_of(case: LenetCase, **changes) -> Victim:
    model = LeNet(num_classes=case.num_classes)
    settings: dict[str, Any] = {
        "model": model,
        "model_name": "lenet",
        "dataset": "golden",
        "split": "all",
        "indices": [7],
        "images": case.image,
        "labels": np.array([case.label]),
        "network": "shared",
        "params": from_torch(model, case.state_dict, case.image.shape[1:]),
        "num_classes": case.num_classes,
    }
    return Victim(**settings | changes)


def starts_of(case: LenetCase) -> dict[str, np.ndarray]:
    return {"image": case.candidate_image[None], "label": case.candidate_logits[None]}


def ending(outcome: Outcome) -> str:
    return ENDINGS[int(outcome.ending)]


def relative_error(got, wanted):
    return float(np.linalg.norm(np.ravel(got - wanted)) / np.linalg.norm(np.ravel(wanted)))


# --- torch's trajectories ---


class Followed(NamedTuple):
    """A golden case, what torch did, and our trial of it."""

    case: LenetCase
    golden: dict[str, np.ndarray]
    stops: list[str]
    ran: Ran

    @property
    def last(self) -> int:
        """Iterations until the trial's end."""
        return int(self.ran.outcome.iterations)


# Both attacks where torch's trajectories are long, one of them for the others: each is a compilation.
FOLLOWED = [
    (case, attack)
    for number, case in enumerate(lenet_cases())
    for attack in (ATTACKS if case.iterations == 10 else sorted(ATTACKS)[number % 2 :][:1])
]


@pytest.fixture(
    scope="module",
    params=FOLLOWED,
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def followed(request) -> Followed:
    case, attack = request.param
    golden = case.golden
    golden = {key.split("/", 1)[1]: array for key, array in golden.items() if key.startswith(f"{attack}/")}
    objectives = golden["trace_objective"]
    trial = Trial(
        attack=replace(ATTACKS[attack], iterations=case.iterations, stop_objective=0.0),
        victim=victim_of(case),
        # Between two objectives on the way down, so that it is crossed.
        threshold=float(np.sqrt(objectives[0] * objectives[1])),
        snapshots=tuple(range(case.iterations + 1)),
        starts=starts_of(case),
    )
    return Followed(case, golden, golden["trace_stop"].tolist(), run_trial(trial))


def test_trial_follows_torch(followed):
    """All 10 outer steps where the case is calm for so long; the longer ones end when torch only repeats itself."""
    golden, outcome, last = followed.golden, followed.ran.outcome, followed.last
    np.testing.assert_allclose(
        outcome.objective_trace[: last + 1], golden["trace_objective"][: last + 1], rtol=1e-6, atol=1e-12
    )
    for k in range(last + 1):
        assert relative_error(outcome.snapshots[k], golden["trace_image"][k]) < 1e-6, k
    # Where the trial ends before the budget, torch's later outer steps do not move.
    np.testing.assert_array_equal(
        golden["trace_image"][last:], golden["trace_image"][[last] * (len(golden["trace_image"]) - last)]
    )
    assert relative_error(outcome.candidate, golden["trace_image"][-1]) < 1e-6


def test_counters_equal_torchs(followed):
    openings = [state.solver for state in followed.ran.states if state.solver.inner == 0]
    for k, solver in enumerate(openings[: followed.last + 1]):
        assert int(solver.total_evaluations) == followed.golden["trace_evaluations"][k]
        assert int(solver.total_inner) == followed.golden["trace_inner_iterations"][k]
    assert int(followed.ran.outcome.evaluations) == len(followed.ran.states) - 1


def test_trial_ends_when_torch_only_repeats_itself(followed):
    forever = [k for k, stop in enumerate(followed.stops) if stop in ("gradient-at-start", "directional-derivative")]
    if not forever:
        assert ending(followed.ran.outcome) == "iteration-limit"
        assert followed.last == followed.case.iterations
        # The last evaluation looks at where the last outer step left the candidate.
        assert int(followed.ran.outcome.evaluations) == followed.golden["trace_evaluations"][-1] + 1
    else:
        assert ending(followed.ran.outcome) == "stalled"
        # A first evaluation that finds nothing to do ends the iteration before; a later one its own.
        moved = not np.array_equal(*followed.golden["trace_image"][forever[0] : forever[0] + 2])
        assert followed.last == forever[0] + moved


def test_label_is_torchs(followed):
    if followed.ran.trial.attack.label == "joint":
        logits = np.asarray(followed.ran.states[-1].record.candidate)[-followed.case.num_classes :]
        assert relative_error(logits, followed.golden["trace_logits"][-1]) < 1e-6
    np.testing.assert_array_equal(followed.ran.outcome.label_found, [followed.golden["label"]])


def test_threshold_is_noted_at_its_first_crossing(followed):
    trace, outcome = followed.ran.outcome.objective_trace, followed.ran.outcome
    first = int(np.flatnonzero(trace < followed.ran.trial.threshold)[0])
    assert first > 0
    assert int(outcome.threshold_iterations) == first
    # Torch's count at the end of that iteration, and the evaluation that looks.
    assert int(outcome.threshold_evaluations) == followed.golden["trace_evaluations"][first] + 1


def test_traces_are_blank_after_the_end(followed):
    outcome, last = followed.ran.outcome, followed.last
    for trace in (outcome.objective_trace, outcome.mse_trace):
        assert trace.shape == (followed.case.iterations + 1,)
        assert np.isfinite(trace[: last + 1]).all()
        assert np.isnan(trace[last + 1 :]).all()
    assert outcome.objective == outcome.objective_trace[last]


def test_mse_trace_belongs_to_the_snapshots(followed):
    outcome, last = followed.ran.outcome, followed.last
    squares = (outcome.snapshots - followed.case.image) ** 2
    np.testing.assert_allclose(outcome.mse_trace[: last + 1], squares.mean(axis=(1, 2, 3, 4))[: last + 1], rtol=1e-10)


def test_the_final_candidate_fills_later_snapshots(followed):
    for snapshot in followed.ran.outcome.snapshots[followed.last :]:
        np.testing.assert_array_equal(snapshot, followed.ran.outcome.candidate)


def test_update_norm_is_the_shared_updates(followed):
    wanted = sum(np.sum(tensor**2) for tensor in followed.case.update.values())
    assert float(followed.ran.outcome.update_norm2) == pytest.approx(wanted, rel=1e-9)


# --- how trials end ---

START_ROWS = ("ordinary", "one pixel NaN", "truth", "saturated", "infinite")


def outcomes_of(trial: Trial, jobs: list[Job], extra_steps: int = 0) -> tuple[Outcome, Outcome]:
    """Outcomes of several trials in one compiled call, and again after `extra_steps` further steps."""
    shared = trial.shared()

    def one(which):
        problem = trial.prepare(shared, which)
        state = trial.init(shared, problem, which)
        state = jax.lax.while_loop(trial.running, lambda state: trial.step(shared, problem, state), state)
        later = jax.lax.fori_loop(0, extra_steps, lambda _, state: trial.step(shared, problem, state), state)
        return trial.outcome(problem, state), trial.outcome(problem, later)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *jobs)
    return jax.tree.map(np.asarray, quick_jit(jax.vmap(one))(stacked))


def small_attack(**changes) -> Attack:
    settings = {"solver": TorchLBFGS(history=5), "iterations": 2, "stop_objective": 1e-12} | changes
    return replace(IDLG, **settings)


@pytest.fixture(scope="module")
def endings() -> tuple[dict[str, Outcome], dict[str, Outcome]]:
    """Outcomes by the row of START_ROWS they started from, at their end and 30 steps later."""
    image = GRAY8.candidate_image
    spoilt = image.copy()
    spoilt[0, 3, 3, 0] = np.nan
    rows = [image, spoilt, GRAY8.image, np.full_like(image, 1e200), np.full_like(image, np.inf)]
    trial = Trial(
        attack=small_attack(),
        victim=victim_of(GRAY8),
        threshold=1e-9,
        snapshots=(0, 1, 2, 9),
        starts={"image": np.stack(rows)},
    )
    both = outcomes_of(trial, [job(seed=row) for row in range(len(rows))], extra_steps=30)
    at_end, later = (
        {name: jax.tree.map(lambda leaf, row=row: leaf[row], outcome) for row, name in enumerate(START_ROWS)}
        for outcome in both
    )
    return at_end, later


def test_a_trial_ends_at_its_iteration_limit(endings):
    outcome = endings[0]["ordinary"]
    assert ending(outcome) == "iteration-limit"
    assert (int(outcome.iterations), int(outcome.evaluations)) == (2, 41)
    assert int(outcome.threshold_iterations) == int(outcome.threshold_evaluations) == -1


def test_a_trial_ends_below_its_objective(endings):
    outcome = endings[0]["truth"]
    assert ending(outcome) == "objective"  # not "stalled", though the gradient is zero there too
    assert (int(outcome.iterations), int(outcome.evaluations)) == (0, 1)
    assert (int(outcome.threshold_iterations), int(outcome.threshold_evaluations)) == (0, 1)
    assert np.isnan(outcome.objective_trace[1:]).all()


@pytest.mark.parametrize("start", ["one pixel NaN", "infinite"])
def test_a_trial_ends_when_a_number_is_not_finite(endings, start):
    outcome = endings[0][start]
    assert ending(outcome) == "non-finite"
    assert (int(outcome.iterations), int(outcome.evaluations)) == (0, 1)
    assert int(outcome.threshold_iterations) == -1
    assert outcome.candidate.shape == (1, 8, 8, 1)


def test_a_trial_stalls_without_a_slope(endings):
    """So far out every sigmoid is 0 or 1: the objective is flat, but nothing is wrong with the numbers."""
    outcome = endings[0]["saturated"]
    assert ending(outcome) == "stalled"
    assert (int(outcome.iterations), int(outcome.evaluations)) == (0, 1)
    assert np.isfinite(outcome.objective)


def test_an_iteration_of_the_middle_can_break_a_trial():
    """A step that overflows: the iteration in which it happens is the last."""
    attack = small_attack(solver=TorchLBFGS(history=5, lr=1e308), iterations=3)
    ran = run_trial(Trial(attack=attack, victim=victim_of(GRAY8), threshold=1e-4, starts=starts_of(GRAY8)))
    assert ending(ran.outcome) in ("non-finite", "stalled")
    assert int(ran.outcome.iterations) == 1
    assert 1 < int(ran.outcome.evaluations) < 20
    assert np.isnan(ran.outcome.objective_trace[2:]).all()


@pytest.mark.parametrize("start", START_ROWS)
def test_an_ended_trial_keeps_its_outcome(endings, start):
    at_end, later = (outcomes[start] for outcomes in endings)
    jax.tree.map(np.testing.assert_array_equal, at_end, later)


def test_snapshots_lie_at_their_iterations(endings):
    outcome = endings[0]["ordinary"]
    np.testing.assert_array_equal(outcome.snapshots[0], GRAY8.candidate_image)
    assert not np.array_equal(outcome.snapshots[1], outcome.snapshots[0])
    assert not np.array_equal(outcome.snapshots[1], outcome.snapshots[2])
    for final in outcome.snapshots[2:]:  # iteration 9 never comes
        np.testing.assert_array_equal(final, outcome.candidate)


@pytest.mark.parametrize(
    ("solver", "evaluations"),
    [(Adam(lr=0.05), 4), (JaxoptLBFGS(line_search="fixed", lr=0.01, history=5, inner_steps=2), 7)],
    ids=["adam", "jaxopt-lbfgs"],
)
def test_iterations_are_the_solvers(solver, evaluations):
    """Three iterations, and the evaluation that looks at the candidate they leave."""
    attack = small_attack(solver=solver, iterations=3)
    ran = run_trial(Trial(attack=attack, victim=victim_of(GRAY8), threshold=1e-4, starts=starts_of(GRAY8)))
    assert ending(ran.outcome) == "iteration-limit"
    assert (int(ran.outcome.iterations), int(ran.outcome.evaluations)) == (3, evaluations)
    assert np.isfinite(ran.outcome.objective_trace).all()
    assert ran.outcome.objective < ran.outcome.objective_trace[0]


@pytest.mark.parametrize("most", [None, 7])
def test_what_a_step_notes_and_how_it_ends(monkeypatch, most):
    """All that a solver can say, lane by lane beside each other, against the rules in plain Python."""
    monkeypatch.setattr(Attacker, "step", lambda self, shared, problem, state: (state, state))
    attack = small_attack(solver=Adam(), iterations=3, max_evaluations=most, stop_objective=1e-3)
    trial = Trial(attack=attack, victim=victim_of(GRAY8), threshold=0.6)
    lanes = list(itertools.product((False, True), (0.5, np.nan, 1e-4), (False, True), (1, 2), (RUNNING, 2), (-1, 0)))
    boundary, value, stalled, iterations, begun, first = map(np.array, zip(*lanes, strict=True))

    def look():
        shared = trial.shared()
        problem = trial.prepare(shared, job())
        plain = trial.init(shared, problem, job())._replace(evaluations=jnp.asarray(5, jnp.int32))

        def one(boundary, value, stalled, iterations, begun, first):
            info = Info(plain.record.candidate + 1, value, boundary, jnp.asarray(2), stalled)
            changed = {"iterations": iterations, "ending": begun, "threshold_iterations": first}
            return trial.step(shared, problem, plain._replace(solver=info, **changed))

        return jax.vmap(one)(boundary, value, stalled, iterations, begun, first), plain.record.candidate

    found, start = jax.tree.map(np.asarray, quick_jit(look)())
    for lane, (boundary, value, stalled, iterations, begun, first) in enumerate(lanes):
        running, finite = begun == RUNNING, np.isfinite(value)
        iterations += boundary and running
        spent = (boundary and iterations >= 3) or most is not None
        noted = running and (boundary or not finite or stalled or spent)
        rules = {"non-finite": not finite, "objective": boundary and value < 1e-3, "stalled": stalled}
        ends = next((name for name, met in (rules | {"iteration-limit": spent}).items() if met), None)
        iterations += bool(running and ends and not boundary)
        wanted = ENDINGS.index(ends) if ends and running else begun
        said = found.ending[lane], found.evaluations[lane], found.iterations[lane]
        assert said == (wanted, 7 if running else 5, iterations), lanes[lane]
        notes = noted and value < 0.6 and first < 0
        assert found.threshold_iterations[lane] == (iterations if notes else first), lanes[lane]
        assert found.threshold_evaluations[lane] == (7 if notes else -1), lanes[lane]
        trace = np.full(4, np.nan)
        if noted:
            trace[iterations] = value
        np.testing.assert_array_equal(found.record.objective_trace[lane], trace)
        np.testing.assert_array_equal(found.record.value[lane], value if noted else np.nan)
        np.testing.assert_allclose(found.record.candidate[lane], start + (1 if noted else 0))


def test_the_stop_is_looked_at_where_an_iteration_ends():
    """An objective that is met inside an iteration ends the trial with that iteration, as published."""

    def ran(inner_steps: int, iterations: int, stop: float) -> Outcome:
        attack = small_attack(solver=LBFGS(inner_steps=inner_steps), iterations=iterations, stop_objective=stop)
        return run_trial(Trial(attack=attack, victim=victim_of(GRAY8), threshold=1e-4, starts=starts_of(GRAY8))).outcome

    after = ran(1, 30, 0.0).objective_trace  # each evaluation ends an iteration: the path is the same
    inside = float(after[15] + after[14]) / 2
    assert after[15] < inside < after[14] < after[10]
    outcome = ran(10, 3, inside)
    assert (ending(outcome), int(outcome.iterations), int(outcome.evaluations)) == ("objective", 2, 21)


@pytest.mark.parametrize("objective", ["l2", "cosine"])
def test_a_relative_stop_is_a_share_of_the_update(objective):
    """The same path as without a stop, up to the first iteration below the share."""

    def ran(**changes) -> Outcome:
        attack = small_attack(iterations=6, objective=objective, **changes)
        return run_trial(Trial(attack=attack, victim=victim_of(GRAY8), threshold=1e-4, starts=starts_of(GRAY8))).outcome

    whole = ran(stop_objective=0.0)
    unit = 1.0 if objective == "cosine" else float(whole.update_norm2)
    between = float(whole.objective_trace[3] + whole.objective_trace[2]) / 2
    assert whole.objective_trace[3] < between < whole.objective_trace[2]
    outcome = ran(stop_objective=0.0, stop_relative=between / unit)
    assert (ending(outcome), int(outcome.iterations)) == ("objective", 3)
    np.testing.assert_array_equal(outcome.objective_trace[:4], whole.objective_trace[:4])
    assert int(ran(stop_objective=between, stop_relative=0.1 * between / unit).iterations) == 3


@pytest.mark.parametrize(("most", "iterations"), [(1, 0), (33, 2), (41, 2), (1000, 3)])
def test_a_trial_ends_when_its_evaluations_are_spent(most, iterations):
    """41 evaluations end iteration 2; the 33rd lies inside it, so that iteration ends there."""
    attack = small_attack(iterations=3, max_evaluations=most)
    ran = run_trial(Trial(attack=attack, victim=victim_of(GRAY8), threshold=1e-4, starts=starts_of(GRAY8)))
    assert ending(ran.outcome) == "iteration-limit"
    assert (int(ran.outcome.iterations), int(ran.outcome.evaluations)) == (iterations, min(most, 61))
    assert np.isfinite(ran.outcome.objective_trace[: iterations + 1]).all()


# --- scales and features ---


def value_at(trial: Trial, candidate) -> float:
    """What the trial minimises, computed anew."""

    def value(x):
        shared = trial.shared()
        return trial.attacker.objective(shared, trial.prepare(shared, job()))(jnp.ravel(x))[0]

    return float(quick_jit(value)(candidate))


def scaled_run(**changes) -> Ran:
    attack = small_attack(solver=LBFGS(inner_steps=10), iterations=3, stop_objective=0.0, **changes)
    return run_trial(Trial(attack=attack, victim=victim_of(GRAY8), threshold=1e-4, starts=starts_of(GRAY8)))


@pytest.fixture(scope="module")
def plain_run() -> Ran:
    return scaled_run()


@pytest.mark.parametrize(
    "changes", [{"scale": "relative"}, {"scale": "per-tensor"}, {"tv": 0.01}, {"logarithm": True}], ids=str
)
def test_what_is_reported_is_the_published_objective(changes):
    """Whatever is minimised: at the last candidate, computed anew, and along the trace."""
    ran = scaled_run(**changes)
    plain = Trial(attack=small_attack(), victim=ran.trial.victim, threshold=1e-4)
    minimised, value = (value_at(trial, ran.outcome.candidate) for trial in (ran.trial, plain))
    assert float(ran.outcome.objective) == pytest.approx(value, rel=1e-9)
    assert abs(minimised / value - 1) > 0.01
    trace = ran.outcome.objective_trace
    assert trace[3] == ran.outcome.objective
    assert np.all(np.diff(trace) < 0)


def test_the_path_does_not_depend_on_the_scale(plain_run):
    relative = scaled_run(scale="relative")
    np.testing.assert_allclose(relative.outcome.objective_trace, plain_run.outcome.objective_trace, rtol=1e-6)
    assert relative_error(relative.outcome.candidate, plain_run.outcome.candidate) < 1e-6


@pytest.mark.parametrize("objective", ["l2", "cosine"])
def test_terms_beside_a_logarithm_weigh_as_shares_of_the_distance(objective):
    """The slope is that of the distance over the distance, plus the term's; at the truth it is a number too."""
    settings = {"plain": {}, "term": {"tv": 0.3}, "logarithm": {"tv": 0.3, "logarithm": True}}
    trials = {
        name: Trial(attack=small_attack(objective=objective, **changes), victim=victim_of(GRAY8), threshold=1e-4)
        for name, changes in settings.items()
    }

    def slopes(image):
        found = {}
        for name, trial in trials.items():
            shared = trial.shared()
            found[name] = trial.attacker.objective(shared, trial.prepare(shared, job()))(jnp.ravel(image))
        return found

    found = jax.tree.map(np.asarray, quick_jit(slopes)(GRAY8.candidate_image))
    (distance, slope), (total, both), (value, by_shares) = (found[name] for name in settings)
    assert value == pytest.approx(np.log(distance) + total - distance, rel=1e-9)
    np.testing.assert_allclose(by_shares, slope / distance + both - slope, rtol=1e-7, atol=1e-9)
    assert all(np.all(np.isfinite(part)) for part in quick_jit(slopes)(GRAY8.image)["logarithm"])


@pytest.mark.parametrize("scale", ["none", "relative", "per-tensor"])
def test_what_is_minimised_is_its_formula(scale):
    """At a candidate and at the truth, from the gradients themselves."""
    trial = Trial(attack=small_attack(scale=scale), victim=victim_of(GRAY8), threshold=1e-4)
    target = jax.nn.one_hot(jnp.array([GRAY8.label]), GRAY8.num_classes)

    def gradients_and_objectives(images):
        shared = trial.shared()
        gradients = [loss_gradient(trial.victim.model, shared.params, image, target) for image in images]
        objective = trial.attacker.objective(shared, trial.prepare(shared, job()))
        return gradients, [objective(jnp.ravel(image)) for image in images]

    images = [GRAY8.candidate_image, GRAY8.image]
    (client, update), ((value, _), (at_truth, slope)) = jax.tree.map(
        np.asarray, quick_jit(gradients_and_objectives)(images)
    )
    errors = [np.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (client, update)), strict=True)]
    norms = [np.sum(leaf**2) for leaf in jax.tree.leaves(update)]
    distance = {
        "none": sum(errors),
        "relative": sum(errors) / sum(norms),
        "per-tensor": np.mean(np.divide(errors, norms)),
    }[scale]
    assert float(value) == pytest.approx(distance, rel=1e-9)
    assert float(at_truth) < 1e-20
    assert np.abs(slope).max() < 1e-9


@pytest.mark.parametrize(("factor", "met"), [(1.001, True), (0.999, False)])
def test_thresholds_mean_the_published_objective(plain_run, factor, met):
    """Just above the published objective at the start, and just below; the one per tensor is below either."""
    limit = factor * float(plain_run.outcome.objective_trace[0])
    attack = small_attack(solver=LBFGS(inner_steps=5), scale="per-tensor", stop_objective=limit)
    trial = Trial(attack=attack, victim=victim_of(GRAY8), threshold=limit, starts=starts_of(GRAY8))
    outcome, minimised = run_trial(trial).outcome, value_at(trial, GRAY8.candidate_image)
    assert minimised < 0.9 * limit
    assert (int(outcome.evaluations) == 1) == met
    assert (int(outcome.threshold_evaluations) == 1) == met


def test_scales_and_weights_are_checked():
    with pytest.raises(InputError, match=r"^`scale` must be one of none, per-tensor, relative; got 'relatve'. Did you"):
        small_attack(scale="relatve")
    with pytest.raises(InputError, match=r"^`tv` must be 0 or above; got -1"):
        small_attack(tv=-1)


# --- where trials start ---


def start_of(which: Job, attack: Attack = DLG, start_seed: int = 0, starts=None, **changes) -> dict[str, np.ndarray]:
    trial = Trial(
        attack=attack, victim=victim_of(GRAY8, **changes), threshold=1e-4, start_seed=start_seed, starts=starts
    )
    return jax.tree.map(np.asarray, trial.attacker.start(trial.shared(), which))


def test_a_start_depends_on_its_seed_and_image_only():
    one = start_of(job(trial=0, slot=0, image=20319, seed=3))
    assert one["image"].shape == (1, 8, 8, 1)
    assert one["label"].shape == (1, 10)
    assert one["image"].dtype == one["label"].dtype == np.float64
    jax.tree.map(np.testing.assert_array_equal, one, start_of(job(trial=9, slot=5, image=20319, seed=3)))
    np.testing.assert_array_equal(one["image"], start_of(job(image=20319, seed=3), IDLG)["image"])
    other = start_of(job(image=20319, seed=3), params=None, network="per-trial", network_seed=4)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "other",
    [(job(image=25, seed=3), 0), (job(image=20319, seed=4), 0), (job(image=20319, seed=3), 1)],
    ids=["image", "seed", "start seed"],
)
def test_other_seeds_and_images_start_elsewhere(other):
    which, start_seed = other
    one, two = start_of(job(image=20319, seed=3)), start_of(which, start_seed=start_seed)
    for name in one:
        assert not np.any(one[name] == two[name])


def test_starts_are_standard_normal():
    trial = Trial(attack=DLG, victim=victim_of(GRAY8), threshold=1e-4)
    shared = trial.shared()
    draw = jax.vmap(lambda seed: trial.attacker.start(shared, job()._replace(seed=seed)))
    starts = quick_jit(draw)(jnp.arange(200))
    for pixels in starts.values():
        assert abs(np.mean(pixels)) < 5 / np.sqrt(pixels.size)  # five standard errors
        assert abs(np.var(pixels) - 1) < 5 * np.sqrt(2 / pixels.size)


def test_given_starts_are_taken_by_seed():
    rng = np.random.default_rng(0)
    starts = {"image": rng.random((4, 1, 8, 8, 1)), "label": rng.random((4, 1, 10))}
    for attack in (DLG, IDLG):
        start = start_of(job(image=5, seed=2), attack, starts=starts)
        assert set(start) == ({"image", "label"} if attack is DLG else {"image"})
        for name in start:
            np.testing.assert_array_equal(start[name], starts[name][2])


# --- whose network ---

JOBS = [(0, 10, 0), (0, 10, 1), (1, 20, 0), (1, 20, 1)]  # slot, image, seed


def two_images(**changes) -> Victim:
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {
        "indices": [10, 20],
        "images": rng.random((2, 8, 8, 1)),
        "labels": np.array([4, 4]),
        "params": None,
    }
    return victim_of(GRAY8, **settings | changes)


def problems(victim: Victim, jobs=JOBS):
    """What `prepare` gives for each of `jobs`, stacked."""
    trial = Trial(attack=IDLG, victim=victim, threshold=1e-4)
    shared = trial.shared()
    stacked = Job(jnp.arange(len(jobs)), *jnp.asarray(jobs).T)
    return quick_jit(jax.vmap(trial.prepare, (None, 0)))(shared, stacked)


def same_network(problem) -> list[list[bool]]:
    kernels = np.asarray(problem.params["conv1"]["kernel"])
    return [[bool(np.array_equal(a, b)) for b in kernels] for a in kernels]


def test_a_shared_network_is_not_copied_into_trials():
    trial = Trial(attack=IDLG, victim=two_images(network="shared"), threshold=1e-4)
    shared = jax.eval_shape(trial.shared)
    assert shared.params["head"]["kernel"].shape == (48, 10)
    assert jax.eval_shape(trial.prepare, shared, job()).params == ()


def test_a_network_per_image():
    problem = problems(two_images(network="per-image"))
    same = [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2
    assert same_network(problem) == same


def test_a_network_per_trial():
    assert same_network(problems(two_images(network="per-trial"))) == np.eye(4, dtype=bool).tolist()


@pytest.mark.parametrize("network", ["per-image", "per-trial"])
def test_a_network_follows_its_seeds_and_image_not_its_slot(network):
    def kernels(victim, jobs):
        return np.asarray(problems(victim, jobs).params["head"]["kernel"])

    victim = two_images(network=network)
    one = kernels(victim, [(0, 10, 5)])
    np.testing.assert_array_equal(one, kernels(victim, [(1, 10, 5)]))
    assert not np.any(one == kernels(two_images(network=network, network_seed=1), [(0, 10, 5)]))


def test_given_networks_per_image_are_taken_by_slot():
    drawn = problems(two_images(network="per-image"), [(0, 10, 0), (1, 20, 0)])
    given = problems(two_images(network="per-image", params=drawn.params))
    np.testing.assert_array_equal(given.params["head"]["bias"], drawn.params["head"]["bias"][np.array([0, 0, 1, 1])])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[2], b[1], rtol=1e-12), given.update, drawn.update)


@pytest.mark.parametrize("network", ["shared", "per-image", "per-trial"])
def test_networks_and_updates_have_the_precision_jax_is_set_to(network):
    trial = Trial(attack=IDLG, victim=two_images(network=network), threshold=1e-4)
    shared = jax.eval_shape(trial.shared)
    problem = jax.eval_shape(trial.prepare, shared, job())
    leaves = jax.tree.leaves((shared.params, problem.params, problem.update))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float64)}


def test_idlg_reads_the_label_of_its_own_image():
    victim = two_images(network="per-trial", labels=np.array([4, 9]))
    np.testing.assert_array_equal(problems(victim).label[:, 0], [4, 4, 9, 9])


def test_starts_are_given_to_single_trials():
    victim, starts = victim_of(GRAY8), starts_of(GRAY8)
    Trial(attack=DLG, victim=victim, threshold=1e-4, starts=starts).check()
    together = replace(DLG, solver=Adam(), group=2)
    Trial(attack=together, victim=victim, threshold=1e-4).check()
    with pytest.raises(InputError, match="`starts` cannot be given to a `group`"):
        Trial(attack=together, victim=victim, threshold=1e-4, starts=starts).check()


def test_what_trials_share_is_what_the_victim_gives_and_the_attack_asks_for():
    """An update that is given, and what the attacker learned of patches."""
    victim = victim_of(GRAY8)
    trial = Trial(attack=IDLG, victim=victim, threshold=1e-4)
    assert trial.start_seed == Sweep(victim=victim, attacks=(IDLG,), seeds=1).start_seed == 0
    shared = trial.shared()
    assert shared.update == shared.mixture == ()
    mixture = PatchMixture(*(np.ones(shape) for shape in ((2,), (2, 3), (2, 3, 3))))
    given = replace(victim, update=victim.params, mixture=mixture)
    shared = replace(trial, victim=given).shared()
    assert shared.mixture == ()
    np.testing.assert_array_equal(shared.update["head"]["bias"], victim.params["head"]["bias"])
    found = replace(trial, victim=given, attack=replace(IDLG, patches=0.1)).shared().mixture
    assert [part.shape for part in found] == [(2,), (2, 3), (2, 3, 3)]


def test_a_network_that_was_trained_on_data_is_taken_as_it_is():
    """Only one that its own images train is trained within the trial, and is the trial's own."""

    def network(**changes):
        trial = Trial(attack=IDLG, victim=victim_of(GRAY8, **changes), threshold=1e-4)
        return quick_jit(lambda: trial.prepare(trial.shared(), job()).params)()

    assert network(trained_steps=2) == network() == ()
    found = network(trained_steps=2, trained_on="own")
    assert np.abs(found["head"]["bias"] - victim_of(GRAY8).params["head"]["bias"]).max() > 1e-6


def test_a_program_of_ours_is_known_by_its_fields_and_no_other():
    class OwnSolver(Adam):
        pass

    class OwnTrial(Trial):
        pass

    fields = {"victim": victim_of(GRAY8), "threshold": 1e-4}
    assert Trial(attack=replace(IDLG, solver=Adam()), **fields).key is not None
    assert Trial(attack=replace(IDLG, solver=OwnSolver()), **fields).key is None
    assert OwnTrial(attack=replace(IDLG, solver=Adam()), **fields).key is None
