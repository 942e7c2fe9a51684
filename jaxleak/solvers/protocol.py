"""What every solver is: plain data with `init` and `step`, for one trial and without a lane axis."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Bool, Float, Int

# Objective value and gradient at a flat candidate.
ValueAndGradient = Callable[[Float[Array, "n"]], tuple[Float[Array, ""], Float[Array, "n"]]]


class Info(NamedTuple):
    """What one step found out."""

    x: Float[Array, "n"]  # the candidate that was evaluated
    value: Float[Array, ""]  # the objective there
    boundary: Bool[Array, ""]  # whether `x` is the candidate at the end of an iteration
    evaluations: Int[Array, ""]  # objective evaluations this step cost
    stalled: Bool[Array, ""]  # no later step will move


class Solver(Protocol):
    """A frozen dataclass of settings with these two functions."""

    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> Any:
        """The state that starts at candidate `x`."""
        ...

    def step(self, fun: ValueAndGradient, state: Any) -> tuple[Any, Info]:
        """One evaluation of `fun` and the solver's bookkeeping."""
        ...
