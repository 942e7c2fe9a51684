"""Activations by name."""

from collections.abc import Callable

import flax.linen as nn
import jax

from jaxleak.errors import InputError, check_choice


def gelu(x: jax.Array) -> jax.Array:
    """x times the standard normal distribution function of x, as torch's default; Flax's is an approximation."""
    return jax.nn.gelu(x, approximate=False)


# With torch's defaults: slope 0.01 of leaky_relu, alpha 1 of elu.
ACTIVATIONS: dict[str, Callable] = {
    "elu": nn.elu,
    "gelu": gelu,
    "leaky_relu": nn.leaky_relu,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "tanh": nn.tanh,
}


def find_activation(activation: str | Callable) -> Callable:
    """The activation called `activation`, or that function itself.

    Raises:
        InputError: a name that is not in `ACTIVATIONS`, or something that is neither a name nor a function.
    """
    if isinstance(activation, str):
        return ACTIVATIONS[check_choice("activation", activation, ACTIVATIONS)]
    if not callable(activation):
        raise InputError(f"`activation` must be a function or one of {', '.join(ACTIVATIONS)}; got {activation!r}.")
    return activation
