"""What the victim shares and what the attacker minimises."""

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


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """Sum of squares over all tensors."""
    return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))


def squared_l2(gradient: PyTree, update: PyTree) -> Float[Array, ""]:
    """DLG's objective: squared differences summed (not averaged, no 1/2) over all parameter tensors.

    Source: Zhu, Liu & Han 2019, equation 4.
    """
    return squared_norm(jax.tree.map(jnp.subtract, gradient, update))


OBJECTIVES = {"l2": squared_l2}
