"""Norms of the convolutional networks."""

from collections.abc import Callable, Iterable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.kernels.norm import standardised
from jaxleak.models.weight_init import norm_inits

EPSILON = 1e-5  # torch's, in BatchNorm and GroupNorm
NORMS = ("batch", "group")


class BatchNorm(nn.Module):
    """Each channel to mean 0 and variance 1, then scale and bias: (x - m) / sqrt(v + epsilon) * scale + bias.

    Attributes:
        train: m and v are the mean and the biased variance of the batch at hand; else the running ones, variables
            "mean" and "var" of the collection `batch_stats`, or 0 and 1, those of a new network, where the model is
            applied without that collection.
        scale_init, bias_init: initialisation of the two parameters.
        epsilon: added to the variance.

    Differs: train mode keeps no running statistics, so that it needs no collection but `params`.
    """

    train: bool
    scale_init: Callable = nn.initializers.ones
    bias_init: Callable = nn.initializers.zeros
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", self.bias_init, (channels,), jnp.float32)
        if self.train:
            if x.size == channels:
                raise InputError(
                    f"`train` BatchNorm needs more than one value per channel; got shape {list(x.shape)}. "
                    "Use larger images, the cifar stem, a larger batch, or train=False."
                )
            return standardised(x, self.epsilon) * scale + bias
        mean, var = (self._running(name, value, x) for name, value in (("mean", 0), ("var", 1)))
        return (x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias

    def _running(self, name: str, new: float, x: Float[Array, "b h w c"]) -> Float[Array, "c"]:
        if not (self.is_initializing() or self.has_variable("batch_stats", name)):
            return jnp.full(x.shape[-1:], new, x.dtype)
        return self.variable("batch_stats", name, jnp.full, x.shape[-1:], new, jnp.float32).value


def normalisation(norm: str, train: bool, groups: int, weight_init: str, epsilon: float = EPSILON) -> Callable:
    """A constructor of norms, called with the name in the network.

    Args:
        norm: "batch" or "group" (GroupNorm of each image).
        train: of `BatchNorm`.
        groups: of GroupNorm.
        weight_init: one of `weight_init.NORMED_WEIGHT_INITS`.
        epsilon: added to the variance.
    """
    inits = norm_inits(weight_init)
    if norm == "batch":
        return partial(BatchNorm, train=train, epsilon=epsilon, **inits)
    # The variance as E[(x - m)²], as BatchNorm's: E[x²] - m² would cancel.
    return partial(nn.GroupNorm, num_groups=groups, epsilon=epsilon, use_fast_variance=False, **inits)


def check_norm(norm: str, groups: int, normalised: Iterable[int]) -> None:
    """Raise unless a network whose norms see these numbers of channels can be built.

    Raises:
        InputError: an unknown norm, or groups that do not divide the channels.
    """
    check_choice("norm", norm, NORMS)
    check_positive("groups", groups, integer=True)
    uneven = sorted(channels for channels in normalised if channels % groups)
    if norm == "group" and uneven:
        raise InputError(f"`groups` must divide the channels of every norm; got {groups} groups for {uneven[0]}.")
