"""The LeNet of DLG and iDLG, and CPL's with one more convolution."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice
from jaxleak.kernels.conv import fast_conv
from jaxleak.kernels.dense import blocked_dot_general
from jaxleak.models.layers import read_features
from jaxleak.models.weight_init import WEIGHT_INITS, layer_inits


class LeNet(nn.Module):
    """Three 5x5 convolutions with 12 channels (padding 2, strides 2, 2, 1), a sigmoid after each, and a dense head.

    Source: Zhu, Liu & Han 2019 (DLG), reference implementation `models/vision.py`; with four convolutions Wei et al.
        2020 (CPL), notebooks of `git-disl/CPL_attack`.

    Attributes:
        num_classes: outputs of the head.
        channels: channels of each convolution.
        activation: applied after each convolution.
        weight_init: "uniform" (DLG: weights and biases from U(-0.5, 0.5)), "torch" (torch's default: U(-b, b) with
            b = 1 / sqrt(inputs of a unit)) or "flax" (Flax's: weights N(0, 1 / inputs of a unit), biases 0).
        strides: of the convolutions, one each; CPL's are 2, 2, 1, 1.

    Raises:
        InputError: a field has a value that is not allowed.

    Example:
        >>> import jaxleak
        >>> from jaxleak.models import LeNet
        >>> jaxleak.parameter_count(LeNet(num_classes=10), (32, 32, 3))
        15826
    """

    num_classes: int
    channels: int = 12
    activation: Callable = nn.sigmoid
    weight_init: str = "uniform"
    strides: tuple[int, ...] = (2, 2, 1)

    def __post_init__(self):
        check_choice("weight_init", self.weight_init, WEIGHT_INITS)
        if any(isinstance(stride, bool) or not isinstance(stride, int) or stride < 1 for stride in self.strides):
            raise InputError(f"`strides` must be whole numbers above 0; got {', '.join(map(repr, self.strides))}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c] in [0, 1]."""
        for i, stride in enumerate(self.strides, start=1):
            x = nn.Conv(
                self.channels,
                (5, 5),
                strides=stride,
                padding=2,
                **layer_inits(self.weight_init, 25 * x.shape[-1]),
                conv_general_dilated=fast_conv,
                name=f"conv{i}",
            )(x)
            x = self.activation(x)
        x = x.reshape(x.shape[0], -1)
        inits = layer_inits(self.weight_init, x.shape[-1])
        return read_features(nn.Dense(self.num_classes, **inits, dot_general=blocked_dot_general, name="head"), x)

    @property
    def torch_names(self) -> tuple[tuple[str, str], ...]:
        """Linen's name of each layer and torch's in the reference implementations."""
        return (*((f"conv{i + 1}", f"body.{2 * i}") for i in range(len(self.strides))), ("head", "fc.0"))

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels that are flattened into the head's input (NHWC order)."""
        h, w, _ = image_shape
        for stride in self.strides:
            h, w = (h - 1) // stride + 1, (w - 1) // stride + 1
        return h, w, self.channels


LeNetCPL = partial(LeNet, strides=(2, 2, 1, 1))
