"""The DenseNet family: a dense layer, a transition, one network. Modules are named as in torchvision."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.models.layers import classify, convolution
from jaxleak.models.norms import check_norm, normalisation
from jaxleak.models.pooling import avg_pool, max_pool
from jaxleak.models.resnet import STEMS
from jaxleak.models.weight_init import NORMED_WEIGHT_INITS


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, each after a norm and an activation; their output is put after the input's channels.

    Source: Huang et al. 2017, DenseNet-B; torchvision `_DenseLayer`.
    """

    growth: int
    bottleneck: int
    conv: Callable
    norm: Callable
    activation: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        y = self.activation(self.norm(name="norm1")(x))
        y = self.conv(self.bottleneck * self.growth, (1, 1), padding=0, name="conv1")(y)
        y = self.activation(self.norm(name="norm2")(y))
        y = self.conv(self.growth, (3, 3), padding=1, name="conv2")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """A norm, an activation, a 1x1 convolution to half the channels, and 2x2 means.

    Source: Huang et al. 2017, DenseNet-C with a compression of 0.5; torchvision `_Transition`.
    """

    conv: Callable
    norm: Callable
    activation: Callable

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow o"]:
        y = self.activation(self.norm(name="norm")(x))
        y = self.conv(x.shape[-1] // 2, (1, 1), padding=0, name="conv")(y)
        return avg_pool(y, 2, stride=2)


class DenseNet(nn.Module):
    """A densely connected network; the defaults of activation and initialisation are DLG's, as in `ResNet`.

    Source: Huang et al. 2017 (DenseNet-BC); torchvision `models/densenet.py`.
    Differs: no dropout; torchvision's default is none either. The stem "cifar" is that of `ResNet`.

    Attributes:
        num_classes: outputs of the head.
        block_sizes: layers of each dense block.
        growth: channels that each layer adds.
        width: channels of the stem.
        bottleneck: a layer's 1x1 convolution has this many times `growth` channels.
        stem: "cifar" (3x3, stride 1) or "imagenet" (7x7, stride 2, then a 3x3 maximum with stride 2).
        activation: applied everywhere, the stem included.
        norm: "batch" or "group" (GroupNorm of each image).
        groups: of GroupNorm; must divide the channels of every norm.
        train: BatchNorm takes the statistics of the batch at hand; else those of the collection `batch_stats`.
        weight_init: "uniform" (DLG: all from U(-0.5, 0.5), scales and biases of norms too), "uniform-weights"
            (convolutions and head from U(-0.5, 0.5), norms 1 and 0), "torch" (torchvision: convolutions
            N(0, 2 / fan-in), norms 1 and 0, head's weights U(-1, 1) / sqrt(fan-in), its biases 0) or "flax" (Flax's:
            kernels N(0, 1 / fan-in), biases 0, norms 1 and 0).

    Raises:
        InputError: a field has a value that is not allowed, or the image is too small to be halved at each transition.

    Example:
        >>> import jaxleak
        >>> from jaxleak.models import DenseNet
        >>> jaxleak.parameter_count(DenseNet(10, block_sizes=(2, 2), growth=4, width=8), (32, 32, 3))
        3746
    """

    num_classes: int
    block_sizes: tuple[int, ...]
    growth: int = 32
    width: int = 64
    bottleneck: int = 4
    stem: str = "cifar"
    activation: Callable = nn.sigmoid
    norm: str = "batch"
    groups: int = 32
    train: bool = True
    weight_init: str = "uniform"

    # Every other module has torchvision's name.
    torch_names = (("head", "classifier"),)

    def __post_init__(self):
        check_choice("stem", self.stem, STEMS)
        check_choice("weight_init", self.weight_init, NORMED_WEIGHT_INITS)
        for field in ("growth", "width", "bottleneck"):
            check_positive(field, getattr(self, field), integer=True)
        if not self.block_sizes:
            raise InputError("`block_sizes` must name at least one block; got ().")
        check_norm(self.norm, self.groups, [*self._normalised(), self.bottleneck * self.growth])
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c]."""
        conv = convolution(self.weight_init, nn.initializers.variance_scaling(2.0, "fan_in", "normal"))
        norm = normalisation(self.norm, self.train, self.groups, self.weight_init)
        parts: dict[str, Any] = {"conv": conv, "norm": norm, "activation": self.activation}
        x = self._stem(x, conv, norm)
        for block, size in enumerate(self.block_sizes, start=1):
            for index in range(1, size + 1):
                name = f"features.denseblock{block}.denselayer{index}"
                x = DenseLayer(growth=self.growth, bottleneck=self.bottleneck, **parts, name=name)(x)
            if block < len(self.block_sizes):
                x = Transition(**parts, name=f"features.transition{block}")(x)
        x = self.activation(norm(name="features.norm5")(x))
        return classify(jnp.mean(x, axis=(1, 2)), self.num_classes, self.weight_init, bias_init=nn.initializers.zeros)

    def _stem(self, x: Float[Array, "b h w c"], conv: Callable, norm: Callable) -> Float[Array, "b oh ow o"]:
        name = "features.conv0"
        if self.stem == "cifar":
            x = conv(self.width, (3, 3), padding=1, name=name)(x)
        else:
            x = conv(self.width, (7, 7), strides=2, padding=3, name=name)(x)
        x = self.activation(norm(name="features.norm0")(x))
        return max_pool(x, 3, stride=2, padding=1) if self.stem == "imagenet" else x

    def _normalised(self) -> Iterator[int]:
        """Channels that the norms of the features see, the last one's last."""
        channels = self.width
        yield channels
        for block, size in enumerate(self.block_sizes):
            if block > 0:
                channels //= 2
            for _ in range(size):
                yield channels
                channels += self.growth
            yield channels

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels of the head's input, which is averaged over the image whatever its size."""
        return 1, 1, [*self._normalised()][-1]


DenseNet121 = partial(DenseNet, block_sizes=(6, 12, 24, 16))
