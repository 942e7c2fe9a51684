"""The protocol of solvers: plain data with `init` and `step`, for one trial and without a lane axis."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Array, Bool, Float, Int

# Objective value and gradient at a flat candidate.
ValueAndGradient = Callable[[Float[Array, "n"]], tuple[Float[Array, ""], Float[Array, "n"]]]


class Info(NamedTuple):
    """Result of one step."""

    x: Float[Array, "n"]  # the candidate to report: the one evaluated, or the best so far
    value: Float[Array, ""]  # the objective at `x`
    boundary: Bool[Array, ""]  # True where `x` is the candidate at the end of an iteration
    evaluations: Int[Array, ""]  # objective evaluations this step cost
    stalled: Bool[Array, ""]  # no later step will move


class Context(NamedTuple):
    """The run that a step belongs to, as far as a solver may depend on it.

    Attributes:
        horizon: iterations of the whole run, for solvers with a schedule.
        project: takes a candidate to the nearest one allowed; None: every candidate is allowed. The start is not
            projected.
        key: a random key, the same in every step, of this trial and for nothing else; None where the solver draws
            nothing (`Solver.random`).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxleak.solvers import Context
        >>> context = Context(horizon=100, project=lambda x: jnp.clip(x, 0, 1))
        >>> context.project(jnp.array([-1.0, 2.0])).tolist()
        [0.0, 1.0]
    """

    horizon: int = 0
    project: Callable[[Float[Array, "n"]], Float[Array, "n"]] | None = None
    key: Array | None = None


ALONE = Context()


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Settings, and two pure functions of one trial.

    Attributes:
        supports: what it can do besides minimising: "box" (`Context.project`), "group" (several starts in one
            candidate, whose values it need not compare).
        passes_value_on: True where the solver never uses the objective's value. It then receives the published
            objective, which may have any shape, so that this need not be computed twice.
        closed_form: True where the start is the answer.
        iterations: the usual budget.
    """

    supports: ClassVar[frozenset[str]] = frozenset()
    passes_value_on: ClassVar[bool] = False
    closed_form: ClassVar[bool] = False
    iterations: ClassVar[int] = 300

    @property
    def random(self) -> bool:
        """True where a step draws from `Context.key`."""
        return False

    @abstractmethod
    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> Any:
        """The state that starts at candidate `x`."""

    @abstractmethod
    def step(self, fun: ValueAndGradient, state: Any, context: Context = ALONE) -> tuple[Any, Info]:
        """One evaluation of `fun`, or several, and the solver's bookkeeping."""
