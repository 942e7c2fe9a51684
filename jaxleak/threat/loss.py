"""The loss of a client's training, and its gradient."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def cross_entropy(logits: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
    """Mean over the batch of -sum_k target_k log softmax(logits)_k, for any target distribution.

    Source: DLG's `cross_entropy_for_onehot`; with a one-hot target it is torch's `CrossEntropyLoss`.
    """
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of the network's outputs [b, k] and their targets [b, k].

    Attributes:
        name: what tables, messages and `LabelStrategy.losses` call it.
        value: (outputs, targets) -> the mean over the batch, a scalar that can be differentiated twice.
        target: (labels [b] in 0..k-1, k, dtype) -> targets: of a client that has labels.
        decode: free variables [b, k] -> targets: of an attacker that optimises them (label "joint").
    """

    name: str
    value: Callable[[Array, Array], Array] = field(repr=False)
    target: Callable[[Any, int, Any], Array] = field(repr=False)
    decode: Callable[[Array], Array] = field(repr=False)


def _one_hot(labels: Any, classes: int, dtype: Any) -> Float[Array, "b k"]:
    return jax.nn.one_hot(labels, classes, dtype=dtype)


CROSS_ENTROPY = Loss(name="cross-entropy", value=cross_entropy, target=_one_hot, decode=jax.nn.softmax)
LOSSES = {loss.name: loss for loss in (CROSS_ENTROPY,)}
# Any loss, by its slope: the gradient with respect to the parameters is that of <outputs, d> with d the loss's gradient
# with respect to the outputs. Of one image d is the gradient of the head's bias, so an attacker need not know the loss.
ANY_LOSS = Loss(
    name="any",
    value=lambda outputs, slope: jnp.mean(jnp.sum(outputs * slope, axis=-1)),
    target=_one_hot,
    decode=lambda free: free,
)


def loss_gradient(
    model, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"], loss: Loss = CROSS_ENTROPY
) -> PyTree:
    """The gradient of the loss with respect to the parameters: what a client shares.

    Args:
        model: a Linen module; called as `model.apply({"params": params}, x)`.
        params: its `params` collection.
        x: inputs of the network, in its units.
        target: one target per image, as `loss` takes it.
        loss: what is differentiated.
    """
    return jax.grad(lambda p: loss.value(model.apply({"params": p}, x), target))(params)
