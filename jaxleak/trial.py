"""One trial: one victim, one start, one solver run. There is no trial axis in this file; the engine adds the lanes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxleak.analytic import recover_image
from jaxleak.attacks import Attack
from jaxleak.client import client_update
from jaxleak.defences import sparse_mask
from jaxleak.dense import Outer
from jaxleak.errors import InputError
from jaxleak.inits import draw_start
from jaxleak.labels import LABEL_STRATEGIES, head_input, probe_images
from jaxleak.objectives import (
    OBJECTIVES,
    cross_entropy,
    feature_distance,
    label_distance,
    observe,
    scale_factors,
    scaled,
    squared_norm,
    statistics_distance,
)
from jaxleak.priors import consistency, norm_prior, total_variation
from jaxleak.seldom import update_if
from jaxleak.solvers import Adam, NoSolver
from jaxleak.stats import ENDINGS
from jaxleak.victim import Victim, draw_params

RUNNING = -1  # every other value of `TrialState.ending` is an index into ENDINGS
ENDING = {name: code for code, name in enumerate(ENDINGS)}


class Job(NamedTuple):
    """What distinguishes one trial from another; integers only, so that a queue of jobs is an array.

    Like `Outcome`, it is numpy on the host and traced inside the program.
    """

    trial: Int[Any, ""]  # id within the run
    slot: Int[Any, ""]  # position of the update in the victim
    image: Int[Any, ""]  # index of its first image in the data set: keys follow it, not the slot
    seed: Int[Any, ""]  # trial seed


class Shared(NamedTuple):
    """What all trials of a run have in common: passed to the compiled program, never baked into it."""

    images: Float[Array, "u b h w c"]  # pixels
    labels: Int[Array, "u b"]
    params: PyTree  # one network, one per update, or () when drawn per update or trial
    network_key: Array
    start_key: Array
    defence_key: Array
    starts: PyTree  # given starts, or ()
    surrogates: PyTree  # an image for each update, or ()


class Problem(NamedTuple):
    """What stays the same while one trial runs."""

    params: PyTree  # this trial's network, or () when all share one
    update: PyTree  # what the client shared, scaled
    factors: PyTree  # by which its tensors are scaled, the layers' weights included, or ()
    layers: PyTree  # the part of them that is the layers' weights, or ()
    mask: PyTree  # 0 where the attacker knows that an entry was left out, or ()
    norm2: Float[Array, ""]  # squared norm of the layers compared, not scaled
    features: PyTree  # the head's input that it gives away, or ()
    statistics: PyTree  # BatchNorm's, of the client's batch, or ()
    noise: PyTree  # data of the key of the solver's noise, or ()
    loss: Float[Array, ""]  # the client's, before it shared
    truth: Float[Array, "b h w c"]  # pixels, for the metrics only: the attack never reads it
    label: Int[Array, "d"]  # the labels the attacker works with, unless "joint"


class Record(NamedTuple):
    """What is noted at the end of an iteration."""

    value: Float[Array, ""]  # objective at `candidate`
    candidate: Float[Array, "n"]  # flat; the last one at the end of an iteration
    objective_trace: Float[Array, "t"]
    mse_trace: Float[Array, "t"]
    snapshots: Float[Array, "s d h w c"]  # pixels


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
    update_norm2: Float[Any, ""]  # squared norm of the shared update, of the layers compared
    loss: Float[Any, ""]  # the client's
    threshold_iterations: Int[Any, ""]
    threshold_evaluations: Int[Any, ""]
    label_found: Int[Any, "d"]
    candidate: Float[Any, "d h w c"]  # pixels
    objective_trace: Float[Any, "t"]
    mse_trace: Float[Any, "t"]  # of several images: each with its nearest dummy
    snapshots: Float[Any, "s d h w c"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """The pure functions of one trial, for one attack on one victim.

    Attributes:
        attack: the attack.
        victim: the victim.
        threshold: objective below which the first iteration is noted (the success criterion's).
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        h, w, c = self.victim.images.shape[1:]
        return h, w, c

    @property
    def dummies(self) -> int:
        """Images that are optimised."""
        return self.attack.dummies or self.victim.batch

    @property
    def _candidate_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one member of the group."""
        shapes: dict[str, tuple[int, ...]] = {"image": (self.dummies, *self.image_shape)}
        if self.attack.label == "joint":
            shapes["label"] = (self.dummies, self.victim.num_classes)
        return shapes

    def _unflatten(self, flat: Float[Array, "n"], group: int = 1) -> dict[str, Array]:
        lead = () if group == 1 else (group,)
        template = {name: jnp.zeros((*lead, *shape), flat.dtype) for name, shape in self._candidate_shapes.items()}
        return ravel_pytree(template)[1](flat)

    def check(self) -> None:
        """Trace what a trial begins with.

        Raises:
            InputError: this attack cannot be run on this victim.
        """
        check_attack(self.attack, self.victim)
        if self.attack.group > 1 and self.starts is not None:
            raise InputError("`starts` cannot be given to a `group`; leave one of them out.")

        def begin(shared, job):
            return self.start(shared, job, self.prepare(shared, job))

        zero = jax.ShapeDtypeStruct((), jnp.int32)
        jax.eval_shape(begin, jax.eval_shape(self.shared), Job(zero, zero, zero, zero))

    def shared(self) -> Shared:
        """The arrays every trial needs, in the precision jax is set to."""
        victim = self.victim
        network_key, start_key = jax.random.key(victim.network_seed), jax.random.key(self.start_seed)
        params = victim.params
        if params is None:
            params = draw_params(victim.model, network_key, self.image_shape) if victim.network == "shared" else ()
        return Shared(
            images=jnp.asarray(victim.images, float).reshape(victim.updates, victim.batch, *self.image_shape),
            labels=jnp.asarray(victim.labels).reshape(victim.updates, victim.batch),
            params=jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params),
            network_key=network_key,
            start_key=start_key,
            defence_key=jax.random.key(victim.defence_seed),
            starts=() if self.starts is None else jax.tree.map(lambda leaf: jnp.asarray(leaf, float), self.starts),
            surrogates=jnp.asarray(victim.surrogates, float) if self.attack.init == "surrogate" else (),
        )

    def prepare(self, shared: Shared, job: Job) -> Problem:
        """This trial's network, its shared update, and what is read from that."""
        attack, victim = self.attack, self.victim
        truth, label = shared.images[job.slot], shared.labels[job.slot]
        params, own = self._network(shared, job)
        x, target = victim.to_input(truth), jax.nn.one_hot(label, victim.num_classes, dtype=truth.dtype)
        if victim.trained_steps and victim.trained_on == "own":
            params, own = victim.train(params, x, target), True
        update = victim.share(params, x, target, self._defence_key(shared, job))
        factors = scale_factors(update, attack.scale, attack.layers)
        layers = scale_factors(update, "none", attack.layers)
        mask = sparse_mask(victim.defences, update) if attack.knows_defence else ()
        statistics: Any = ()
        if attack.statistics:
            statistics = observe(victim.model, params, x, target, statistics=True).statistics
            if not statistics:
                raise InputError(
                    f"`statistics` needs a model with BatchNorm; {victim.model_name} has none. Leave it 0."
                )
        noise: Any = ()
        if isinstance(attack.solver, Adam) and attack.solver.langevin:
            noise = jax.random.key_data(jax.random.fold_in(self._start_key(shared, job), 2))
        return Problem(
            params=params if own else (),
            update=scaled(update, factors),
            factors=factors,
            layers=layers,
            mask=mask,
            norm2=squared_norm(scaled(update, layers)),
            features=head_input(update) if attack.features else (),
            statistics=statistics,
            noise=noise,
            loss=cross_entropy(victim.model.apply({"params": params}, x), target),
            truth=truth,
            label=self._labels(params, update, label),
        )

    def _labels(self, params: PyTree, update: PyTree, label: Int[Array, "b"]) -> Int[Array, "d"]:
        """The labels the attacker works with, one per dummy; zeros where they are optimised."""
        attack, victim, count = self.attack, self.victim, self.dummies
        if attack.label == "joint":
            return jnp.zeros(count, label.dtype)
        if attack.label == "known":
            return label[jnp.arange(count) % victim.batch]
        read = LABEL_STRATEGIES[attack.label]
        assert read is not None
        if victim.client.trains:  # about the mean gradient, where the steps are SGD's and small
            unit = victim.client.lr * victim.client.total_steps(victim.batch)
            update = jax.tree.map(lambda leaf: leaf / unit, update)
        probes = victim.to_input(probe_images(jax.random.key(0), self.image_shape))
        return read(update, count, victim.model.apply({"params": params}, probes)).astype(label.dtype)

    def _defence_key(self, shared: Shared, job: Job) -> Array:
        key = jax.random.fold_in(shared.defence_key, job.image)
        own = self.victim.defence_draw == "per-trial" or self.victim.network == "per-trial"
        return jax.random.fold_in(key, job.seed) if own else key

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

    def _start_key(self, shared: Shared, job: Job) -> Array:
        return jax.random.fold_in(jax.random.fold_in(shared.start_key, job.image), job.seed)

    def start(self, shared: Shared, job: Job, problem: Problem | None = None) -> dict[str, Array]:
        """The candidate at iteration 0, in the units of the network's input; a group has a leading axis.

        It is the same for every attack with this `init`, network and run with this image and seed; only "analytic"
        reads the problem.
        """
        if shared.starts != ():
            return {name: shared.starts[name][job.seed] for name in self._candidate_shapes}
        key = self._start_key(shared, job)
        if self.attack.group == 1:
            return self._draw(shared, job, key, problem)
        keys = jax.vmap(lambda member: jax.random.fold_in(key, member))(jnp.arange(3, 3 + self.attack.group))
        return jax.vmap(lambda key: self._draw(shared, job, key, problem))(keys)

    def _draw(self, shared: Shared, job: Job, key: Array, problem: Problem | None) -> dict[str, Array]:
        init, shapes = self.attack.init, self._candidate_shapes
        if init == "analytic":
            assert problem is not None
            start = {"image": recover_image(problem.update, self.image_shape)}
        else:
            surrogate = shared.surrogates[job.slot] if init == "surrogate" else ()
            image = draw_start(init, jax.random.fold_in(key, 0), shapes["image"], surrogate)
            start = {"image": image if init == "normal" else self.victim.to_input(image)}
        if "label" in shapes:
            start["label"] = jax.random.normal(jax.random.fold_in(key, 1), shapes["label"], float)
        return start

    @property
    def _reports(self) -> bool:
        """Whether the solver only passes the objective's value on: then it is given the published one."""
        return isinstance(self.attack.solver, Adam | NoSolver)

    def objective(self, shared: Shared, problem: Problem):
        """Value and gradient of what the solver minimises, at a flat candidate.

        For a solver that only reports the value, it is the published objective (of each member of a group).
        """

        def total(flat):
            candidate = self._unflatten(flat, self.attack.group)
            if self.attack.group == 1:
                return self._terms(shared, problem, candidate)
            totals, published = jax.vmap(lambda member: self._terms(shared, problem, member))(candidate)
            agree = consistency(candidate["image"]) if self.attack.consistency else 0.0
            return jnp.sum(totals) + self.attack.consistency * agree, published

        if self._reports:

            def reported(flat):
                (_, published), gradient = jax.value_and_grad(total, has_aux=True)(flat)
                return published, gradient

            return reported
        return jax.value_and_grad(lambda flat: total(flat)[0])

    def _terms(self, shared: Shared, problem: Problem, candidate: dict[str, Array]):
        """What is minimised, and the published objective, of one member."""
        attack = self.attack
        image, target = candidate["image"], self._target(problem, candidate)
        gradient, logits, statistics = self._observe(shared, problem, image, target)
        matched = OBJECTIVES[attack.objective](scaled(gradient, problem.factors), problem.update)
        total = matched
        if attack.features:
            plain = attack.scale == "none" and attack.objective == "l2"
            total += attack.features * (problem.norm2 if plain else 1.0) * feature_distance(gradient, problem.features)
        if attack.label_term:
            total += attack.label_term * label_distance(logits, target)
        if attack.tv:
            total += attack.tv * total_variation(image)
        if attack.norm:
            total += attack.norm * norm_prior(image)
        if attack.statistics:
            total += attack.statistics * statistics_distance(statistics, problem.statistics)
        return total, self._as_published(problem, matched, gradient)

    def _as_published(self, problem: Problem, matched, gradient: PyTree) -> Float[Array, ""]:
        """The objective without scale or other terms, from the scaled one or anew."""
        attack = self.attack
        if attack.scale == "none" or (attack.scale == "relative" and attack.objective == "cosine"):
            return matched
        if attack.scale == "relative":
            return matched * jnp.where(problem.norm2 > 0, problem.norm2, 1)

        def weighted(leaf, factor, layer):
            return jnp.where(factor > 0, leaf / jnp.where(factor > 0, factor, 1), 0) * layer

        ones = jax.tree.map(jnp.ones_like, problem.factors)
        update = jax.tree.map(weighted, problem.update, problem.factors, problem.layers or ones)
        return OBJECTIVES[attack.objective](scaled(gradient, problem.layers), update)

    def _target(self, problem: Problem, candidate: dict[str, Array]) -> Float[Array, "d k"]:
        if self.attack.label == "joint":
            return jax.nn.softmax(candidate["label"], axis=-1)
        return jax.nn.one_hot(problem.label, self.victim.num_classes, dtype=candidate["image"].dtype)

    def _observe(self, shared: Shared, problem: Problem, image: Float[Array, "d h w c"], target):
        """What a client with these images would share, its outputs and statistics where they are asked for."""
        attack, victim = self.attack, self.victim
        params = problem.params if problem.params != () else shared.params
        if victim.client.trains or victim.client.clients > 1:  # each client's BatchNorm sees its own images
            gradient: PyTree = client_update(victim.client, victim.model, params, image, target)
            logits = victim.model.apply({"params": params}, image) if attack.label_term else ()
            statistics: PyTree = ()
        else:
            gradient, logits, statistics = observe(
                victim.model, params, image, target, statistics=attack.statistics > 0
            )
        if problem.mask != ():
            gradient = jax.tree.map(
                lambda leaf, mask: mask * (leaf.build() if isinstance(leaf, Outer) else leaf),
                gradient,
                problem.mask,
                is_leaf=lambda leaf: isinstance(leaf, Outer),
            )
        return gradient, logits, statistics

    def _published(self, wanted, shared: Shared, problem: Problem, x, value) -> Float[Array, "..."]:
        """The objective as published at the candidate `x`, where the solver's is `value`; undefined unless `wanted`.

        It has to be computed anew only where tensors are scaled differently, or other terms are added: at the end of
        each iteration, or of each step where many lanes run (`seldom.FEW`). That is not counted as an evaluation.
        """
        if self._reports:
            return value
        if self.attack.published_as_it_is:
            return self._as_published(problem, value, ())

        def compute(_, news):
            shared, problem, x = news
            return self._terms(shared, problem, self._unflatten(x))[1]

        return update_if(wanted, compute, value, (shared, problem, x))

    def _project(self, flat: Float[Array, "n"]) -> Float[Array, "n"]:
        """The candidate with its pixels cut to [0, 1]."""
        candidate = self._unflatten(flat, self.attack.group)
        low, high = (self.victim.to_input(jnp.full(self.image_shape[-1:], end, flat.dtype)) for end in (0, 1))
        return ravel_pytree({**candidate, "image": jnp.clip(candidate["image"], low, high)})[0]

    def _solve(self, shared: Shared, problem: Problem, state: Any):
        """One step of the solver."""
        solver, fun = self.attack.solver, self.objective(shared, problem)
        if not isinstance(solver, Adam):
            return solver.step(fun, state)
        key = jax.random.wrap_key_data(problem.noise) if solver.langevin else None
        project = self._project if self.attack.box else None
        return solver.step(fun, state, horizon=self.attack.iterations, project=project, key=key)

    def _best(self, x: Float[Array, "n"], value):
        """The member of the group with the lowest objective, and that."""
        if self.attack.group == 1:
            return x, value
        best = jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf))
        candidate = self._unflatten(x, self.attack.group)
        return ravel_pytree(jax.tree.map(lambda leaf: leaf[best], candidate))[0], value[best]

    def init(self, shared: Shared, problem: Problem, job: Job) -> TrialState:
        """The state before the first evaluation."""
        x, _ = ravel_pytree(self.start(shared, job, problem))
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
                candidate=x[: x.size // self.attack.group],
                objective_trace=blank,
                mse_trace=blank,
                snapshots=jnp.zeros((len(self.snapshots), *self._candidate_shapes["image"]), x.dtype),
            ),
        )

    def step(self, shared: Shared, problem: Problem, state: TrialState) -> TrialState:
        """One evaluation. An ended trial keeps its outcome, whatever its solver goes on to compute."""
        solver, info = self._solve(shared, problem, state.solver)
        running = state.ending == RUNNING
        evaluations = state.evaluations + jnp.where(running, info.evaluations, 0)
        finite = jnp.all(jnp.isfinite(info.value)) & jnp.all(jnp.isfinite(info.x))
        boundary_iterations = jnp.where(state.evaluations == 0, 0, state.iterations + info.boundary)
        spent = info.boundary & (boundary_iterations >= self.attack.iterations)
        if self.attack.max_evaluations is not None:
            spent |= evaluations >= self.attack.max_evaluations
        noted = running & (info.boundary | ~finite | info.stalled | spent)
        x, value = self._best(info.x, self._published(noted, shared, problem, info.x, info.value))
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
            record=update_if(noted, self._note, state.record, (problem.truth, x, value, row)),
        )

    def _note(self, record: Record, noted) -> Record:
        """The record with the candidate at the end of an iteration; dropped where `row` is out of range."""
        truth, x, value, row = noted
        image = self.victim.to_pixels(self._unflatten(x)["image"])
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
            mse_trace=record.mse_trace.at[row].set(_nearest_mse(image, truth), mode="drop"),
            snapshots=snapshots,
        )

    def running(self, state: TrialState) -> Bool[Array, ""]:
        """Whether the trial has more to do."""
        return state.ending == RUNNING

    def outcome(self, problem: Problem, state: TrialState) -> Outcome:
        """What the trial leaves."""
        record = state.record
        candidate = self._unflatten(record.candidate)
        image = self.victim.to_pixels(candidate["image"])
        # The last candidate stands for the iterations that the trial did not come to.
        missed = jnp.asarray(self.snapshots, jnp.int32) > state.iterations
        joint = self.attack.label == "joint"
        return Outcome(
            ending=state.ending,
            evaluations=state.evaluations,
            iterations=state.iterations,
            objective=record.value,
            update_norm2=problem.norm2,
            loss=problem.loss,
            threshold_iterations=state.threshold_iterations,
            threshold_evaluations=state.threshold_evaluations,
            label_found=jnp.argmax(candidate["label"], axis=-1) if joint else problem.label,
            candidate=image,
            objective_trace=record.objective_trace,
            mse_trace=record.mse_trace,
            snapshots=jnp.where(missed[:, None, None, None, None], image, record.snapshots),
        )


