"""The LeNet of DLG and iDLG."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from jaxleak.conv import fast_conv
from jaxleak.dense import blocked_dot_general


def dlg_uniform(key, shape, dtype=float):
    """U(-0.5, 0.5), DLG's initialisation of every weight and bias."""
    return jax.random.uniform(key, shape, dtype, -0.5, 0.5)


class LeNet(nn.Module):
    """Three 5x5 convolutions with 12 channels (padding 2, strides 2, 2, 1), a sigmoid after each, and a dense head.

    Source: Zhu, Liu & Han 2019 (DLG), reference implementation `models/vision.py`.

    Attributes:
        num_classes: outputs of the head.
        channels: channels of each convolution.
        activation: applied after each convolution.
    """

    num_classes: int
    channels: int = 12
    activation: Callable = nn.sigmoid

    # Flax name -> torch's name of the same layer in DLG's implementation.
    torch_names = (("conv1", "body.0"), ("conv2", "body.2"), ("conv3", "body.4"), ("head", "fc.0"))

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c] in [0, 1]."""
        for name, stride in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
            x = nn.Conv(
                self.channels,
                (5, 5),
                strides=stride,
                padding=2,
                kernel_init=dlg_uniform,
                bias_init=dlg_uniform,
                conv_general_dilated=fast_conv,
                name=name,
            )(x)
            x = self.activation(x)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(
            self.num_classes,
            kernel_init=dlg_uniform,
            bias_init=dlg_uniform,
            dot_general=blocked_dot_general,
            name="head",
        )(x)

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels that are flattened into the head's input (NHWC order)."""
        h, w, _ = image_shape
        for stride in (2, 2, 1):
            h, w = (h - 1) // stride + 1, (w - 1) // stride + 1
        return h, w, self.channels
