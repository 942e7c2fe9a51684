"""L-BFGS whose steps are tested: one evaluation accepts a step, or rejects it and teaches the next, shorter one."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxleak.errors import check_choice, check_positive
from jaxleak.kernels import vectors
from jaxleak.kernels.platform import accelerated
from jaxleak.solvers.compact import History, advance, dropped, empty_history
from jaxleak.solvers.protocol import ALONE, Context, Info, Solver, ValueAndGradient

DECREASE = 1e-4  # Armijo's c1, as in Nocedal & Wright
SHRINK = 0.5  # a step is at most this times the rejected one before it
REJECTIONS = 6  # in a row, at which the candidate is taken all the same if it is not far up, or the history is dropped
HIGHEST = 2.0  # times the objective before it: how far up that may be
HISTORY_TYPES = ("auto", "same", "bfloat16")
PATIENCE = 50  # such steps up without a new lowest objective, after which the solver stalls


class LBFGSState(NamedTuple):
    x: Float[Array, "n"]  # evaluated next
    base: Float[Array, "n"]  # the last accepted candidate
    value: Float[Array, ""]  # the objective at `base`
    gradient: Float[Array, "n"]  # and its gradient
    slope: Float[Array, ""]  # gradient . (x - base): to first order, what the step gains
    lowest: Float[Array, "n"]  # the candidate with the lowest objective
    lowest_value: Float[Array, ""]
    history: History
    gamma: Float[Array, ""]  # scale of the initial inverse Hessian
    rejections: Int[Array, ""]  # since the last accepted step
    climbs: Int[Array, ""]  # steps up since the lowest objective
    evaluations: Int[Array, ""]


@dataclass(frozen=True, kw_only=True)
class LBFGS(Solver):
    """L-BFGS with Armijo's test and a limit on the length of a step, one evaluation per step.

    A candidate x + p is accepted if f(x + p) <= f(x) + c1 g.p (c1 = 1e-4); p is the quasi-Newton step -H g, cut to the
    largest length allowed. A rejected candidate, too, tells the curvature between it and x: its pair enters the
    history, and the next step is the new -H g, at most half as long as the rejected one. So every evaluation counts,
    and no lane waits for another's line search. When -H g does not go down, the history is dropped and the step is
    -gamma g. A candidate whose objective or gradient is not finite is rejected.

    The sixth candidate in a row that fails the test is taken all the same, unless its objective is more than twice that
    of x (then the history is dropped). Near the end rounding hides what a step gains, and behind ReLUs the gradient of
    the loss, and so the objective, jumps where a unit switches, however short the step. A solver that stalls there ends
    with a far higher objective (experiments/NOTES.md). What is reported is always the candidate with the lowest
    objective so far.

    Nothing depends on the objective's scale: the first step is -g / |g|_1, a pair is kept if s.y > eps |s| |y|, and the
    solver stalls when the gain to be expected is within rounding of the objective (eps of the number type), or after
    fifty steps up without a new lowest objective.

    One iteration is `inner_steps` evaluations, whatever came of them, so that a budget in iterations is one in
    evaluations, comparable with torch's outer steps.

    Source: Nocedal & Wright 2006, algorithms 3.1 and 7.5, equation 7.20 for gamma; limited length: chapter 4.
    Differs: steps up; pairs of rejected candidates; no curvature (Wolfe) condition, pairs without curvature are left
    out instead; direction from the compact form.

    Attributes:
        history: pairs kept.
        history_type: their type: "same" (the candidate's), "bfloat16" (half the memory, which an accelerator reads in
            half the time), or "auto" (bfloat16 where an accelerator computes in float32).
        max_step: largest root mean square change of the candidate in one step, in its units (pixels in [0, 1]).
        inner_steps: evaluations per iteration.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxleak
        >>> fun = jax.value_and_grad(lambda x: jnp.sum((x - 1) ** 2))
        >>> solver = jaxleak.LBFGS(history=5, max_step=1.0)
        >>> step = jax.jit(lambda state: solver.step(fun, state))
        >>> state = solver.init(fun, jnp.zeros(3))
        >>> for _ in range(10):
        ...     state, info = step(state)
        >>> [round(float(entry), 3) for entry in info.x]
        [1.0, 1.0, 1.0]
    """

    history: int = 100
    history_type: str = "auto"
    max_step: float = 0.05
    inner_steps: int = 20

    def __post_init__(self):
        check_positive("max_step", self.max_step)
        check_choice("history_type", self.history_type, HISTORY_TYPES)
        for name in ("history", "inner_steps"):
            check_positive(name, getattr(self, name), integer=True)

    def _kept(self, dtype):
        """The type of the pairs of candidates of this type."""
        if self.history_type == "auto":
            return jnp.bfloat16 if accelerated() and dtype == jnp.float32 else dtype
        return dtype if self.history_type == "same" else jnp.bfloat16

    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> LBFGSState:
        del fun  # nothing is evaluated before the first step
        zero, none = jnp.zeros((), x.dtype), jnp.zeros((), jnp.int32)
        return LBFGSState(
            x=x,
            base=x,
            value=zero,
            gradient=jnp.zeros_like(x),
            slope=zero,
            lowest=x,
            lowest_value=zero,
            history=empty_history(self.history, x.size, x.dtype, self._kept(x.dtype)),
            gamma=zero,
            rejections=none,
            climbs=none,
            evaluations=none,
        )

    def step(self, fun: ValueAndGradient, state: LBFGSState, context: Context = ALONE) -> tuple[LBFGSState, Info]:
        del context
        value, gradient = fun(state.x)
        opening = state.evaluations == 0
        rounding = jnp.finfo(state.x.dtype).eps

        # 1. Accept or reject (Nocedal & Wright, equation 3.4). A step that was rounded away is no step.
        s = state.x - state.base
        pair = vectors.pair(gradient, state.gradient, s)
        length = jnp.sqrt(pair.ss)
        finite = jnp.isfinite(value) & jnp.isfinite(pair.gradient_sum)
        lower = finite & (length > 0) & (value <= state.value + DECREASE * state.slope)
        tried = finite & (length > 0) & (state.rejections + 1 >= REJECTIONS)
        climb = ~opening & ~lower & tried & (value <= HIGHEST * state.value)
        accept = opening | lower | climb
        base, g = (jnp.where(accept, new, old) for new, old in ((state.x, state.base), (gradient, state.gradient)))
        base_value = jnp.where(accept, value, state.value)
        rejections = jnp.where(accept, 0, state.rejections + 1)
        record = opening | (finite & (value < state.lowest_value))
        lowest, lowest_value = jnp.where(record, state.x, state.lowest), jnp.where(record, value, state.lowest_value)
        climbs = jnp.where(record, 0, state.climbs + climb)

        # 2. The pair, if it has curvature, its scale (equation 7.20), and the direction at the base.
        # A rejected candidate has its pair as well, measured from the base, which stays where it is.
        curved = finite & ~opening & (pair.ys > rounding * length * jnp.sqrt(pair.yy))
        measured = pair.ys / jnp.where(curved, pair.yy, 1)
        gamma = jnp.where(opening, 1 / pair.gradient_sum, jnp.where(curved, measured, state.gamma))
        history, newton = advance(state.history, s, pair.y, g, curved, gamma)

        # 3. The step, no longer than allowed; down the gradient where the history misleads.
        longest = jnp.where(accept, self.max_step * jnp.sqrt(1.0 * s.size), SHRINK * length)
        newton_2, newton_g, g_2 = vectors.products(newton, g)
        factor, slope = _shortened(jnp.sqrt(newton_2), newton_g, longest)
        # A smaller gain is lost in the objective's rounding. `~(a < b)` holds for what is not a number, too.
        negligible = -rounding * jnp.abs(base_value)
        misled = ~(slope < negligible) | (rejections >= REJECTIONS)
        steep, steep_slope = _shortened(gamma * jnp.sqrt(g_2), -gamma * g_2, longest)
        slope = jnp.where(misled, steep_slope, slope)
        step = jnp.where(misled, -(steep * gamma) * g, factor * newton)
        stalled = jnp.isfinite(base_value) & (~(slope < negligible) | (climbs >= PATIENCE))
        new_state = LBFGSState(
            x=jnp.where(stalled, base, base + step),
            base=base,
            value=base_value,
            gradient=g,
            slope=slope,
            lowest=lowest,
            lowest_value=lowest_value,
            history=dropped(history, misled),
            gamma=gamma,
            rejections=jnp.where(misled, 0, rejections),
            climbs=climbs,
            evaluations=state.evaluations + 1,
        )
        boundary = state.evaluations % self.inner_steps == 0
        return new_state, Info(lowest, lowest_value, boundary, jnp.ones((), jnp.int32), stalled)


def _shortened(length, slope, longest):
    """The factor that makes a step of this length no longer than `longest`, and the directional derivative then."""
    factor = jnp.where(length > longest, longest / jnp.where(length > longest, length, 1), 1)
    return factor, factor * slope
