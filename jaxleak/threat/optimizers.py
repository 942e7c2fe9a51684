"""The optimisers of a client's local steps, as torch has them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

# Differentiating Adam needs a root that is never 0: below the smallest square of a float32 that is not.
ROOT = 1e-30
CLIP_EPS = 1e-6  # torch's, in `clip_grad_norm_`
SGD_ONLY = ("momentum", "nesterov", "dampening")
Rate = Any  # a number, or step -> number


class Momentum(NamedTuple):
    """The buffer of SGD."""

    steps: Array
    buffer: PyTree


def momentum(decay: float, dampening: float = 0.0, nesterov: bool = False) -> optax.GradientTransformation:
    """b <- decay b + (1 - dampening) g, at the first step b = g; gives b, or with Nesterov g + decay b.

    Source: torch's `SGD`. optax's `trace` has no dampening.
    """

    def init(params):
        return Momentum(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        share = jnp.where(state.steps == 0, 1.0, 1.0 - dampening)
        buffer = jax.tree.map(lambda b, g: decay * b + share.astype(g.dtype) * g, state.buffer, updates)
        given = jax.tree.map(lambda b, g: g + decay * b, buffer, updates) if nesterov else buffer
        return given, Momentum(state.steps + 1, buffer)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def sgd_response(steps: int, decay: float, dampening: float, nesterov: bool) -> Float[np.ndarray, "steps"]:
    """What SGD's momentum makes of gradients that are all 1."""
    given, buffer = np.ones(steps), 0.0
    for step in range(steps if decay else 0):
        buffer = decay * buffer + (1 - dampening if step else 1.0)
        given[step] = 1 + decay * buffer if nesterov else buffer
    return given


def clip_norm(largest: float) -> optax.GradientTransformation:
    """All tensors scaled down together to this L2 norm, as torch's `clip_grad_norm_` does it."""

    def update(updates, state, params=None):
        del params
        norm2 = sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(updates)), jnp.zeros(()))
        norm = jnp.where(norm2 > 0, jnp.sqrt(jnp.where(norm2 > 0, norm2, 1)), 0)  # its slope at 0 is finite
        factor = jnp.minimum(1, largest / (norm + CLIP_EPS))
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _sgd(lr: Rate, decay: float | None = None, moving: optax.GradientTransformation | None = None):
    parts = [optax.add_decayed_weights(decay)] if decay else []
    return optax.chain(*parts, *([moving] if moving else []), optax.scale_by_learning_rate(lr))


def _adam(lr: Rate, decay: float | None = None):
    parts = [optax.add_decayed_weights(decay)] if decay else []
    return optax.chain(*parts, optax.scale_by_adam(eps_root=ROOT), optax.scale_by_learning_rate(lr))


def _adamw(lr: Rate, decay: float | None = None):
    weight = optax.add_decayed_weights(0.01 if decay is None else decay)
    return optax.chain(optax.scale_by_adam(eps_root=ROOT), weight, optax.scale_by_learning_rate(lr))


# By torch's names, with torch's betas, eps and weight decay. Arguments: learning rate, weight decay (None: torch's).
OPTIMIZERS: dict[str, Callable[..., Any]] = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}
