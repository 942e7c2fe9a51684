"""jaxopt's L-BFGS behind the solver protocol."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxleak.errors import check_choice, check_positive
from jaxleak.solvers.protocol import ALONE, Context, Info, Solver, ValueAndGradient

if TYPE_CHECKING:
    import jaxopt

LINE_SEARCHES = ("fixed", "zoom", "hager-zhang")


class JaxoptState(NamedTuple):
    x: Float[Array, "n"]
    inner: Any  # jaxopt.LbfgsState: value and gradient at x, history, counters
    reported: Int[Array, ""]  # evaluations already reported


@dataclass(frozen=True, kw_only=True)
class JaxoptLBFGS(Solver):
    """`jaxopt.LBFGS`, the solver people will compare with.

    One iteration is `inner_steps` jaxopt updates, so that iteration counts compare with torch's outer steps.
    A step reports the candidate before its update, whose value jaxopt already holds.

    Differs from torch's: the first step has length |g| (torch: min(1, 1/|g|_1)); every pair is kept. With a line
    search the evaluations of one update run in a loop inside the step, so that vectorised lanes wait for the slowest.

    Attributes:
        line_search: "fixed" (step size `lr`), "zoom" or "hager-zhang".
        lr: step size for "fixed".
        history: pairs kept.
        inner_steps: updates per iteration.

    Example:
        >>> from dataclasses import replace
        >>> import jaxleak
        >>> replace(jaxleak.DLG, name="dlg:jaxopt", solver=jaxleak.JaxoptLBFGS(inner_steps=10)).solver
        JaxoptLBFGS(line_search='zoom', lr=1.0, history=100, inner_steps=10)
    """

    line_search: str = "zoom"
    lr: float = 1.0
    history: int = 100
    inner_steps: int = 20

    def __post_init__(self):
        check_choice("line_search", self.line_search, LINE_SEARCHES)
        check_positive("lr", self.lr)
        for name in ("history", "inner_steps"):
            check_positive(name, getattr(self, name), integer=True)

    def _solver(self, fun: ValueAndGradient) -> "jaxopt.LBFGS":
        import jaxopt

        fixed = self.line_search == "fixed"
        return jaxopt.LBFGS(
            fun,
            value_and_grad=True,
            history_size=self.history,
            stepsize=self.lr if fixed else 0.0,  # 0 asks for the line search
            linesearch="zoom" if fixed else self.line_search,
            implicit_diff=False,
            jit=True,
            unroll=False,
        )

    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> JaxoptState:
        return JaxoptState(x, self._solver(fun).init_state(x), jnp.zeros((), jnp.int32))

    def step(self, fun: ValueAndGradient, state: JaxoptState, context: Context = ALONE) -> tuple[JaxoptState, Info]:
        del context
        x, inner = self._solver(fun).update(state.x, state.inner)
        evaluations = jnp.asarray(state.inner.num_fun_eval, jnp.int32)
        info = Info(
            x=state.x,
            value=state.inner.value,
            boundary=state.inner.iter_num % self.inner_steps == 0,
            evaluations=evaluations - state.reported,
            stalled=jnp.all(x == state.x) & jnp.isfinite(state.inner.value),
        )
        return JaxoptState(x, inner, evaluations), info
