"""Programs for the engine that do only a part of a trial's step, for ever: they show where its time goes."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxleak.attacks.trial import Trial
from jaxleak.bench.settings import PHASES
from jaxleak.errors import check_choice
from jaxleak.solvers import Context

# Keeps a result needed without changing where the candidate goes: XLA does not know that it vanishes in rounding.
NOTHING = 1e-30


@dataclass(frozen=True, kw_only=True, eq=False)
class PhaseProgram:
    """A trial of which every step is one phase of `PHASES`.

    Attributes:
        trial: the trial.
        phase: "objective": its value only, so the update's gradient and the distance; "objective-and-gradient";
            "solver": the solver's step on a sum of weighted squares, which costs next to nothing and takes more steps
        than the history has pairs; "step": the whole.
    """

    trial: Trial
    phase: str

    def __post_init__(self):
        check_choice("phase", self.phase, PHASES)

    @property
    def key(self) -> None:
        """None: the program is compiled once, and no other uses it."""

    def prepare(self, shared: Any, job: Any) -> Any:
        """The trial's problem."""
        return self.trial.prepare(shared, job)

    def init(self, shared: Any, problem: Any, job: Any) -> Any:
        """The trial's first state."""
        return self.trial.init(shared, problem, job)

    def step(self, shared: Any, problem: Any, state: Any) -> Any:
        """One phase of a step."""
        if self.phase == "step":
            return self.trial.step(shared, problem, state)
        solver, objective = state.solver, self.trial.attacker.objective(shared, problem)
        if self.phase == "solver":
            attack = self.trial.attack
            # Adam's schedule needs the run's length; the box is left to the bookkeeping.
            return state._replace(
                solver=attack.minimiser.step(_weighted_squares, solver, Context(horizon=attack.iterations))[0]
            )
        value, gradient = objective(solver.x)
        change = value if self.phase == "objective" else gradient
        return state._replace(solver=solver._replace(x=solver.x + NOTHING * change))

    def running(self, state: Any) -> Any:
        """Always True: an ended trial costs what a running one does."""
        return jnp.ones((), bool)

    def outcome(self, problem: Any, state: Any) -> Any:
        """The candidate; not used, since no trial ends."""
        return state.record.candidate


def _weighted_squares(x):
    weights = jnp.linspace(1, 1000, x.size, dtype=x.dtype)
    return jnp.vdot(weights * x, x) / 2, weights * x
