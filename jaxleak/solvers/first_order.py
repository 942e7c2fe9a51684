"""First-order solvers, from optax."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice, check_not_negative, check_positive
from jaxleak.solvers.protocol import ALONE, Context, Info, Solver, ValueAndGradient

SIGNS = ("none", "hard", "soft")
SCHEDULES = ("constant", "step", "cosine")
MILESTONES = (2.667, 1.6, 1.142)  # N // each of these: Inverting Gradients' numbers, about 3/8, 5/8 and 7/8 of N
GAMMA = 0.1  # by which the learning rate is multiplied there


class AdamState(NamedTuple):
    x: Float[Array, "n"]
    optimizer: Any


@dataclass(frozen=True, kw_only=True)
class Adam(Solver):
    """Adam on the gradient or its sign, inside a box; one iteration is one step is one evaluation.

    Step t = 0, 1, … of N, at learning rate lr(t), from the gradient g at the candidate x:

        1. g <- g + langevin lr(t) N(0, 1), drawn per entry and step
        2. g <- sign(g) ("hard"), or tanh(s g) / s with s = 1 - t / N ("soft": at most 1/s in size; g itself near 0)
        3. x <- x - lr(t) (adam(g) + weight_decay x), adam(g) = m / (sqrt(v) + 1e-8), bias-corrected, beta .9 and .999
        4. x <- project(x)

    With a warm-up of W steps, lr(t) = lr t / W for t <= W (nothing moves in the first step, but Adam's moments); from
    t = W + 1 on it is the schedule's, begun there. The schedule's N stays that of the whole run, so that after a
    warm-up the cosine ends a little above 0.

    Source: 2 "hard", 4 and "step": Geiping et al. 2020, `inversefed/reconstruction_algorithms.py`; 1, 2 "soft",
        "cosine" and warm-up: breaching, `attacks/optimization_with_label_attack.py`, `common.py`; 3:
        torch.optim.Adam and AdamW (CPL has AdamW for 64 and 128 pixels, with torch's weight decay of 0.01).
    Differs: an entry of the gradient that is not a number stays so (torch's sign of it is 0); no clipping of the
        gradient between 1 and 2, which breaching's later versions can do. breaching's preset of GradInversion has
        langevin 0.01, and says that the paper's is 0.2.

    Attributes:
        lr: learning rate, in units of the candidate (pixels in [0, 1]) per step.
        sign: what Adam is given: "none": the gradient, "hard": its sign, "soft": its soft sign.
        schedule: "constant"; "step": a tenth from each of the steps N // 2.667, N // 1.6 and N // 1.142 on; "cosine":
            lr (1 + cos(pi t / N)) / 2.
        warmup: steps until the learning rate is reached; 0 is none.
        weight_decay: decoupled, as AdamW's; 0 is none.
        langevin: size of the noise, in units of the gradient per unit of the learning rate; 0 is none.

    Example:
        >>> from dataclasses import replace
        >>> import jaxleak
        >>> jaxleak.IG.solver.sign
        'hard'
        >>> slower = replace(jaxleak.IG, name="slower", solver=jaxleak.Adam(lr=0.01, sign="soft", schedule="cosine"))
        >>> slower.solver.lr
        0.01
    """

    lr: float = 0.1
    sign: str = "none"
    schedule: str = "constant"
    warmup: int = 0
    weight_decay: float = 0.0
    langevin: float = 0.0
    supports = frozenset({"box", "group"})
    passes_value_on = True
    iterations = 4800

    def __post_init__(self):
        check_positive("lr", self.lr)
        check_choice("sign", self.sign, SIGNS)
        check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("warmup", "weight_decay", "langevin"):
            check_not_negative(name, getattr(self, name))
        if self.warmup:
            check_positive("warmup", self.warmup, integer=True)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        """Adam and weight decay without the learning rate, so that the state depends on no schedule."""
        return optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(self.weight_decay))

    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> AdamState:
        del fun
        return AdamState(x, self._optimizer.init(x))

    @property
    def random(self) -> bool:
        return self.langevin > 0

    def step(self, fun: ValueAndGradient, state: AdamState, context: Context = ALONE) -> tuple[AdamState, Info]:
        """One evaluation of `fun` and one step.

        Raises:
            InputError: while tracing, the context lacks the `horizon` (N; needed by a schedule that is not constant,
                and by the soft sign) or the `key` (for Langevin noise).
        """
        horizon, project, key = context
        self._check_horizon(horizon)
        count = state.optimizer[0].count
        t = count.astype(state.x.dtype)  # jax divides int32 in float32, even where x is float64
        value, gradient = fun(state.x)
        lr = jnp.asarray(self.rates(horizon)(t), state.x.dtype)
        if self.langevin:
            if key is None:
                raise InputError(f"`key` must be a random key for `langevin` {self.langevin!r}; got None.")
            noise = jax.random.normal(jax.random.fold_in(key, count), state.x.shape, state.x.dtype)
            gradient = gradient + self.langevin * lr * noise
        direction, optimizer = self._optimizer.update(self._signed(gradient, t, horizon), state.optimizer, state.x)
        x = state.x - lr * jnp.asarray(direction)
        new_state = AdamState(x if project is None else project(x), optimizer)
        true = jnp.ones((), bool)
        return new_state, Info(state.x, value, true, jnp.ones((), jnp.int32), ~true)

    def rates(self, horizon: int) -> optax.Schedule:
        """The learning rate at step t of `horizon`, warm-up included."""
        schedule = self._after_warmup(horizon)
        if not self.warmup:
            return schedule
        return optax.join_schedules([optax.linear_schedule(0.0, self.lr, self.warmup), schedule], [self.warmup + 1])

    def _after_warmup(self, horizon: int) -> optax.Schedule:
        if self.schedule == "cosine":
            return optax.cosine_decay_schedule(self.lr, horizon)
        if self.schedule == "step":
            # In runs of a few steps milestones coincide: torch's MultiStepLR then multiplies several times.
            together = Counter(int(horizon // divisor) for divisor in MILESTONES)
            return optax.piecewise_constant_schedule(self.lr, {step: GAMMA**n for step, n in together.items()})
        return optax.constant_schedule(self.lr)

    def _signed(self, gradient: Float[Array, "n"], t: Float[Array, ""], horizon: int) -> Float[Array, "n"]:
        if self.sign == "hard":
            return jnp.sign(gradient)
        if self.sign == "soft":
            # Step N, whose update nobody uses, would divide by 0.
            scale = jnp.maximum(horizon - t, 1) / horizon
            return jnp.tanh(scale * gradient) / scale
        return gradient

    def _check_horizon(self, horizon: int) -> None:
        scheduled = self.schedule != "constant"
        if (scheduled or self.sign == "soft") and not horizon > 0:
            need = f"`schedule` {self.schedule!r}" if scheduled else f"`sign` {self.sign!r}"
            raise InputError(f"`horizon` must be above 0, the run's number of steps, for {need}; got {horizon!r}.")
