"""No solver: the start is evaluated, and that is all."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxleak.solvers.protocol import ALONE, Context, Info, Solver, ValueAndGradient


class NoSolverState(NamedTuple):
    x: Float[Array, "n"]


@dataclass(frozen=True, kw_only=True)
class NoSolver(Solver):
    """Evaluates the start once: for attacks that solve in closed form.

    Example:
        >>> import jaxleak
        >>> jaxleak.ATTACKS["analytic"].solver == jaxleak.NoSolver()
        True
    """

    passes_value_on = True
    closed_form = True

    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> NoSolverState:
        del fun
        return NoSolverState(x)

    def step(self, fun: ValueAndGradient, state: NoSolverState, context: Context = ALONE) -> tuple[NoSolverState, Info]:
        del context
        value, _ = fun(state.x)
        true = jnp.ones((), bool)
        return state, Info(state.x, value, true, jnp.ones((), jnp.int32), true)
