"""The victim that all JAX variants attack, and the loops of the two that do not use jaxleak's engine."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxleak.attacks.presets import DLG, IG, Attack, with_solver
from jaxleak.attacks.trial import Job, Trial
from jaxleak.bench import plain_vmap
from jaxleak.data import load_dataset
from jaxleak.kernels.precision import full_precision
from jaxleak.models import build_model
from jaxleak.results.verdict import Criteria
from jaxleak.solvers import LBFGS, Adam, TorchLBFGS
from jaxleak.threat.from_dataset import make_victim
from jaxleak.threat.victim import Victim

INNER_STEPS = 20  # of one outer step of torch's L-BFGS
QUEUE = 100_000  # trials: more than any machine finishes in one measurement
SNAPSHOTS = (0, 10, 20, 40, 60, 80, 120, 200)  # as in `jaxleak run`
LEARNING_RATE = 0.1  # Adam's


def attack(settings: dict[str, Any], variant: str) -> Attack:
    """DLG with torch's L-BFGS, our own or Adam; or Inverting Gradients."""
    if variant == "jaxleak-cosine":
        return IG
    if variant == "jaxleak-lbfgs":
        return replace(DLG, solver=LBFGS(history=settings["history"]))
    if settings["solver"] == "adam":
        return with_solver(DLG, Adam(lr=LEARNING_RATE))
    return replace(DLG, solver=TorchLBFGS(history=settings["history"]))


