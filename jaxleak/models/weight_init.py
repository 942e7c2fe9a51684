"""From which distributions weights are drawn."""

from collections.abc import Callable

import jax

# Of networks without norms: DLG's and torch's default.
WEIGHT_INITS = ("uniform", "torch")


def dlg_uniform(key, shape, dtype=float):
    """U(-0.5, 0.5), DLG's initialisation of every weight and bias."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


def torch_uniform(fan_in: int):
    """U(-b, b) with b = fan_in ** -0.5: torch's default for the weights and biases of dense and convolution layers."""
    bound = fan_in**-0.5

    def draw(key, shape, dtype=float):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def layer_init(weight_init: str, fan_in: int) -> Callable:
    """What draws the weights and the biases of a layer whose units have `fan_in` inputs: one of `WEIGHT_INITS`."""
    return torch_uniform(fan_in) if weight_init == "torch" else dlg_uniform
