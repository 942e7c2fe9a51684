"""optax's L-BFGS behind the solver protocol."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxleak.errors import check_positive
from jaxleak.solvers.protocol import ALONE, Context, Info, Solver, ValueAndGradient


class OptaxState(NamedTuple):
    x: Float[Array, "n"]
    value: Float[Array, ""]
    gradient: Float[Array, "n"]
    inner: Any
    updates: Int[Array, ""]
    evaluations: Int[Array, ""]  # that led to `value` and are not reported yet
    stalled: Bool[Array, ""]  # a line search did not move


@dataclass(frozen=True, kw_only=True)
class OptaxLBFGS(Solver):
    """`optax.lbfgs` with its zoom line search (strong Wolfe conditions, at most 20 evaluations).

    One iteration is `inner_steps` updates, so that iteration counts compare with torch's outer steps. A step reports
    the candidate before its update. The evaluations of one update run in a loop inside the step, so that vectorised
    lanes wait for the slowest. Differs: an update that does not move ends the trial as stalled.

    Attributes:
        history: pairs kept (optax's default: 10).
        inner_steps: updates per iteration.

    Example:
        >>> from dataclasses import replace
        >>> import jaxleak
        >>> replace(jaxleak.DLG, name="dlg:optax", solver=jaxleak.OptaxLBFGS(history=10)).solver
        OptaxLBFGS(history=10, inner_steps=20)
    """

    history: int = 100
    inner_steps: int = 20

    def __post_init__(self):
        for name in ("history", "inner_steps"):
            check_positive(name, getattr(self, name), integer=True)

    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> OptaxState:
        value, gradient = fun(x)
        return OptaxState(
            x=x,
            value=value,
            gradient=gradient,
            inner=optax.lbfgs(memory_size=self.history).init(x),
            updates=jnp.zeros((), jnp.int32),
            evaluations=jnp.ones((), jnp.int32),
            stalled=jnp.zeros((), bool),
        )

    def step(self, fun: ValueAndGradient, state: OptaxState, context: Context = ALONE) -> tuple[OptaxState, Info]:
        del context
        inner: Any
        move, inner = optax.lbfgs(memory_size=self.history).update(
            state.gradient, state.inner, state.x, value=state.value, grad=state.gradient, value_fn=_scalar(fun)
        )
        search, moved = inner[-1], state.x + jnp.asarray(move)
        stalled = state.stalled | (jnp.all(moved == state.x) & jnp.isfinite(state.value))
        x = jnp.where(stalled, state.x, moved)
        boundary = state.updates % self.inner_steps == 0
        new_state = OptaxState(
            x=x,
            value=jnp.where(stalled, state.value, search.value),
            gradient=jnp.where(stalled, state.gradient, search.grad),
            inner=inner,
            updates=state.updates + 1,
            evaluations=jnp.asarray(search.info.num_linesearch_steps, jnp.int32),
            stalled=stalled,
        )
        return new_state, Info(state.x, state.value, boundary, state.evaluations, stalled)


def _scalar(fun: ValueAndGradient):
    """`fun`'s value as a function that JAX differentiates to `fun`'s gradient, in one evaluation."""

    @jax.custom_vjp
    def value(x):
        return fun(x)[0]

    value.defvjp(fun, lambda gradient, cotangent: (cotangent * gradient,))
    return value
