"""The client's loss and its gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def cross_entropy(logits: Float[Array, "b k"], target: Float[Array, "b k"]) -> Float[Array, ""]:
    """Mean over the batch of -sum_k target_k log softmax(logits)_k, for any target distribution.

    Source: DLG's `cross_entropy_for_onehot`; with a one-hot target it is torch's `CrossEntropyLoss`.
    """
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(logits, axis=-1), axis=-1))


def loss_gradient(model, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"]) -> PyTree:
    """The gradient of the loss with respect to the parameters: what a client shares.

    Args:
        model: a Linen module; called as `model.apply({"params": params}, x)`.
        params: its `params` collection.
        x: images in [0, 1].
        target: one distribution over classes per image.
    """
    return jax.grad(lambda p: cross_entropy(model.apply({"params": p}, x), target))(params)
