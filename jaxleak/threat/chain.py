"""Networks that are chains: convolutions and dense layers, one after the other, with a known activation between."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxleak.errors import InputError
from jaxleak.models.activations import ACTIVATIONS

TOLERANCE = 1e-4  # of an activation, relative to the largest output
# The input of an activation from its output; a ReLU has one only where its output is above 0.
INVERSES: dict[str, Callable[[Array], Array]] = {
    "none": lambda a: a,
    "relu": lambda a: a,
    "leaky_relu": lambda a: jnp.where(a < 0, 100 * a, a),
    "sigmoid": lambda a: jnp.log(a) - jnp.log1p(-a),
    "softplus": lambda a: a + jnp.log(-jnp.expm1(-a)),
    "tanh": jnp.arctanh,
}
RANGES = {"sigmoid": (0.0, 1.0), "softplus": (0.0, jnp.inf), "tanh": (-1.0, 1.0), "relu": (0.0, jnp.inf)}


class Link(NamedTuple):
    """A layer of a chain."""

    path: tuple[str, ...]  # of its parameters
    layer: nn.Module  # a Conv or Dense, without a place in the network
    activation: str  # behind it, one of `INVERSES`
    shape: tuple[int, ...]  # of its input, [1, h, w, c] or [1, n]

    @property
    def dense(self) -> bool:
        return isinstance(self.layer, nn.Dense)

    def output_shape(self, kernel: Array) -> tuple[int, ...]:
        """Shape of its outputs."""
        return jax.eval_shape(self.linear, kernel, jnp.zeros(self.shape, kernel.dtype)).shape

    def linear(self, kernel: Array, x: Array) -> Array:
        """Its outputs without the bias."""
        bias = {"bias": jnp.zeros(kernel.shape[-1], kernel.dtype)} if getattr(self.layer, "use_bias", True) else {}
        found: Any = self.layer.apply({"params": {"kernel": kernel, **bias}}, x)
        return found


def find_chain(model: Any, params: PyTree, shape: tuple[int, int, int]) -> list[Link]:
    """The layers of a chain, from the image to the outputs.

    Which activations stand between is tried out on a random image and random weights.

    Args:
        model: called as `model.apply({"params": params}, x)`.
        params: of the shapes of its weights.
        shape: height, width and channels of the image.

    Raises:
        InputError: the model is no chain.
    """
    seen: list[tuple[nn.Module, tuple[str, ...], Array, Array]] = []

    def note(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv | nn.Dense) and context.method_name == "__call__":
            renamed = getattr(model, "path_in_params", None)
            path = renamed(context.module.path) if renamed else context.module.path
            seen.append((context.module.clone(parent=None, name=None), path, args[0], output))
        return output

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((1, *shape)), float)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) * np.sqrt(leaf.shape[-1] / leaf.size), float), params
    )
    with nn.intercept_methods(note):
        outputs = model.apply({"params": params}, x)
    if not seen or not _same(seen[0][2], x):
        raise InputError(_refusal("its first layer does not read the image itself"))
    links = []
    for number, (layer, path, read, gives) in enumerate(seen):
        after = seen[number + 1][2] if number + 1 < len(seen) else outputs
        found = [name for name in INVERSES if _same(activate(name, gives), after)]
        if not found:
            what = "there is more than a known activation" if after.size == gives.size else "something pools or joins"
            raise InputError(_refusal(f"{what} behind {'/'.join(path)}"))
        links.append(Link(path, layer, found[0], tuple(read.shape)))
    kinds = [link.dense for link in links]
    if not kinds[-1] or links[-1].activation != "none":
        raise InputError(_refusal("it does not end in a dense layer"))
    if kinds != sorted(kinds):
        raise InputError(_refusal("a convolution stands behind a dense layer"))
    for link in links:
        if link.dense and "bias" not in part_of(params, link.path):
            raise InputError(_refusal(f"the dense layer {'/'.join(link.path)} has no bias"))
    return links


def _same(one: Float[Array, "..."], other: Float[Array, "..."]) -> bool:
    if one.size != other.size:
        return False
    apart = np.abs(np.asarray(one).ravel() - np.asarray(other).ravel())
    return bool(np.max(apart) <= TOLERANCE * max(np.max(np.abs(np.asarray(one))), 1e-30))


def _refusal(reason: str) -> str:
    names = ", ".join(name for name in INVERSES if name != "none")
    return (
        f"rgap needs convolutions and dense layers in a chain, with {names} or nothing between; of this model "
        f"{reason}. Use lenet, mlp, or another attack."
    )


def part_of(params: PyTree, path: tuple[str, ...]) -> Any:
    """The part of a tree of parameters at a path."""
    for name in path:
        params = params[name]
    return params


def activate(activation: str, z: Array) -> Array:
    """The activation's outputs."""
    return z if activation == "none" else ACTIVATIONS[activation](z)


def slopes(activation: str, z: Array) -> Array:
    """The activation's derivative at its inputs; of a ReLU 1 where these are above 0, else 0."""
    return jax.vmap(jax.grad(lambda each: activate(activation, each)))(z.ravel()).reshape(z.shape)
