"""One trial: one victim, one start, one solver run. There is no trial axis in this file; the engine adds the lanes."""

import functools
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxleak.attacks.attacker import Attacker, Job, Problem, Shared
from jaxleak.attacks.best import resolved
from jaxleak.attacks.candidate import CANDIDATES
from jaxleak.attacks.check import check_attack
from jaxleak.attacks.distances import squared_norm
from jaxleak.attacks.labels import LABEL_STRATEGIES
from jaxleak.attacks.lane_cond import update_if
from jaxleak.attacks.objectives import OBJECTIVES, scale_factors, scaled
from jaxleak.attacks.presets import WEIGHTS, Attack
from jaxleak.attacks.starts import INITS
from jaxleak.errors import InputError
from jaxleak.kernels.llvm import usable
from jaxleak.solvers import SOLVERS
from jaxleak.threat.defences import sparse_mask
from jaxleak.threat.network import draw_params
from jaxleak.threat.observe import observe
from jaxleak.threat.precode import noise_of
from jaxleak.threat.victim import Victim

ENDINGS = ("objective", "iteration-limit", "stalled", "non-finite")
RUNNING = -1  # every other value of `TrialState.ending` is an index into ENDINGS
ENDING = {name: code for code, name in enumerate(ENDINGS)}


class Record(NamedTuple):
    """Values noted at the end of an iteration."""

    value: Float[Array, ""]  # objective at `candidate`
    candidate: Float[Array, "n"]  # flat; the last one at the end of an iteration
    objective_trace: Float[Array, "t"]
    mse_trace: Float[Array, "t"]
    snapshots: Float[Array, "s d ..."]  # pixels


class TrialState(NamedTuple):
    solver: Any
    ending: Int[Array, ""]
    evaluations: Int[Array, ""]
    iterations: Int[Array, ""]
    threshold_iterations: Int[Array, ""]  # -1: not reached
    threshold_evaluations: Int[Array, ""]
    record: Record


