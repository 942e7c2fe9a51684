"""L-BFGS as `torch.optim.LBFGS` without line search does it: the solver of the published DLG, iDLG and CPL figures."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxleak.errors import check_positive
from jaxleak.kernels import vectors
from jaxleak.solvers.compact import History, advance, empty_history
from jaxleak.solvers.protocol import ALONE, Context, Info, Solver, ValueAndGradient


class TorchLBFGSState(NamedTuple):
    x: Float[Array, "n"]  # evaluated next
    history: History
    gamma: Float[Array, ""]  # torch's H_diag
    direction: Float[Array, "n"]
    step_size: Float[Array, ""]
    previous_gradient: Float[Array, "n"]
    previous_value: Float[Array, ""]
    inner: Int[Array, ""]  # inner steps taken in this outer step; 0: the next evaluation opens an outer step
    outer_evaluations: Int[Array, ""]  # evaluations in this outer step
    total_inner: Int[Array, ""]  # torch's state["n_iter"]
    total_evaluations: Int[Array, ""]  # torch's state["func_evals"]


@dataclass(frozen=True, kw_only=True)
class TorchLBFGS(Solver):
    """`torch.optim.LBFGS(line_search_fn=None)`, one evaluation per step.

    One iteration is one `optimizer.step`: at most `inner_steps` quasi-Newton steps. Its first evaluation, at the
    candidate the previous iteration left, is the objective at the end of that iteration.

    Source: torch 2.13, `torch/optim/lbfgs.py`. What survives from one outer step to the next: history, direction,
    step size, scale, previous gradient and value. The last inner step is not evaluated until the next outer step.
    Differs: the direction comes from the compact form (equal to the two-loop recursion up to rounding).

    Attributes:
        lr: step size, and the factor of the first step min(1, 1 / |g|_1).
        history: pairs kept.
        inner_steps: torch's `max_iter`.
        max_evaluations: evaluations after which an outer step ends; None is torch's 5/4 of `inner_steps`.
        tolerance_gradient: an outer step ends when max |g| is no larger.
        tolerance_change: an outer step ends when the directional derivative is above minus this, or the largest
            component of the step is no larger, or the objective changed by less.

    Example:
        >>> from dataclasses import replace
        >>> import jaxleak
        >>> published = replace(jaxleak.DLG, name="dlg:torch-lbfgs", solver=jaxleak.TorchLBFGS())
        >>> published.solver.inner_steps
        20
    """

    lr: float = 1.0
    history: int = 100
    inner_steps: int = 20
    max_evaluations: int | None = None
    tolerance_gradient: float = 1e-7
    tolerance_change: float = 1e-9

    def __post_init__(self):
        check_positive("lr", self.lr)
        for name in ("history", "inner_steps"):
            check_positive(name, getattr(self, name), integer=True)

    @property
    def evaluation_limit(self) -> int:
        """Evaluations after which an outer step ends."""
        return self.inner_steps * 5 // 4 if self.max_evaluations is None else self.max_evaluations

    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> TorchLBFGSState:
        del fun  # nothing is evaluated before the first step
        zero = jnp.zeros((), jnp.int32)
        return TorchLBFGSState(
            x=x,
            history=empty_history(self.history, x.size, x.dtype),
            gamma=jnp.ones((), x.dtype),
            direction=jnp.zeros_like(x),
            step_size=jnp.zeros((), x.dtype),
            previous_gradient=jnp.zeros_like(x),
            previous_value=jnp.zeros((), x.dtype),
            inner=zero,
            outer_evaluations=zero,
            total_inner=zero,
            total_evaluations=zero,
        )

    def step(
        self, fun: ValueAndGradient, state: TorchLBFGSState, context: Context = ALONE
    ) -> tuple[TorchLBFGSState, Info]:
        del context
        value, gradient = fun(state.x)
        opening = state.inner == 0
        outer_evaluations = jnp.where(opening, 1, state.outer_evaluations + 1)

        # 1. The tests torch makes after an evaluation; only the first one when the outer step opens.
        s = state.direction * state.step_size
        pair = vectors.pair(gradient, state.previous_gradient, s)
        flat = pair.gradient_max <= self.tolerance_gradient
        small_step = pair.step_max <= self.tolerance_change
        small_change = jnp.abs(value - state.previous_value) < self.tolerance_change
        spent = outer_evaluations >= self.evaluation_limit
        ends = flat | (~opening & (spent | small_step | small_change))

        # 2. A new pair, scale and direction.
        first = state.total_inner == 0
        accept = ~ends & ~first & (pair.ys > 1e-10)  # torch's bound, in absolute terms
        gamma = jnp.where(accept, pair.ys / jnp.where(accept, pair.yy, 1), state.gamma)
        history, new_direction = advance(state.history, s, pair.y, gradient, accept, gamma)

        # 3. The step size, and the test on the directional derivative.
        first_size = jnp.minimum(1.0, 1.0 / pair.gradient_sum) * self.lr
        step_size = jnp.where(first, first_size, self.lr).astype(value.dtype)
        _, slope, _ = vectors.products(gradient, new_direction)
        uphill = ~ends & (slope > -self.tolerance_change)
        moves = ~ends & ~uphill

        # 4. Move. An outer step that ended, or has used its inner steps, gives way to the next.
        tried = ~ends
        inner = jnp.where(moves, state.inner + 1, 0)
        inner = jnp.where(inner == self.inner_steps, 0, inner)
        new_state = TorchLBFGSState(
            x=jnp.where(moves, state.x + step_size * new_direction, state.x),
            history=history,
            gamma=gamma,
            direction=jnp.where(tried, new_direction, state.direction),
            step_size=jnp.where(tried, step_size, state.step_size),
            previous_gradient=jnp.where(tried, gradient, state.previous_gradient),
            previous_value=jnp.where(tried, value, state.previous_value),
            inner=inner,
            outer_evaluations=outer_evaluations,
            total_inner=state.total_inner + tried,
            total_evaluations=state.total_evaluations + 1,
        )
        # After either of these every later outer step finds the same gradient and ends the same way.
        stalled = (opening & flat) | uphill
        return new_state, Info(state.x, value, opening, jnp.ones((), jnp.int32), stalled)
