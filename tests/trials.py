"""Trials stepped one by one, and what is read of them."""

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxleak import Adam
from jaxleak.attacks.presets import Attack
from jaxleak.attacks.trial import Job, Outcome, Trial
from jaxleak.engine import engine as runs
from jaxleak.threat.victim import Victim
from tests.fixtures import quick_jit


def job(trial=0, slot=0, image=0, seed=0) -> Job:
    return Job(*(jnp.asarray(number, jnp.int32) for number in (trial, slot, image, seed)))


class Ran(NamedTuple):
    """A trial after its end, and every state it went through."""

    trial: Trial
    states: list[Any]
    outcome: Outcome
    step: Any  # compiled: state -> state


def run_trial(trial: Trial, which: Job | None = None) -> Ran:
    """The plain Python loop that everything faster is compared with."""
    shared, which = trial.shared(), job() if which is None else which

    def begin(shared, which):
        problem = trial.prepare(shared, which)
        return problem, trial.init(shared, problem, which)

    problem, state = quick_jit(begin)(shared, which)
    compiled = quick_jit(trial.step)
    states = [state]
    while trial.running(states[-1]):
        states.append(compiled(shared, problem, states[-1]))
    outcome = jax.tree.map(np.asarray, trial.outcome(problem, states[-1]))
    return Ran(trial, states, outcome, lambda state: compiled(shared, problem, state))


KNOWN = Attack(name="known", label="known", solver=Adam(lr=0.01), iterations=3, stop_objective=0)


def trial_of(attack: Attack, victim: Victim, **changes) -> Trial:
    return Trial(attack=attack, victim=victim, threshold=1e-4, **changes)


def compiled(function, *arguments) -> Any:
    """The function's results, as numpy."""
    return jax.tree.map(np.asarray, quick_jit(function)(*arguments))


def truth_of(victim: Victim) -> np.ndarray:
    """The private images in the units of the network's input."""
    mean, std = victim.normalisation or (0.0, 1.0)
    return (np.asarray(victim.images, float) - mean) / std


def at(attack: Attack, victim: Victim, *images: np.ndarray) -> list[Any]:
    """What the solver is given at these candidates, (value, gradient) each; labels are not optimised."""
    trial = trial_of(attack, victim)

    def evaluate():
        shared = trial.shared()
        objective = trial.attacker.objective(shared, trial.prepare(shared, job()))
        return [objective(jnp.ravel(image)) for image in images]

    return compiled(evaluate)


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


def out_of_memory_above(lanes: int, monkeypatch, where: str, calls: int = 0) -> None:
    """The device has room for `lanes`: more of them fail when compiled or, after `calls` calls, when run."""
    original = runs.compile_for

    def failing(*arguments):
        programs = original(*arguments)
        for one in programs.values():
            if one.lanes <= lanes:
                continue
            if where == "compile":
                raise RuntimeError("RESOURCE_EXHAUSTED: injected")
            function, count = getattr(one, where), Counter()

            def call(*arguments, function=function, count=count):
                count["calls"] += 1
                if count["calls"] > calls:
                    raise RuntimeError("RESOURCE_EXHAUSTED: injected")
                return function(*arguments)

            setattr(one, where, call)
        return programs

    monkeypatch.setattr(runs, "compile_for", failing)
