"""One pass through the network: gradient, logits and the statistics of its BatchNorm layers."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core.tracers import current_trace
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError
from jaxleak.kernels.outer import Outer
from jaxleak.models.norms import BatchNorm
from jaxleak.threat.loss import CROSS_ENTROPY, Loss

NORMS = (BatchNorm, nn.BatchNorm)  # layers whose inputs' statistics are looked at


class Moments(NamedTuple):
    """Mean and biased variance of each channel, over the images of a batch and their pixels."""

    mean: Float[Array, "c"]
    var: Float[Array, "c"]


class Observed(NamedTuple):
    """Results of one forward and backward pass."""

    gradient: PyTree  # of the loss; the kernels of dense layers as `Outer`
    logits: Float[Array, "b k"]
    statistics: PyTree  # {name of a BatchNorm layer: Moments of its input}, or () where they are not asked for


def observe(
    model,
    params: PyTree,
    x: Float[Array, "b h w c"],
    target: Float[Array, "b k"],
    loss: Loss = CROSS_ENTROPY,
    *,
    statistics: bool = False,
) -> Observed:
    """The gradient that a client with these images would share, with logits and statistics of the same pass.

    All of it can be differentiated with respect to `x` and `target`.

    Args:
        model, params, x, target, loss: as for `loss_gradient`.
        statistics: whether to look at the inputs of BatchNorm layers. They are named by their paths, as in
            "layer1.0/bn1"; of a layer that is used twice the last input counts; a model without any gives {}.
    """
    kernels = _dense_outputs(model, params, x)
    flat = flatten_dict(params)
    known = {path: leaf for path, leaf in flat.items() if path[:-1] in kernels and path[-1] == "kernel"}
    rest = {path: leaf for path, leaf in flat.items() if path not in known}

    def shifted(rest, shifts):
        inputs, moments = {}, {}

        def look(module, args, output):
            path = _path(model, module)
            if isinstance(module, NORMS):
                moments["/".join(path)] = _moments(args[0])
                return output
            if path not in shifts:
                return output
            inputs[path] = args[0]
            return output + shifts[path]

        with nn.intercept_methods(_after(look, nn.Dense, *(NORMS if statistics else ()))):
            logits = model.apply({"params": unflatten_dict({**rest, **known})}, x)
        return loss.value(logits, target), (inputs, logits, moments)

    shifts = {path: jnp.zeros(kind.shape, kind.dtype) for path, kind in kernels.items()}
    slopes, (inputs, logits, moments) = jax.grad(shifted, argnums=(0, 1), has_aux=True)(rest, shifts)
    products = {(*path, "kernel"): Outer(inputs[path], slopes[1][path]) for path in kernels}
    return Observed(unflatten_dict({**slopes[0], **products}), logits, moments if statistics else ())


def factored_gradient(model, params: PyTree, x: Float[Array, "b h w c"], target: Float[Array, "b k"]) -> PyTree:
    """`loss_gradient`, with the kernels of dense layers as `Outer`: their weight gradients are never built.

    A layer that is used twice, and one with other than one vector per image, has its gradient built. Arguments as for
    `loss_gradient`.
    """
    return observe(model, params, x, target).gradient


def follows(model, params: PyTree, x: Float[Array, "b h w c"], layer: str = "head") -> Float[Array, "f"]:
    """How much each feature that a dense layer reads follows the images, for its size: |sum of |dr_i/dx| / r_i|.

    Features that are 0 get inf. Arguments as for `loss_gradient`.

    Source: Sun et al. 2021 (Soteria), reference implementation.

    Raises:
        InputError: the network has no dense layer of this name that reads one vector per image.
    """

    def features(x):
        seen = []

        def note(module, args, output):
            if _path(model, module) == (layer,) and args[0].ndim == 2:
                seen.append(args[0])
            return output

        with nn.intercept_methods(_after(note, nn.Dense)):
            model.apply({"params": params}, x)
        if not seen:
            raise InputError(f"this `defence` needs a dense layer named {layer!r} that reads one vector per image.")
        return seen[-1]

    values, back = jax.vjp(features, x)

    def slopes_of(feature: Float[Array, "f"]) -> Float[Array, "b"]:
        (change,) = back(jnp.broadcast_to(feature, values.shape))
        return jnp.sqrt(jnp.sum(jnp.square(change), axis=tuple(range(1, change.ndim))))

    slopes = jax.lax.map(slopes_of, jnp.eye(values.shape[1], dtype=values.dtype)).T
    ratios = jnp.where(values == 0, jnp.inf, slopes / jnp.where(values == 0, 1, values))
    return jnp.abs(jnp.sum(ratios, axis=0))


def _moments(x: Float[Array, "b h w c"]) -> Moments:
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axis=axes)
    return Moments(mean, jnp.mean(jnp.square(x - mean), axis=axes))


def _after(act: Callable, *kinds: type[nn.Module]) -> Callable:
    """An interceptor of Linen that calls `act(module, args, output)` when a layer of these kinds has been applied."""

    def intercept(call, args, kwargs, context):
        output = call(*args, **kwargs)
        applied = isinstance(context.module, kinds) and context.method_name == "__call__"
        return act(context.module, args, output) if applied else output

    return intercept


def _path(model, module: nn.Module) -> tuple[str, ...]:
    """Path of a layer's parameters in `params`: the layer's own, unless `models.own` has renamed the model's layers."""
    renamed = getattr(model, "path_in_params", None)
    return renamed(module.path) if renamed else module.path


def _dense_outputs(model, params: PyTree, x) -> dict[tuple[str, ...], Any]:
    """Path and output type of each dense layer that is applied once, to one vector per image.

    Those inside another transformation (`nn.remat`, `nn.jit`) are not among them: what they see must not leave it. Nor
    are those whose kernel is tied to another parameter (`own.AdaptedModel.tied`): it is used elsewhere too.
    """
    seen: dict[tuple[str, ...], Any] = {}

    def apply(params, x):
        outside = current_trace()

        def note(module, args, output):
            path = _path(model, module)
            reachable = path not in seen and output.ndim == 2 and current_trace() == outside
            seen[path] = output if reachable else None
            return output

        with nn.intercept_methods(_after(note, nn.Dense)):
            return model.apply({"params": params}, x)

    jax.eval_shape(apply, params, x)
    for parameter in itertools.chain.from_iterable(getattr(model, "tied", ())):
        seen[parameter[:-1]] = None
    return {path: jax.ShapeDtypeStruct(out.shape, out.dtype) for path, out in seen.items() if out is not None}