def _nearest_mse(images: Float[Array, "d h w c"], truth: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Mean squared error, each true image with the dummy nearest to it."""
    if len(images) == len(truth) == 1:
        return jnp.mean(jnp.square(images - truth))
    errors = jax.vmap(lambda true: jnp.mean(jnp.square(images - true), axis=(1, 2, 3)))(truth)
    return jnp.mean(jnp.min(errors, axis=1))


def check_attack(attack: Attack, victim: Victim) -> None:
    """Raise where the attack makes no sense against the victim.

    Raises:
        InputError: with the reason.
    """
    dummies = attack.dummies or victim.batch
    one_gradient = victim.batch == dummies == 1 and not victim.client.trains
    if attack.features and not one_gradient:
        raise InputError(
            "`features` reads the head's input from the gradient of one image; leave it 0 with --batch, --dummies or "
            "local steps."
        )
    if attack.init == "analytic" and not one_gradient:
        raise InputError("`attack` analytic reads one image from one gradient; use --batch 1 and no local steps.")
    if attack.init == "surrogate" and victim.surrogates is None:
        raise InputError(
            "`start` surrogate needs an image of the data set that is not attacked; attack fewer, or give the victim "
            "`surrogates`."
        )
    if attack.statistics and (victim.client.trains or victim.client.clients > 1):
        raise InputError(
            "`statistics` are those of one batch and one step; leave it 0 with local steps or several clients."
        )
    sparse = [place for place, defence in enumerate(victim.defences) if defence.sparse]
    if attack.knows_defence and not (sparse and not any(one.random for one in victim.defences[sparse[0] :])):
        raise InputError(
            "`knows_defence` leaves out the entries that a defence set to zero; give one of prune, prune-layer, top-k, "
            "with no noise after it."
        )
    victim.client.check(dummies)
    if victim.client.total_steps(dummies) != victim.client.total_steps(victim.batch):
        raise InputError(
            f"`dummies` must make as many local steps as the client's {victim.batch} images in `client_epochs`; "
            f"got {dummies}. Use as many, or --client-steps."
        )
