"""The LeNet of DLG and iDLG."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from jaxleak.conv import fast_conv
from jaxleak.dense import blocked_dot_general
from jaxleak.errors import check_choice
from jaxleak.models.weight_init import WEIGHT_INITS, layer_init


class LeNet(nn.Module):
    """Three 5x5 convolutions with 12 channels (padding 2, strides 2, 2, 1), a sigmoid after each, and a dense head.

    Source: Zhu, Liu & Han 2019 (DLG), reference implementation `models/vision.py`.

    Attributes:
        num_classes: outputs of the head.
        channels: channels of each convolution.
        activation: applied after each convolution.
        weight_init: "uniform" (DLG: weights and biases from U(-0.5, 0.5)) or "torch" (torch's default:
            U(-b, b) with b = 1 / sqrt(inputs of a unit)).
    """

    num_classes: int
    channels: int = 12
    activation: Callable = nn.sigmoid
    weight_init: str = "uniform"

    # Flax name -> torch's name of the same layer in DLG's implementation.
    torch_names = (("conv1", "body.0"), ("conv2", "body.2"), ("conv3", "body.4"), ("head", "fc.0"))

    def __post_init__(self):
        check_choice("weight_init", self.weight_init, WEIGHT_INITS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c] in [0, 1]."""
        for name, stride in (("conv1", 2), ("conv2", 2), ("conv3", 1)):
            init = layer_init(self.weight_init, 25 * x.shape[-1])
            x = nn.Conv(
                self.channels,
                (5, 5),
                strides=stride,
                padding=2,
                kernel_init=init,
                bias_init=init,
                conv_general_dilated=fast_conv,
                name=name,
            )(x)
            x = self.activation(x)
        x = x.reshape(x.shape[0], -1)
        init = layer_init(self.weight_init, x.shape[-1])
        return nn.Dense(
            self.num_classes,
            kernel_init=init,
            bias_init=init,
            dot_general=blocked_dot_general,
            name="head",
        )(x)

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels that are flattened into the head's input (NHWC order)."""
        h, w, _ = image_shape
        for stride in (2, 2, 1):
            h, w = (h - 1) // stride + 1, (w - 1) // stride + 1
        return h, w, self.channels
