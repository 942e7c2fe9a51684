"""One trial: one victim, one start, one solver run. There is no trial axis in this file; the engine adds the lanes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxleak.attacks import Attack
from jaxleak.inits import INITS
from jaxleak.labels import LABEL_STRATEGIES, head_input
from jaxleak.objectives import OBJECTIVES, factored_gradient, feature_distance, scale_factors, scaled, squared_norm
from jaxleak.seldom import update_if
from jaxleak.stats import ENDINGS
from jaxleak.victim import Victim, draw_params, shared_update

RUNNING = -1  # every other value of `TrialState.ending` is an index into ENDINGS
ENDING = {name: code for code, name in enumerate(ENDINGS)}


class Job(NamedTuple):
    """What distinguishes one trial from another; integers only, so that a queue of jobs is an array.

    Like `Outcome`, it is numpy on the host and traced inside the program.
    """

    trial: Int[Any, ""]  # id within the run
    slot: Int[Any, ""]  # position of the image in the victim
    image: Int[Any, ""]  # index of the image in its data set: keys follow it, not the slot
    seed: Int[Any, ""]  # trial seed


class Shared(NamedTuple):
    """What all trials of a run have in common: passed to the compiled program, never baked into it."""

    images: Float[Array, "i h w c"]
    labels: Int[Array, "i"]
    params: PyTree  # one network, one per image, or () when drawn per image or trial
    network_key: Array
    start_key: Array
    starts: PyTree  # given starts, or ()


class Problem(NamedTuple):
    """What stays the same while one trial runs."""

    params: PyTree  # this trial's network, or () when all share one
    update: PyTree  # the shared gradient, scaled
    factors: PyTree  # by which its tensors are scaled, or ()
    norm2: Float[Array, ""]  # its squared norm, not scaled
    features: PyTree  # the head's input that it gives away, or ()
    truth: Float[Array, "b h w c"]  # for the metrics only: the attack never reads it
    label: Int[Array, "b"]  # the label the attacker works with, unless "joint"


class Record(NamedTuple):
    """What is noted at the end of an iteration."""

    value: Float[Array, ""]  # objective at `candidate`
    candidate: Float[Array, "n"]  # flat; the last one at the end of an iteration
    objective_trace: Float[Array, "t"]
    mse_trace: Float[Array, "t"]
    snapshots: Float[Array, "s b h w c"]


class TrialState(NamedTuple):
    solver: Any
    ending: Int[Array, ""]
    evaluations: Int[Array, ""]
    iterations: Int[Array, ""]
    threshold_iterations: Int[Array, ""]  # -1: not reached
    threshold_evaluations: Int[Array, ""]
    record: Record


class Outcome(NamedTuple):
    """What a finished trial leaves."""

    ending: Int[Any, ""]
    evaluations: Int[Any, ""]
    iterations: Int[Any, ""]
    objective: Float[Any, ""]
    update_norm2: Float[Any, ""]  # squared norm of the shared update
    threshold_iterations: Int[Any, ""]
    threshold_evaluations: Int[Any, ""]
    label_found: Int[Any, "b"]
    candidate: Float[Any, "b h w c"]
    objective_trace: Float[Any, "t"]
    mse_trace: Float[Any, "t"]
    snapshots: Float[Any, "s b h w c"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """The pure functions of one trial, for one attack on one victim.

    Attributes:
        attack: the attack.
        victim: the victim.
        threshold: objective below which the first iteration is noted (the success criterion's).
        snapshots: iterations whose candidates are kept.
        starts: given starts: `{"image": [s, b, h, w, c]}` and, for label "joint", `{"label": [s, b, k]}`; trial
            seed s starts at row s. None draws them.
        start_seed: from which starts are drawn.
    """

    attack: Attack
    victim: Victim
    threshold: float
    snapshots: tuple[int, ...] = ()
    starts: dict[str, Any] | None = None
    start_seed: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        h, w, c = self.victim.images.shape[1:]
        return h, w, c

    @property
    def _candidate_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"image": (1, *self.image_shape)}
        if self.attack.label == "joint":
            shapes["label"] = (1, self.victim.num_classes)
        return shapes

    def _unflatten(self, flat: Float[Array, "n"]) -> dict[str, Array]:
        template = {name: jnp.zeros(shape, flat.dtype) for name, shape in self._candidate_shapes.items()}
        return ravel_pytree(template)[1](flat)

    def shared(self) -> Shared:
        """The arrays every trial needs, in the precision jax is set to."""
        victim = self.victim
        network_key, start_key = jax.random.key(victim.network_seed), jax.random.key(self.start_seed)
        params = victim.params
        if params is None:
            params = draw_params(victim.model, network_key, self.image_shape) if victim.network == "shared" else ()
        return Shared(
            images=jnp.asarray(victim.images, float),
            labels=jnp.asarray(victim.labels),
            params=jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params),
            network_key=network_key,
            start_key=start_key,
            starts=() if self.starts is None else jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self.starts),
        )

    def prepare(self, shared: Shared, job: Job) -> Problem:
        """This trial's network, its shared update, and what is read from that."""
        truth = shared.images[job.slot][None]
        label = shared.labels[job.slot][None]
        params, own = self._network(shared, job)
        update = shared_update(self.victim.model, params, truth, label, self.victim.num_classes)
        read = LABEL_STRATEGIES[self.attack.label]
        found = jnp.zeros_like(label) if read is None else read(update)[None]
        factors = scale_factors(update, self.attack.scale)
        return Problem(
            params=params if own else (),
            update=scaled(update, factors),
            factors=factors,
            norm2=squared_norm(update),
            features=head_input(update) if self.attack.features else (),
            truth=truth,
            label=found,
        )

    def _network(self, shared: Shared, job: Job) -> tuple[PyTree, bool]:
        """The weights, and whether they are this trial's own."""
        network = self.victim.network
        if network == "shared":
            return shared.params, False
        if shared.params != ():
            return jax.tree.map(lambda leaf: leaf[job.slot], shared.params), True
        key = jax.random.fold_in(shared.network_key, job.image)
        if network == "per-trial":
            key = jax.random.fold_in(key, job.seed)
        return draw_params(self.victim.model, key, self.image_shape), True

    def start(self, shared: Shared, job: Job) -> dict[str, Array]:
        """The candidate at iteration 0; the same for every attack, network and run with this image and seed."""
        if shared.starts != ():
            return {name: shared.starts[name][job.seed] for name in self._candidate_shapes}
        key = jax.random.fold_in(jax.random.fold_in(shared.start_key, job.image), job.seed)
        draw = INITS[self.attack.init]
        keys = {"image": jax.random.fold_in(key, 0), "label": jax.random.fold_in(key, 1)}
        return {name: draw(keys[name], shape) for name, shape in self._candidate_shapes.items()}

    def objective(self, shared: Shared, problem: Problem):
        """Value and gradient of what the solver minimises, at a flat candidate."""
        attack, distance = self.attack, OBJECTIVES[self.attack.objective]

        def value(flat):
            gradient = self._gradient(shared, problem, flat)
            total = distance(scaled(gradient, problem.factors), problem.update)
            if attack.features:
                unit = problem.norm2 if attack.scale == "none" else 1.0
                total += attack.features * unit * feature_distance(gradient, problem.features)
            return total

        return jax.value_and_grad(value)

    def _gradient(self, shared: Shared, problem: Problem, flat: Float[Array, "n"]) -> PyTree:
        """The gradient a client with this candidate would share, dense kernels as `Outer`."""
        candidate = self._unflatten(flat)
        if self.attack.label == "joint":
            target = jax.nn.softmax(candidate["label"], axis=-1)
        else:
            target = jax.nn.one_hot(problem.label, self.victim.num_classes, dtype=flat.dtype)
        params = problem.params if problem.params != () else shared.params
        return factored_gradient(self.victim.model, params, candidate["image"], target)

    def _published(self, wanted, shared: Shared, problem: Problem, x, value) -> Float[Array, ""]:
        """The objective as published at the candidate `x`, where the solver's is `value`; undefined unless `wanted`.

        It has to be computed anew only where tensors are scaled differently, or other terms are added: at the end of
        each iteration, or of each step where many lanes run (`seldom.FEW`). That is not counted as an evaluation.
        """
        if not self.attack.features and self.attack.scale in ("none", "relative"):
            factor = 1.0 if problem.factors == () else jax.tree.leaves(problem.factors)[0]
            return value / (factor * factor)

        def compute(_, news):
            shared, problem, x = news
            update = scaled(problem.update, jax.tree.map(lambda factor: 1 / factor, problem.factors))
            return OBJECTIVES[self.attack.objective](self._gradient(shared, problem, x), update)

        return update_if(wanted, compute, value, (shared, problem, x))

    def init(self, shared: Shared, problem: Problem, job: Job) -> TrialState:
        """The state before the first evaluation."""
        x, _ = ravel_pytree(self.start(shared, job))
        none = jnp.full((), -1, jnp.int32)
        zero = jnp.zeros((), jnp.int32)
        blank = jnp.full((self.attack.iterations + 1,), jnp.nan, x.dtype)
        return TrialState(
            solver=self.attack.solver.init(self.objective(shared, problem), x),
            ending=jnp.full((), RUNNING, jnp.int32),
            evaluations=zero,
            iterations=zero,
            threshold_iterations=none,
            threshold_evaluations=none,
            record=Record(
                value=jnp.full((), jnp.nan, x.dtype),
                candidate=x,
                objective_trace=blank,
                mse_trace=blank,
                snapshots=jnp.zeros((len(self.snapshots), *self._candidate_shapes["image"]), x.dtype),
            ),
        )

    def step(self, shared: Shared, problem: Problem, state: TrialState) -> TrialState:
        """One evaluation. An ended trial keeps its outcome, whatever its solver goes on to compute."""
        solver, info = self.attack.solver.step(self.objective(shared, problem), state.solver)
        running = state.ending == RUNNING
        evaluations = state.evaluations + jnp.where(running, info.evaluations, 0)
        finite = jnp.isfinite(info.value) & jnp.all(jnp.isfinite(info.x))
        boundary_iterations = jnp.where(state.evaluations == 0, 0, state.iterations + info.boundary)
        spent = info.boundary & (boundary_iterations >= self.attack.iterations)
        if self.attack.max_evaluations is not None:
            spent |= evaluations >= self.attack.max_evaluations
        noted = running & (info.boundary | ~finite | info.stalled | spent)
        value = self._published(noted, shared, problem, info.x, info.value)
        reached = info.boundary & (value < self.attack.stop_objective)
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
            record=update_if(noted, self._note, state.record, (problem.truth, info.x, value, row)),
        )

    def _note(self, record: Record, noted) -> Record:
        """The record with the candidate at the end of an iteration; dropped where `row` is out of range."""
        truth, x, value, row = noted
        image = self._unflatten(x)["image"]
        inside = row <= self.attack.iterations
        snapshots = record.snapshots
        if self.snapshots:
            kept = jnp.asarray(self.snapshots) == row
            place = jnp.where(jnp.any(kept), jnp.argmax(kept), len(self.snapshots))
            snapshots = snapshots.at[place].set(image, mode="drop")
        return Record(
            value=jnp.where(inside, value, record.value),
            candidate=jnp.where(inside, x, record.candidate),
            objective_trace=record.objective_trace.at[row].set(value, mode="drop"),
            mse_trace=record.mse_trace.at[row].set(jnp.mean(jnp.square(image - truth)), mode="drop"),
            snapshots=snapshots,
        )

    def running(self, state: TrialState) -> Bool[Array, ""]:
        """Whether the trial has more to do."""
        return state.ending == RUNNING

    def outcome(self, problem: Problem, state: TrialState) -> Outcome:
        """What the trial leaves."""
        record = state.record
        candidate = self._unflatten(record.candidate)
        # The last candidate stands for the iterations that the trial did not come to.
        missed = jnp.asarray(self.snapshots, jnp.int32) > state.iterations
        joint = self.attack.label == "joint"
        return Outcome(
            ending=state.ending,
            evaluations=state.evaluations,
            iterations=state.iterations,
            objective=record.value,
            update_norm2=problem.norm2,
            threshold_iterations=state.threshold_iterations,
            threshold_evaluations=state.threshold_evaluations,
            label_found=jnp.argmax(candidate["label"], axis=-1) if joint else problem.label,
            candidate=candidate["image"],
            objective_trace=record.objective_trace,
            mse_trace=record.mse_trace,
            snapshots=jnp.where(missed[:, None, None, None, None], candidate["image"], record.snapshots),
        )