def victim(settings: dict[str, Any], network: str) -> Victim:
    """Four embedded photographs, perhaps cropped, or texts, with a head of as many classes as are asked for."""
    shape, classes, name = tuple(settings["shape"]), settings["num_classes"], settings["model"]
    model = build_model(name, classes, **({} if settings["width"] is None else {"width": settings["width"]}))
    params = weights(model, shape) if network == "shared" else None
    if len(shape) == 1:
        texts = load_dataset("text", length=shape[0])
        made = make_victim(name, texts, texts.random_indices(4, 0), network=network)
        within = {"images": made.images % classes, "labels": np.asarray(made.labels) % classes}
        return replace(made, model=model, num_classes=classes, params=params, **within)
    data = load_dataset("photos")
    made = make_victim("lenet", data, data.random_indices(4, 0), network=network)
    times = -(-shape[0] // made.images.shape[1])  # larger ones repeat the photographs
    return replace(
        made,
        model=model,
        model_name=name,
        num_classes=classes,
        images=np.tile(made.images, (1, times, times, 1))[:, : shape[0], : shape[1]],
        labels=np.asarray(made.labels) % classes,
        surrogates=None,
        params=params,
    )


def weights(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """Each weight from U(-0.5, 0.5), as DLG draws them.

    Differs: not drawn by `init`, of which the compilation would take longer than that of a step's gradient.
    """
    data = jax.ShapeDtypeStruct((1, *shape), float)
    rng, types = np.random.default_rng(0), jax.eval_shape(network.init, jax.random.key(0), data)["params"]
    return jax.tree.map(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype), types)


def trial(settings: dict[str, Any], variant: str = "jaxleak") -> Trial:
    """One trial of one of `OURS`, as `jaxleak run` has it."""
    attacked_by = attack(settings, variant)
    return Trial(
        attack=attacked_by,
        victim=victim(settings, "per-trial" if variant == "jaxleak-network-per-trial" else "shared"),
        threshold=Criteria().threshold(attacked_by.objective),
        snapshots=SNAPSHOTS,
    )


def jobs(settings: dict[str, Any], number: int = 0) -> Job:
    """A queue over the victim's images that does not end while it is measured; others for every `number`."""
    indices = np.asarray(victim(settings, "shared").indices)
    trials = np.arange(number * QUEUE, (number + 1) * QUEUE, dtype=np.int32)
    slot = trials % len(indices)
    return Job(trials, slot, indices[slot].astype(np.int32), trials // len(indices))


class Loop(NamedTuple):
    """The loop of one start, as one writes it without an engine.

    Attributes:
        init: the state at a flat candidate.
        step: from a step's number (from 0) and a state to the next state.
        evaluations: of a state so far; None where every step is one evaluation.
    """

    init: Callable[[Any], Any]
    step: Callable[[Any, Any], Any]
    evaluations: Callable[[Any], Any] | None = None


def plain_vmap_loop(settings: dict[str, Any]) -> Loop:
    """Stock Flax and the two-loop recursion, or optax's Adam."""
    value_and_gradient = stock_objective(settings)
    if settings["solver"] == "adam":
        return Loop(
            lambda x: plain_vmap.adam_init(x, LEARNING_RATE),
            lambda k, state: plain_vmap.adam_step(value_and_gradient, LEARNING_RATE, state),
        )
    return Loop(
        lambda x: plain_vmap.lbfgs_init(x, settings["history"]),
        lambda k, state: plain_vmap.lbfgs_step(value_and_gradient, k, state),
    )


def stock_objective(settings: dict[str, Any]) -> Callable:
    """Value and gradient of the objective at a flat candidate, in stock Flax."""
    attacked = victim(settings, "shared")
    kind = plain_vmap.LeNet if settings["model"] == "lenet" else partial(plain_vmap.ResNet18, width=settings["width"])
    network = kind(num_classes=settings["num_classes"])
    image = jnp.asarray(attacked.images[:1])
    label = 50.0 * jax.nn.one_hot(attacked.labels[:1], settings["num_classes"])  # as logits: certain
    private = plain_vmap.Candidate(image, label)
    params = weights(network, tuple(settings["shape"]))
    update = jax.jit(jax.grad(partial(plain_vmap.loss, network)))(params, private)
    objective = plain_vmap.matching_objective(network, params, update)
    unflatten = ravel_pytree(private)[1]
    return jax.value_and_grad(lambda flat: objective(unflatten(flat)))


def own_objective(settings: dict[str, Any]) -> tuple[Callable, Any, Any]:
    """The same in jaxleak, of any model, without kernels: XLA counts no operations of theirs.

    Returns:
        A function of a flat candidate and of two further arguments, and the types of these.
    """
    attacked = trial(settings)
    shared = jax.eval_shape(attacked.shared)
    problem = jax.eval_shape(attacked.prepare, shared, jax.tree.map(lambda leaf: leaf[0], jobs(settings)))

    def value_and_gradient(flat, shared, problem):
        before = os.environ.get("JAXLEAK_NATIVE")
        os.environ["JAXLEAK_NATIVE"] = "0"
        try:
            return attacked.attacker.objective(shared, problem)(flat)
        finally:
            os.environ.pop("JAXLEAK_NATIVE") if before is None else os.environ.update(JAXLEAK_NATIVE=before)

    return value_and_gradient, shared, problem


def jaxopt_loop(settings: dict[str, Any]) -> Loop:
    """jaxopt's L-BFGS with its default line search (zoom), or its wrapper of optax's Adam, on jaxleak's own objective.

    With jaxleak's objective and models the comparison is of the solvers alone.
    """
    import jaxopt
    import optax

    attacked = trial(settings)
    shared = attacked.shared()
    with full_precision():
        problem = jax.jit(attacked.prepare)(shared, jax.tree.map(lambda leaf: leaf[0], jobs(settings)))
    objective = attacked.attacker.objective(shared, problem)
    if settings["solver"] == "adam":
        adam = jaxopt.OptaxSolver(objective, optax.adam(LEARNING_RATE), value_and_grad=True, jit=True)
        return Loop(lambda x: jaxopt.OptStep(x, adam.init_state(x)), lambda k, state: adam.update(*state))
    lbfgs = jaxopt.LBFGS(objective, value_and_grad=True, history_size=settings["history"], jit=True)
    return Loop(
        lambda x: jaxopt.OptStep(x, lbfgs.init_state(x)),
        lambda k, state: lbfgs.update(*state),
        lambda state: state.state.num_fun_eval,
    )


LOOPS = {"plain-vmap": plain_vmap_loop, "jaxopt": jaxopt_loop}
