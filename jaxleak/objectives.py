"""What the victim shares and what the attacker minimises."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from jaxleak.dense import Outer, outer_distance
from jaxleak.errors import InputError
from jaxleak.vectors import squared_distance


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


def factored_gradient(model, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"]) -> PyTree:
    """`loss_gradient`, with the kernels of dense layers as `Outer`: their weight gradients are never built.

    A layer that is used twice, and one with other than one vector per image, has its gradient built. Arguments as for
    `loss_gradient`.
    """
    kernels = _dense_outputs(model, params, x)
    flat = flatten_dict(params)
    known = {path: leaf for path, leaf in flat.items() if path[:-1] in kernels and path[-1] == "kernel"}
    rest = {path: leaf for path, leaf in flat.items() if path not in known}

    def loss(rest, shifts):
        inputs = {}

        def shift(module, args, output):
            if module.path not in shifts:
                return output
            inputs[module.path] = args[0]
            return output + shifts[module.path]

        with nn.intercept_methods(_on_dense(shift)):
            logits = model.apply({"params": unflatten_dict({**rest, **known})}, x)
        return cross_entropy(logits, target), inputs

    shifts = {path: jnp.zeros(kind.shape, kind.dtype) for path, kind in kernels.items()}
    (slopes, outputs), inputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(rest, shifts)
    products = {(*path, "kernel"): Outer(inputs[path], outputs[path]) for path in kernels}
    return unflatten_dict({**slopes, **products})


def _on_dense(act):
    """An interceptor of Linen that calls `act(module, args, output)` when a dense layer has been applied."""

    def intercept(call, args, kwargs, context):
        output = call(*args, **kwargs)
        dense = isinstance(context.module, nn.Dense) and context.method_name == "__call__"
        return act(context.module, args, output) if dense else output

    return intercept


def _dense_outputs(model, params: PyTree, x) -> dict[tuple[str, ...], Any]:
    """Path and output type of each dense layer that is applied once, to one vector per image."""
    seen: dict[tuple[str, ...], Any] = {}

    def note(module, args, output):
        seen[module.path] = None if module.path in seen or output.ndim != 2 else output
        return output

    with nn.intercept_methods(_on_dense(note)):
        jax.eval_shape(lambda p, x: model.apply({"params": p}, x), params, x)
    return {path: jax.ShapeDtypeStruct(out.shape, out.dtype) for path, out in seen.items() if out is not None}


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """Sum of squares over all tensors."""
    return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))


def squared_l2(gradient: PyTree, update: PyTree) -> Float[Array, ""]:
    """DLG's objective: squared differences summed (not averaged, no 1/2) over all parameter tensors.

    Args:
        gradient: of the candidate; leaves may be `Outer`.
        update: what the client shared.

    Source: Zhu, Liu & Han 2019, equation 4.
    """

    def distance(leaf, shared):
        if isinstance(leaf, Outer):
            return outer_distance(*leaf, shared)
        return squared_distance(leaf, shared)

    parts = jax.tree.map(distance, gradient, update, is_leaf=lambda leaf: isinstance(leaf, Outer))
    return sum(jax.tree.leaves(parts), start=jnp.zeros(()))


OBJECTIVES = {"l2": squared_l2}
SCALES = ("none", "relative", "per-tensor")


def scale_factors(update: PyTree, scale: str) -> PyTree:
    """One factor f_t per tensor: the scaled objective compares f_t times the candidate's gradient with f_t times u_t.

    Args:
        update: what the client shared, tensors u_t, t = 1..T.
        scale: "none": f_t = 1, as published, and () is returned. "relative": f_t = 1 / |u|, so that the squared L2
            distance is divided by the update's squared norm. "per-tensor": f_t = 1 / (sqrt(T) |u_t|), the mean over
            tensors of their relative squared errors, which counts layers whose gradients are small as much as others.
            A tensor without gradient is left as it is.
    """
    if scale == "none":
        return ()
    if scale == "relative":
        norm = _norm_unless_zero(jax.tree.leaves(update))
        return jax.tree.map(lambda _: 1 / norm, update)
    root = len(jax.tree.leaves(update)) ** 0.5
    return jax.tree.map(lambda leaf: 1 / (root * _norm_unless_zero([leaf])), update)


def _norm_unless_zero(leaves: list[Array]) -> Float[Array, ""]:
    """Euclidean norm over all of them, 1 where it is 0; squares neither under- nor overflow."""
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    safe = jnp.where(largest > 0, largest, 1)
    norm = safe * jnp.sqrt(squared_norm([leaf / safe for leaf in leaves]))
    return jnp.where(largest > 0, norm, 1)


def scaled(gradient: PyTree, factors: PyTree) -> PyTree:
    """Every tensor times its factor from `scale_factors`; leaves may be `Outer`."""
    if factors == ():
        return gradient

    def multiply(leaf, factor):
        return leaf._replace(right=factor * leaf.right) if isinstance(leaf, Outer) else factor * leaf

    return jax.tree.map(multiply, gradient, factors, is_leaf=lambda leaf: isinstance(leaf, Outer))


def feature_distance(gradient: PyTree, features: Float[Array, "i"]) -> Float[Array, ""]:
    """Relative squared distance |h - h*|^2 / |h*|^2 of the candidate's head input h from h*, the client's.

    Args:
        gradient: of the candidate, by `factored_gradient`.
        features: h*, as `labels.head_input` finds it.

    Raises:
        InputError: the head is not a dense layer that is applied once, to one vector.
    """
    kernel = gradient["head"]["kernel"]
    if not isinstance(kernel, Outer):
        raise InputError("`features` needs a head that is a dense layer, applied once; leave it 0 for this model.")
    return squared_norm(kernel.left - features) / _norm_unless_zero([features]) ** 2
