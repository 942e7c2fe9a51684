"""Distributions from which weights are drawn."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

# Of networks without norms: DLG's, torch's and Flax's.
WEIGHT_INITS = ("uniform", "torch", "flax")
# Of networks with norms. "torch" is what the network's reference implementation in torch does.
NORMED_WEIGHT_INITS = ("uniform", "uniform-weights", "torch", "flax")


def dlg_uniform(key, shape, dtype=float):
    """U(-0.5, 0.5), DLG's initialisation of every weight and bias."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


def torch_uniform(fan_in: int):
    """U(-b, b) with b = fan_in ** -0.5: torch's default for the weights and biases of dense and convolution layers."""
    bound = fan_in**-0.5

    def draw(key, shape, dtype=float):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def layer_inits(weight_init: str, fan_in: int, **torchs: Callable) -> dict[str, Any]:
    """Initialisers of the kernel and the bias of a layer whose units have `fan_in` inputs.

    Args:
        weight_init: one of `NORMED_WEIGHT_INITS`.
        fan_in: inputs of a unit.
        torchs: `kernel_init` or `bias_init` under "torch", where it is not torch's default.
    """
    if weight_init == "flax":
        return {"kernel_init": nn.initializers.lecun_normal(), "bias_init": nn.initializers.zeros}
    draw = torch_uniform(fan_in) if weight_init == "torch" else dlg_uniform
    return {"kernel_init": draw, "bias_init": draw, **(torchs if weight_init == "torch" else {})}


def norm_inits(weight_init: str) -> dict[str, Any]:
    """Initialisers of the scale and the bias of a norm; empty for ones and zeros."""
    return {"scale_init": dlg_uniform, "bias_init": dlg_uniform} if weight_init == "uniform" else {}
