"""The attacker: the labels it reads from an update, and the objective its candidates are measured by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from jaxleak.attacks.labels import LABEL_STRATEGIES, probe_images
from jaxleak.attacks.lane_cond import update_if
from jaxleak.attacks.objectives import OBJECTIVES, feature_distance, label_distance, scaled, statistics_distance
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.priors import consistency, norm_prior, total_variation
from jaxleak.errors import InputError
from jaxleak.kernels.outer import Outer
from jaxleak.solvers import Context
from jaxleak.threat.client import client_update
from jaxleak.threat.loss import CROSS_ENTROPY
from jaxleak.threat.observe import observe
from jaxleak.threat.victim import Victim

STOPS = 1e-8  # share of an update's squared norm


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
    update: PyTree  # the given update, or ()


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacker:
    """An attack on a victim, as pure functions of one trial.

    Attributes:
        attack: the attack.
        victim: the victim: of it the attacker uses model, normalisation and what the client is known to do.
    """

    attack: Attack
    victim: Victim

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

    def _labels(self, params: PyTree, update: PyTree, label: Int[Array, "b"]) -> Int[Array, "d"]:
        """The labels the attacker works with, one per dummy; zeros where they are optimised."""
        attack, victim, count = self.attack, self.victim, self.dummies
        if attack.label == "joint":
            return jnp.zeros(count, label.dtype)
        if attack.label == "known":
            return label[jnp.arange(count) % victim.batch]
        strategy = LABEL_STRATEGIES[attack.label]
        assert strategy.read is not None
        if victim.client.trains:  # about the mean gradient, where the steps are SGD's and small
            unit = victim.client.lr * victim.client.total_steps(victim.batch)
            update = jax.tree.map(lambda leaf: leaf / unit, update)
        logits = jnp.zeros((0, victim.num_classes))
        if strategy.needs_network:
            probes = victim.to_input(probe_images(jax.random.key(0), self.image_shape))
            logits: Any = victim.attacker_model.apply({"params": params}, probes)
        return strategy.read(update, count, logits).astype(label.dtype)

    def objective(self, shared: Shared, problem: Problem):
        """Value and gradient of what the solver minimises, at a flat candidate.

        A solver that only passes the value on is given the published objective (of each member of a group).
        """

        def total(flat):
            candidate = self._unflatten(flat, self.attack.group)
            if self.attack.group == 1:
                return self._terms(shared, problem, candidate)
            totals, published = jax.vmap(lambda member: self._terms(shared, problem, member))(candidate)
            agree = consistency(candidate["image"]) if self.attack.consistency else 0.0
            return jnp.sum(totals) + self.attack.consistency * agree, published

        if self.attack.solver.passes_value_on:

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
            return self.victim.client.loss.decode(candidate["label"])
        return self.victim.target(problem.label, candidate["image"].dtype)

    def _observe(self, shared: Shared, problem: Problem, image: Float[Array, "d h w c"], target):
        """What a client with these images would share, its outputs and statistics where they are asked for."""
        attack, victim, model = self.attack, self.victim, self.victim.attacker_model
        params = problem.params if problem.params != () else shared.params
        if victim.client.trains or victim.client.clients > 1:  # each client's BatchNorm sees its own images
            gradient: PyTree = client_update(victim.client, model, params, image, target)
            logits: Any = model.apply({"params": params}, image) if attack.label_term else ()
            statistics: PyTree = ()
        else:
            loss, wanted = victim.client.loss, attack.statistics > 0
            gradient, logits, statistics = observe(model, params, image, target, loss, statistics=wanted)
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
        each iteration, or of each step where many lanes run (`lane_cond.FEW`). That is not counted as an evaluation.
        """
        if self.attack.solver.passes_value_on:
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
        context = Context(
            horizon=self.attack.iterations,
            project=self._project if self.attack.box else None,
            key=jax.random.wrap_key_data(problem.noise) if self.attack.solver.random else None,
        )
        return self.attack.solver.step(self.objective(shared, problem), state, context)

    def _best(self, x: Float[Array, "n"], value):
        """The member of the group with the lowest objective, and that."""
        if self.attack.group == 1:
            return x, value
        best = jnp.argmin(jnp.where(jnp.isfinite(value), value, jnp.inf))
        candidate = self._unflatten(x, self.attack.group)
        return ravel_pytree(jax.tree.map(lambda leaf: leaf[best], candidate))[0], value[best]


def with_fitting_stops(attacks: Sequence[Attack], victim: Victim) -> tuple[Attack, ...]:
    """The attacks, none of which stops before it has explained the update.

    Presets stop at an objective that is small beside a gradient's; the update of a client that trains with a small
    rate may be as small itself. `STOPS` is the share of its squared norm that may be left over.
    """
    norm2 = sum(float(np.sum(np.asarray(leaf, np.float64) ** 2)) for leaf in jax.tree.leaves(victim.update))
    return tuple(
        replace(attack, stop_objective=min(attack.stop_objective, STOPS * norm2))
        if attack.objective == "l2" and attack.scale == "none"
        else attack
        for attack in attacks
    )


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
    if dummies != victim.batch and not victim.knows_truth:
        raise InputError(
            f"`dummies` must be as many as the update's images, {victim.batch}, where these are not known."
        )
    losses, loss = LABEL_STRATEGIES[attack.label].losses, victim.client.loss.name
    if not LABEL_STRATEGIES[attack.label].holds_for(loss):
        raise InputError(
            f"`label` {attack.label} reads gradients of {' and '.join(losses)}; the client's loss is {loss}. "
            f"Use label {', '.join(name for name, rule in LABEL_STRATEGIES.items() if rule.holds_for(loss))}."
        )
    if attack.label_term and loss != CROSS_ENTROPY.name:
        raise InputError(f"`label_term` compares softmax outputs with labels; leave it 0 for the loss {loss}.")
    if attack.label == "known" and not victim.knows_labels:
        raise InputError("`label` known needs the labels; give --labels, or let the attack find them.")
    if attack.statistics and not victim.knows_truth:
        raise InputError("`statistics` are measured on the private images, which are not given; leave it 0.")
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
