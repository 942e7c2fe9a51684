"""The attacker: the labels it reads from an update, and the objective its candidates are measured by."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxleak.attacks.bounds import VARIABLES
from jaxleak.attacks.candidate import CANDIDATES, Candidate, Parts
from jaxleak.attacks.closed_forms import Leak
from jaxleak.attacks.labels import LABEL_STRATEGIES, class_gradient, read_bits
from jaxleak.attacks.lane_cond import update_if
from jaxleak.attacks.likelihood import negative_log_likelihood
from jaxleak.attacks.objectives import OBJECTIVES, l1_distance, label_distance, scaled, statistics_distance
from jaxleak.attacks.presets import Attack
from jaxleak.kernels.outer import Outer
from jaxleak.solvers import Context, Info
from jaxleak.threat.client import client_update
from jaxleak.threat.observe import observe
from jaxleak.threat.precode import noise_size, with_noise
from jaxleak.threat.victim import Victim

# The point of the surrogate model is 1/2 + PLACE times its variable: where images move by 0.1, it moves by 0.001.
PLACE = 0.01


class Job(NamedTuple):
    """The four numbers that tell one trial from another. They are integers, so that a queue of jobs is an array.

    Like `Outcome`, it is numpy on the host and traced inside the program.
    """

    trial: Int[Any, ""]  # id within the run
    slot: Int[Any, ""]  # position of the update in the victim
    image: Int[Any, ""]  # index of its first image in the data set: keys follow it, not the slot
    seed: Int[Any, ""]  # trial seed


class Shared(NamedTuple):
    """Arrays that all trials of a run share. The compiled program takes them as arguments and never holds them."""

    images: Float[Array, "u b h w c"]  # pixels
    labels: Array  # [u, b], or targets [u, b, k] where they are no classes
    params: PyTree  # one network, one per update, or () when drawn per update or trial
    network_key: Array
    start_key: Array
    defence_key: Array
    starts: PyTree  # given starts, or ()
    surrogates: PyTree  # an image for each update, or ()
    update: PyTree  # the given update, or ()
    weights: dict[str, Float[Array, ""]]  # of the terms beside the distance, by their names; those above 0
    mixture: PyTree  # of the attacker's own patches, or ()


class Problem(NamedTuple):
    """The constants of one trial: its network, its shared update, and what is read from that."""

    params: PyTree  # this trial's network, or () when all share one
    update: PyTree  # what the client shared, scaled
    factors: PyTree  # by which its tensors are scaled, the layers' weights included, or ()
    layers: PyTree  # the part of them that is the layers' weights, or ()
    mask: PyTree  # 0 where the attacker knows that an entry was left out, or ()
    norm2: Float[Array, ""]  # squared norm of the layers compared, not scaled
    statistics: PyTree  # BatchNorm's, of the client's batch, or ()
    shared: PyTree  # what the client shared, not scaled, where the surrogate model needs it, or ()
    noise: PyTree  # data of the key of the solver's noise, or ()
    sample: PyTree  # the noise within the client's network [1, K], where the attacker reads it, or ()
    loss: Float[Array, ""]  # the client's, before it shared
    truth: Float[Array, "b h w c"]  # pixels, for the metrics only: the attack never reads it
    label: Array  # [d] or [d, k], what the attacker works with, unless "joint"
    book: PyTree  # what candidates are decoded with, or ()


class Values(NamedTuple):
    """The two objectives of a candidate."""

    minimised: Float[Array, "..."]  # by the solver: the distance as the attack scales it, with its other terms
    published: Float[Array, "..."]  # what papers and rows report: the distance without scale or other terms


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacker:
    """An attack on a victim, as pure functions of one trial.

    Attributes:
        attack: the attack.
        victim: the victim: of it the attacker uses model, normalisation and what the client is known to do.
    """

    attack: Attack
    victim: Victim

    @functools.cached_property
    def candidate(self) -> Candidate:
        """The kind of data that is optimised in place of the private data."""
        count = self.attack.dummies or self.victim.batch
        variables = VARIABLES.get(self.attack.bounds)
        kind = CANDIDATES[self.victim.modality].kind(self.attack)
        return kind(self.victim, count, variables, self.copies)

    @property
    def copies(self) -> int:
        """Sets of dummies: one, or one for each pass over a client's images."""
        return self.victim.client.total_passes(self.victim.batch) if self.attack.epoch_consistency else 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parts of one member of the group; label logits are a part if they are optimised."""
        label = self.candidate.label_shape(self.attack)
        labels = {} if label is None else {"label": label}
        place: dict[str, tuple[int, ...]] = {"place": ()} if self.attack.surrogate_model else {}
        size = noise_size(self.victim.attacker_model)
        joint = size and self.attack.knows_defence and not self.reads_noise
        noise = {"noise": (self.copies * self.candidate.count, size)} if joint else {}
        return {**self.candidate.shapes, **labels, **place, **noise}

    @property
    def reads_noise(self) -> bool:
        """True if the noise within the network is read from the update: of one image."""
        known = self.attack.knows_defence and noise_size(self.victim.attacker_model) > 0
        return known and self.victim.batch == self.candidate.count == 1

    def parts(self, flat: Float[Array, "n"], group: int = 1) -> Parts:
        """The parts of a flat candidate; of a group each with a leading axis."""
        lead = () if group == 1 else (group,)
        template = {name: jnp.zeros((*lead, *shape), flat.dtype) for name, shape in self.shapes.items()}
        return ravel_pytree(template)[1](flat)

    # --- before the first step ---

    def key(self, shared: Shared, job: Job) -> Array:
        """The random key of this trial's attacker."""
        return jax.random.fold_in(jax.random.fold_in(shared.start_key, job.image), job.seed)

    def start(self, shared: Shared, job: Job, problem: Problem | None = None) -> Parts:
        """The candidate at iteration 0, in the units of the network's input; a group has a leading axis.

        It is the same for every attack with this `init`, network and run with this image and seed; only
        closed forms read the problem.
        """
        if shared.starts != ():
            return self.candidate.given({name: shared.starts[name][job.seed] for name in self.shapes})

        leak = None
        if problem is not None:
            params = problem.params if problem.params != () else shared.params
            leak = Leak(self._gradient(params, problem.update), params, problem.label)

        def draw(key):
            surrogate: Any = shared.surrogates[job.slot] if self.attack.init == "surrogate" else ()
            start = self.candidate.start(self.attack, jax.random.fold_in(key, 0), surrogate, leak)
            if "label" in self.shapes:
                start["label"] = self.candidate.label_start(self.attack, jax.random.fold_in(key, 1), leak)
            if self.attack.surrogate_model:
                start["place"] = jnp.zeros(())
            if "noise" in self.shapes:
                start["noise"] = jnp.zeros(self.shapes["noise"])
            return start

        key = self.key(shared, job)
        if self.attack.group == 1:
            return draw(key)
        # 0 and 1 are the parts of a single start, 2 the solver's noise.
        keys = jax.vmap(lambda member: jax.random.fold_in(key, member))(jnp.arange(3, 3 + self.attack.group))
        return jax.vmap(draw)(keys)

    def noise_key(self, shared: Shared, job: Job) -> Array:
        """The random key of this trial's solver."""
        return jax.random.fold_in(self.key(shared, job), 2)

    def labels(self, params: PyTree, update: PyTree, label: Array) -> Array:
        """The labels [d] or targets [d, k] the attacker works with, one per dummy; zeros where they are optimised.

        Of text these are the tokens that are predicted, in no order.

        Args:
            params: the network's.
            update: what the client shared.
            label: the true ones, [b] or [b, k].
        """
        attack, victim, count = self.attack, self.victim, self.candidate.count
        if attack.label in ("joint", "text"):
            return jnp.zeros((count, *label.shape[1:]), label.dtype)
        if attack.label == "known":
            return label[jnp.arange(count) % victim.batch]
        strategy = LABEL_STRATEGIES[attack.label]
        assert strategy.read is not None
        update = self._gradient(params, update)
        logits = jnp.zeros((0, victim.num_classes))
        if strategy.needs_network:
            outputs: Any = victim.attacker_model.apply({"params": params}, self.candidate.probes())
            logits = outputs.reshape(-1, victim.num_classes)
        loss, outputs = victim.client.loss, victim.num_classes
        if "bits" in loss.shows(outputs, victim.batch) and strategy.reads_bits:
            return read_bits(strategy, update).astype(label.dtype)[jnp.zeros(count, int)]
        update, logits = class_gradient(update, logits, loss, self._images_of_a_step)
        found = strategy.read(update, self.candidate.labels_read, logits)
        return (victim.target(found) if label.ndim == 2 else found).astype(label.dtype)

    def _gradient(self, params: PyTree, update: PyTree) -> PyTree:
        """The mean gradient; of several local steps about, where they are SGD's and small."""
        client, images = self.victim.client, self.victim.batch
        if client.shares_gradient(images):
            return client.gradient(update, params, images)
        unit = client.length(images)
        return jax.tree.map(lambda leaf: leaf / unit, update)

    @property
    def _images_of_a_step(self) -> int:
        client, images = self.victim.client, self.victim.batch // self.victim.client.clients
        return client.batch or images * self.candidate.labels_read // self.candidate.count

    # --- in every step ---

    def step(self, shared: Shared, problem: Problem, state: Any) -> tuple[Any, Info]:
        """One step of the solver."""
        attack, solver, group = self.attack, self.attack.minimiser, self.attack.group

        def project(flat):
            parts = self.candidate.project(self.parts(flat, group))
            if attack.surrogate_model:
                parts["place"] = jnp.clip(parts["place"], -0.5 / PLACE, 0.5 / PLACE)
            return ravel_pytree(parts)[0]

        context = Context(
            horizon=self.attack.iterations,
            project=project if self.attack.bounds == "projection" else None,
            key=jax.random.wrap_key_data(problem.noise) if solver.random else None,
        )
        return solver.step(self.objective(shared, problem), state, context)

    def objective(self, shared: Shared, problem: Problem):
        """Value and gradient of what the solver minimises, at a flat candidate.

        A solver that only passes the value on is given the published objective (of each member of a group).
        """

        def total(flat) -> tuple[Array, Array]:
            parts = self.parts(flat, self.attack.group)
            if self.attack.group == 1:
                return self.values(shared, problem, parts)
            members = jax.vmap(lambda member: self.values(shared, problem, member))(parts)
            minimised = jnp.sum(members.minimised)
            if "consistency" in shared.weights:
                apart = self.candidate.disagreement(parts, self.attack.register)
                minimised += shared.weights["consistency"] * apart
            return minimised, members.published

        if not self.attack.solver.passes_value_on:
            return jax.value_and_grad(lambda flat: total(flat)[0])

        def published(flat):
            (_, value), gradient = jax.value_and_grad(total, has_aux=True)(flat)
            return value, gradient

        return published

    def values(self, shared: Shared, problem: Problem, parts: Parts) -> Values:
        """Both objectives of one member."""
        attack, weights, target = self.attack, shared.weights, self._target(problem, parts)
        gradient, logits, statistics = self._observe(shared, problem, parts, target)
        # How far is what a client with this candidate would share from what the client shared?
        if attack.objective == "likelihood":
            matched = negative_log_likelihood(gradient, problem.update, self.victim.defences)
        else:
            matched = OBJECTIVES[attack.objective](scaled(gradient, problem.factors), problem.update)
        total = jnp.log(jnp.maximum(matched, self._lost(problem))) if attack.logarithm else matched
        if "l1" in weights:
            layers = getattr(self.victim.model, "layers", ())
            total += weights["l1"] * l1_distance(scaled(gradient, problem.factors), problem.update, layers)
        if "label_term" in weights:
            total += weights["label_term"] * label_distance(logits, target)
        for prior in self.candidate.priors(weights, parts, shared.mixture):
            total += prior
        if "statistics" in weights:
            total += weights["statistics"] * statistics_distance(statistics, problem.statistics)
        return Values(total, self._unscaled(problem, matched, gradient))

    def published(self, wanted, shared: Shared, problem: Problem, x, value) -> Float[Array, "..."]:
        """The published objective at the candidate `x`, where the solver's is `value`; undefined unless `wanted`.

        It has to be computed anew only where tensors are scaled differently, or other terms are added: at the end of
        each iteration, or of each step where many lanes run (`lane_cond.FEW`). That is not counted as an evaluation.
        """
        if self.attack.solver.passes_value_on:
            return value
        if self.attack.published_as_it_is:
            return self._unscaled(problem, value, ())

        def compute(_, news):
            shared, problem, x = news
            return self.values(shared, problem, self.parts(x)).published

        return update_if(wanted, compute, value, (shared, problem, x))

    def reported(self, wanted, shared: Shared, problem: Problem, x, value) -> tuple[Float[Array, "n"], Array]:
        """The candidate that a trial reports, and its published objective; undefined unless `wanted`.

        Of a group the member with the lowest objective, or the members' mean: each weighs by (lowest objective / its
        own)^2. The objective of the mean is computed anew, and not counted as an evaluation.
        """
        value = self.published(wanted, shared, problem, x, value)
        if self.attack.group == 1:
            return x, value
        members, ranked = self.parts(x, self.attack.group), jnp.where(jnp.isfinite(value), value, jnp.inf)
        best = jnp.argmin(ranked)
        if not self.attack.group_mean:
            return ravel_pytree(jax.tree.map(lambda leaf: leaf[best], members))[0], value[best]
        weights = jnp.where(ranked > ranked[best], jnp.square(ranked[best] / ranked), 1)
        weights = weights / jnp.sum(weights)
        mean = ravel_pytree(jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), members))[0]

        def compute(_, news):
            shared, problem, mean = news
            return self.values(shared, problem, self.parts(mean)).published

        return mean, update_if(wanted, compute, value[best], (shared, problem, mean))

    def _target(self, problem: Problem, parts: Parts) -> Float[Array, "d k"]:
        if "label" in parts:
            return self.victim.client.loss.decode(parts["label"])
        return self.candidate.target(parts, jnp.concatenate([problem.label] * self.copies))

    def _observe(self, shared: Shared, problem: Problem, parts: Parts, target):
        """The gradient or update that a client with this input would share; its outputs and statistics if asked for."""
        attack, victim, model = self.attack, self.victim, self.victim.attacker_model
        params, x = problem.params if problem.params != () else shared.params, self.candidate.to_input(parts)
        if self.reads_noise or "noise" in parts:
            model = with_noise(model, problem.sample if self.reads_noise else parts["noise"])
        if "place" in parts:
            share = 0.5 + PLACE * parts["place"]
            params = jax.tree.map(lambda before, fell: before - share * fell, params, problem.shared)
            gradient, logits, statistics = observe(model, params, x, target, victim.client.loss)
        elif victim.client.trains or victim.client.clients > 1:  # each client's BatchNorm sees its own images
            gradient: PyTree = client_update(victim.attacker_client, model, params, x, target, self.copies)
            logits: Any = model.apply({"params": params}, x) if attack.label_term else ()
            statistics: PyTree = ()
        else:
            loss, wanted = victim.client.loss, attack.statistics > 0
            gradient, logits, statistics = observe(model, params, x, target, loss, statistics=wanted)
        if problem.mask != ():
            gradient = jax.tree.map(
                lambda leaf, mask: mask * (leaf.build() if isinstance(leaf, Outer) else leaf),
                gradient,
                problem.mask,
                is_leaf=lambda leaf: isinstance(leaf, Outer),
            )
        return self.candidate.compared(gradient), logits, statistics

    def _lost(self, problem: Problem) -> Array:
        """Distances below this are lost in rounding."""
        in_units = self.attack.objective == "l2" and self.attack.scale == "none"
        return float(jnp.finfo(problem.norm2.dtype).eps) * (problem.norm2 if in_units else jnp.ones_like(problem.norm2))

    def _unscaled(self, problem: Problem, matched, gradient: PyTree) -> Float[Array, ""]:
        """The objective without scale or other terms, from the scaled one or anew."""
        attack = self.attack
        if attack.scale == "none" or (attack.scale == "relative" and attack.objective == "cosine"):
            return matched
        if attack.scale == "relative":
            return matched * jnp.where(problem.norm2 > 0, problem.norm2, 1)

        def weighted(leaf, factor, layer):
            return leaf / jnp.where(factor > 0, factor, 1) * layer

        ones = jax.tree.map(jnp.ones_like, problem.factors)
        update = jax.tree.map(weighted, problem.update, problem.factors, problem.layers or ones)
        return OBJECTIVES[attack.objective](scaled(gradient, problem.layers), update)
