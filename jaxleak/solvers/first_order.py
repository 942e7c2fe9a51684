"""First-order solvers, from optax."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxleak.errors import check_positive
from jaxleak.solvers.protocol import Info, ValueAndGradient


class AdamState(NamedTuple):
    x: Float[Array, "n"]
    optimizer: Any


@dataclass(frozen=True, kw_only=True)
class Adam:
    """`optax.adam`; one iteration is one step is one evaluation.

    Attributes:
        lr: learning rate, in units of the candidate (pixels in [0, 1]) per step.
    """

    lr: float = 0.1

    def __post_init__(self):
        check_positive("lr", self.lr)

    def init(self, fun: ValueAndGradient, x: Float[Array, "n"]) -> AdamState:
        del fun
        return AdamState(x, optax.adam(self.lr).init(x))

    def step(self, fun: ValueAndGradient, state: AdamState) -> tuple[AdamState, Info]:
        value, gradient = fun(state.x)
        updates, optimizer = optax.adam(self.lr).update(gradient, state.optimizer)
        new_state = AdamState(state.x + jnp.asarray(updates), optimizer)
        true = jnp.ones((), bool)
        return new_state, Info(state.x, value, true, jnp.ones((), jnp.int32), ~true)
