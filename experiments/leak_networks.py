"""Networks of the leak map that the package does not have."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

import jaxleak

CONV = {"padding": 1, "conv_general_dilated": jaxleak.fast_conv}


class VGG(nn.Module):
    """Two 3x3 convolutions and 2x2 maxima, three times, then two dense layers: after Simonyan & Zisserman 2015."""

    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x):
        for stage in range(3):
            for number in range(2):
                layer = nn.Conv(self.width * 2**stage, (3, 3), **CONV, name=f"conv{2 * stage + number}")
                x = nn.relu(layer(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(64, name="dense")(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes, name="head")(x)


class BatchNorm(nn.Module):
    """By the mean and variance of the batch at hand, as in train mode."""

    @nn.compact
    def __call__(self, x):
        scale, bias = (self.param(name, nn.initializers.constant(c), x.shape[-1:]) for name, c in PARAMETERS)
        mean = jnp.mean(x, axis=(0, 1, 2))
        return (x - mean) * scale * lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=(0, 1, 2)) + 1e-5) + bias


PARAMETERS = (("scale", 1.0), ("bias", 0.0))


class PreActResNet(nn.Module):
    """A block of norm, ReLU, convolution, twice, in each of three stages: after He et al. 2016 (identity mappings)."""

    num_classes: int
    width: int = 8
    groups: int = 0  # of GroupNorm; 0: BatchNorm in train mode

    @nn.compact
    def __call__(self, x):
        norm = (lambda: nn.GroupNorm(self.groups, use_fast_variance=False)) if self.groups else BatchNorm
        x = nn.Conv(self.width, (3, 3), **CONV)(x)
        for stage in range(3):
            channels, strides = self.width * 2**stage, 2 if stage else 1
            y = nn.relu(norm()(x))
            z = nn.Conv(channels, (3, 3), strides=strides, **CONV)(y)
            z = nn.Conv(channels, (3, 3), **CONV)(nn.relu(norm()(z)))
            short = {**CONV, "padding": 0}
            x = z + (nn.Conv(channels, (1, 1), strides=strides, **short)(y) if stage else x)
        x = jnp.mean(nn.relu(norm()(x)), axis=(1, 2))
        return nn.Dense(self.num_classes, name="head")(x)