class Outcome(NamedTuple):
    """The results of a finished trial."""

    ending: Int[Any, ""]
    evaluations: Int[Any, ""]
    iterations: Int[Any, ""]
    objective: Float[Any, ""]
    update_norm2: Float[Any, ""]  # squared norm of the shared update, of the layers compared
    loss: Float[Any, ""]  # the client's
    threshold_iterations: Int[Any, ""]
    threshold_evaluations: Int[Any, ""]
    label_found: Any  # [d]; where targets are no classes [d, k]
    candidate: Float[Any, "d ..."]  # pixels
    objective_trace: Float[Any, "t"]
    mse_trace: Float[Any, "t"]  # of several images: each with its nearest dummy
    snapshots: Float[Any, "s d ..."]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """The pure functions of one trial, for one attack on one victim.

    Attributes:
        attack: the attack; `best` becomes what it is for the victim.
        victim: the victim.
        threshold: the first iteration with an objective below this is noted (the success criterion's).
        snapshots: iterations whose candidates are kept.
        starts: given starts, d images each, in the units of the network's input: `{"image": [s, d, h, w, c]}` and, for
            label "joint", `{"label": [s, d, k]}`; trial seed s starts at row s. None draws them.
        start_seed: from which starts are drawn.
    """

    attack: Attack
    victim: Victim
    threshold: float
    snapshots: tuple[int, ...] = ()
    starts: dict[str, Any] | None = None
    start_seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "attack", resolved(self.attack, self.victim))

    @functools.cached_property
    def attacker(self) -> Attacker:
        """Who reads the update and measures candidates."""
        return Attacker(attack=self.attack, victim=self.victim)

    @functools.cached_property
    def key(self) -> Hashable | None:
        """Everything that its functions depend on besides their arguments: see `engine.Program`.

        None where a part of it was written elsewhere, and may depend on what no field says.
        """
        ours = type(self) is Trial and type(self.attack.solver) in SOLVERS.values()
        if not ours or self.victim.key is None:
            return None
        # Weights are arguments of the program, which has the terms whose weights are above 0.
        terms: dict[str, Any] = {name: float(getattr(self.attack, name) > 0) for name in WEIGHTS}
        attack, kernels = replace(self.attack, name="", chosen="", **terms), usable(np.zeros((), np.float32))
        named = (  # what the names stand for today
            *(LABEL_STRATEGIES[attack.label], OBJECTIVES[attack.objective], INITS.get(attack.init)),
            CANDIDATES[self.victim.modality],
        )
        return attack, self.victim.key, named, self.threshold, self.snapshots, kernels

    def without_data(self) -> "Trial":
        """The same program without the victim's arrays, for whoever keeps it longer than the run."""
        return replace(self, victim=self.victim.without_data(), starts=None)

    def check(self) -> None:
        """Trace what a trial begins with.

        Raises:
            InputError: this attack cannot be run on this victim.
        """
        check_attack(self.attack, self.victim)
        if self.attack.group > 1 and self.starts is not None:
            raise InputError("`starts` cannot be given to a `group`; leave one of them out.")

        def begin(shared, job):
            return self.attacker.start(shared, job, self.prepare(shared, job))

        zero = jax.ShapeDtypeStruct((), jnp.int32)
        jax.eval_shape(begin, jax.eval_shape(self.shared), Job(zero, zero, zero, zero))

    def shared(self) -> Shared:
        """The arrays every trial needs, in the precision jax is set to."""
        victim = self.victim
        network_key, start_key = jax.random.key(victim.network_seed), jax.random.key(self.start_seed)
        params = victim.params
        if params is None:
            params = draw_params(victim.model, network_key, victim.shape) if victim.network == "shared" else ()
        return Shared(
            images=victim.batches(jnp.asarray(victim.images, float)),
            labels=victim.batches(jnp.asarray(victim.answers)),
            params=jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params),
            network_key=network_key,
            start_key=start_key,
            defence_key=jax.random.key(victim.defence_seed),
            starts=() if self.starts is None else jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self.starts),
            surrogates=jnp.asarray(victim.surrogates, float) if self.attack.init == "surrogate" else (),
            update=() if victim.update is None else jax.tree.map(lambda leaf: jnp.asarray(leaf, float), victim.update),
            weights={name: jnp.asarray(weight, float) for name in WEIGHTS if (weight := getattr(self.attack, name))},
            mixture=jax.tree.map(lambda part: jnp.asarray(part, float), tuple(victim.mixture or ()))
            if self.attack.patches
            else (),
        )

    def prepare(self, shared: Shared, job: Job) -> Problem:
        """This trial's network, its shared update, and what is read from that."""
        attack, victim = self.attack, self.victim
        truth, label = shared.images[job.slot], shared.labels[job.slot]
        params, own = self.network(shared, job)
        x, target = victim.to_input(truth), victim.target_of(truth, label)
        if victim.trained_steps and victim.trained_on == "own":
            params, own = victim.train(params, x, target), True
        update = shared.update
        if victim.update is None:
            update = victim.share(params, x, target, self._defence_key(shared, job))
        update = self.attacker.candidate.compared(update)
        factors = scale_factors(update, attack.scale, attack.layers)
        layers = scale_factors(update, "none", attack.layers)
        masked = attack.knows_defence and attack.objective != "likelihood"  # which knows what entries left out tell
        mask = sparse_mask(victim.defences, update) if masked else ()
        statistics: Any = ()
        if attack.statistics:
            statistics = observe(victim.client_model, params, x, target, victim.client.loss, statistics=True).statistics
            if not statistics:
                raise InputError(
                    f"`statistics` needs a model with BatchNorm; {victim.model_name} has none. Leave it 0."
                )
        noise: Any = ()
        if attack.solver.random:
            noise = jax.random.key_data(self.attacker.noise_key(shared, job))
        return Problem(
            params=params if own else (),
            update=scaled(update, factors),
            factors=factors,
            layers=layers,
            mask=mask,
            norm2=squared_norm(scaled(update, layers)),
            statistics=statistics,
            shared=update if attack.surrogate_model else (),
            noise=noise,
            sample=noise_of(params, update) if self.attacker.reads_noise else (),
            loss=victim.loss(params, x, target),
            truth=truth,
            label=self.attacker.labels(params, update, label),
            book=self.attacker.candidate.book(params),
        )

    def _defence_key(self, shared: Shared, job: Job) -> Array:
        key = jax.random.fold_in(shared.defence_key, job.image)
        own = self.victim.defence_draw == "per-trial" or self.victim.network == "per-trial"
        return jax.random.fold_in(key, job.seed) if own else key

    def network(self, shared: Shared, job: Job) -> tuple[PyTree, bool]:
        """The weights, and whether they are this trial's own."""
        network = self.victim.network
        if network == "shared":
            return shared.params, False
        if shared.params != ():
            return jax.tree.map(lambda leaf: leaf[job.slot], shared.params), True
        key = jax.random.fold_in(shared.network_key, job.image)
        if network == "per-trial":
            key = jax.random.fold_in(key, job.seed)
        return draw_params(self.victim.model, key, self.victim.shape), True

    def init(self, shared: Shared, problem: Problem, job: Job) -> TrialState:
        """The state before the first evaluation."""
        x, _ = ravel_pytree(self.attacker.start(shared, job, problem))
        none = jnp.full((), -1, jnp.int32)
        zero = jnp.zeros((), jnp.int32)
        data = jax.eval_shape(self._data, x[: x.size // self.attack.group], problem.book)
        blank = jnp.full((self.attack.iterations + 1,), jnp.nan, x.dtype)
        return TrialState(
            solver=self.attack.minimiser.init(self.attacker.objective(shared, problem), x),
            ending=jnp.full((), RUNNING, jnp.int32),
            evaluations=zero,
            iterations=zero,
            threshold_iterations=none,
            threshold_evaluations=none,
            record=Record(
                value=jnp.full((), jnp.nan, x.dtype),
                candidate=x[: x.size // self.attack.group],
                objective_trace=blank,
                mse_trace=blank,
                snapshots=jnp.zeros((len(self.snapshots), *data.shape), x.dtype),
            ),
        )

    def step(self, shared: Shared, problem: Problem, state: TrialState) -> TrialState:
        """One step of the solver. An ended trial keeps its outcome, whatever its solver goes on to compute."""
        solver, info = self.attacker.step(shared, problem, state.solver)
        running = state.ending == RUNNING
        evaluations = state.evaluations + jnp.where(running, self.attack.group * info.evaluations, 0)
        finite = jnp.all(jnp.isfinite(info.value)) & jnp.all(jnp.isfinite(info.x))
        # The first evaluation, of the start, is the end of iteration 0.
        boundary_iterations = jnp.where(state.evaluations == 0, 0, state.iterations + info.boundary)
        spent = info.boundary & (boundary_iterations >= self.attack.iterations)
        if self.attack.max_evaluations is not None:
            spent |= evaluations >= self.attack.max_evaluations
        noted = running & (info.boundary | ~finite | info.stalled | spent)
        x, value = self.attacker.reported(noted, shared, problem, info.x, info.value)
        reached = info.boundary & (value < self._stop(problem))
        ending = jnp.select(
            [~finite, reached, info.stalled, spent],
            [ENDING["non-finite"], ENDING["objective"], ENDING["stalled"], ENDING["iteration-limit"]],
            RUNNING,
        )
        # A trial that ends inside an iteration ends that iteration too, at the candidate it reports.
        ends = ending != RUNNING
        iterations = boundary_iterations + (ends & ~info.boundary)
        first = noted & (value < self.threshold) & (state.threshold_iterations < 0)

        row = jnp.where(noted, iterations, self.attack.iterations + 1)  # out of range: dropped
        return TrialState(
            solver=solver,
            ending=jnp.where(running, ending, state.ending).astype(jnp.int32),
            evaluations=evaluations,
            iterations=jnp.where(running, iterations, state.iterations).astype(jnp.int32),
            threshold_iterations=jnp.where(first, iterations, state.threshold_iterations).astype(jnp.int32),
            threshold_evaluations=jnp.where(first, evaluations, state.threshold_evaluations).astype(jnp.int32),
            record=update_if(noted, self._note, state.record, (problem.truth, problem.book, x, value, row)),
        )

    def _stop(self, problem: Problem) -> Array | float:
        """The objective below which a trial ends."""
        attack = self.attack
        if not attack.stop_relative:
            return attack.stop_objective
        unit = problem.norm2 if attack.objective == "l2" else 1.0
        return jnp.maximum(attack.stop_objective, attack.stop_relative * unit)

    def _data(self, flat: Float[Array, "n"], book: PyTree) -> Float[Array, "d ..."]:
        """A flat candidate in the units of the private data."""
        return self.attacker.candidate.to_truth(self.attacker.parts(flat), book)

    def _note(self, record: Record, noted) -> Record:
        """The record with the candidate at the end of an iteration; dropped where `row` is out of range."""
        truth, book, x, value, row = noted
        data = self._data(x, book)
        inside = row <= self.attack.iterations
        snapshots = record.snapshots
        if self.snapshots:
            kept = jnp.asarray(self.snapshots) == row
            place = jnp.where(jnp.any(kept), jnp.argmax(kept), len(self.snapshots))
            snapshots = snapshots.at[place].set(data, mode="drop")
        return Record(
            value=jnp.where(inside, value, record.value),
            candidate=jnp.where(inside, x, record.candidate),
            objective_trace=record.objective_trace.at[row].set(value, mode="drop"),
            mse_trace=record.mse_trace.at[row].set(self.attacker.candidate.error(data, truth), mode="drop"),
            snapshots=snapshots,
        )

    def running(self, state: TrialState) -> Bool[Array, ""]:
        """True while the trial has more to do."""
        return state.ending == RUNNING

    def outcome(self, problem: Problem, state: TrialState) -> Outcome:
        """The results of the trial."""
        record = state.record
        parts, data = self.attacker.parts(record.candidate), self._data(record.candidate, problem.book)
        # The last candidate stands for the iterations that the trial did not come to.
        missed = jnp.asarray(self.snapshots, jnp.int32) > state.iterations
        label_found = self.attacker.candidate.label(parts, data, problem.label)
        return Outcome(
            ending=state.ending,
            evaluations=state.evaluations,
            iterations=state.iterations,
            objective=record.value,
            update_norm2=problem.norm2,
            loss=problem.loss,
            threshold_iterations=state.threshold_iterations,
            threshold_evaluations=state.threshold_evaluations,
            label_found=label_found,
            candidate=data,
            objective_trace=record.objective_trace,
            mse_trace=record.mse_trace,
            snapshots=jnp.where(missed.reshape(-1, *[1] * data.ndim), data, record.snapshots),
        )
