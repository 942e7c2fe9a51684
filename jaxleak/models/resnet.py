"""The ResNet family: two blocks, one network, variants by `partial`. Modules are named as in torchvision."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.models.layers import classify, convolution
from jaxleak.models.norms import check_norm, normalisation
from jaxleak.models.pooling import max_pool
from jaxleak.models.weight_init import NORMED_WEIGHT_INITS

STEMS = ("cifar", "imagenet")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Source: He et al. 2016, figure 5 left; torchvision `BasicBlock`."""

    channels: int
    stride: int
    conv: Callable
    norm: Callable
    activation: Callable

    expansion = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow o"]:
        y = self.conv(self.channels, (3, 3), strides=self.stride, padding=1, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        y = self.conv(self.channels, (3, 3), padding=1, name="conv2")(y)
        y = self.norm(name="bn2")(y)
        return self.activation(y + shortcut(self, x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut. Source: torchvision `Bottleneck` (v1.5)."""

    channels: int
    stride: int
    conv: Callable
    norm: Callable
    activation: Callable

    expansion = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow o"]:
        y = self.conv(self.channels, (1, 1), padding=0, name="conv1")(x)
        y = self.activation(self.norm(name="bn1")(y))
        y = self.conv(self.channels, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        y = self.activation(self.norm(name="bn2")(y))
        y = self.conv(self.channels * self.expansion, (1, 1), padding=0, name="conv3")(y)
        y = self.norm(name="bn3")(y)
        return self.activation(y + shortcut(self, x))


def shortcut(block: BasicBlock | Bottleneck, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow o"]:
    """`x`, through a strided 1x1 convolution where the block changes its size or channels."""
    channels = block.channels * block.expansion
    if block.stride == 1 and x.shape[-1] == channels:
        return x
    x = block.conv(channels, (1, 1), strides=block.stride, padding=0, name="downsample.0")(x)
    return block.norm(name="downsample.1")(x)


class ResNet(nn.Module):
    """A residual network; the defaults of activation and initialisation are DLG's, as in `LeNet`.

    Source: He et al. 2016; torchvision `models/resnet.py`; stem "cifar" as in DLG's `models/vision.py`.

    Attributes:
        num_classes: outputs of the head.
        stage_sizes: blocks of each stage; every stage but the first halves the image and doubles the channels.
        block: `BasicBlock` or `Bottleneck`.
        width: channels of the stem and of the first stage's 3x3 convolutions.
        stem: "cifar" (3x3, stride 1) or "imagenet" (7x7, stride 2, then a 3x3 maximum with stride 2).
        activation: applied everywhere, the stem included.
        norm: "batch" or "group" (GroupNorm of each image).
        groups: of GroupNorm; must divide `width`.
        train: BatchNorm takes the statistics of the batch at hand; else those of the collection `batch_stats`.
        weight_init: "uniform" (DLG: all from U(-0.5, 0.5), scales and biases of norms too), "uniform-weights"
            (convolutions and head from U(-0.5, 0.5), norms 1 and 0), "torch" (torchvision: convolutions
            N(0, 2 / fan-out), norms 1 and 0, head U(-1, 1) / sqrt(fan-in)) or "flax" (Flax's: kernels
            N(0, 1 / fan-in), biases 0, norms 1 and 0).
        mean, std: of each channel of the images; the network's input is (x - mean) / std. None where empty.

    Raises:
        InputError: a field has a value that is not allowed.

    Example:
        >>> import jaxleak
        >>> from jaxleak.models.resnet import BasicBlock, ResNet
        >>> jaxleak.parameter_count(ResNet(10, stage_sizes=(1, 1), block=BasicBlock, width=8, groups=8), (32, 32, 3))
        5266
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    width: int = 64
    stem: str = "cifar"
    activation: Callable = nn.sigmoid
    norm: str = "batch"
    groups: int = 32
    train: bool = True
    weight_init: str = "uniform"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    # Every other module has torchvision's name.
    torch_names = (("head", "fc"),)

    def __post_init__(self):
        check_choice("stem", self.stem, STEMS)
        check_choice("weight_init", self.weight_init, NORMED_WEIGHT_INITS)
        check_positive("width", self.width, integer=True)
        check_norm(self.norm, self.groups, [self.width])
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c]."""
        conv = convolution(self.weight_init, nn.initializers.variance_scaling(2.0, "fan_out", "normal"))
        norm = normalisation(self.norm, self.train, self.groups, self.weight_init)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, x.shape[-1]):
                raise InputError(f"`{name}` must have {x.shape[-1]} numbers, one per channel; got {len(values)}.")
        if self.mean:
            x = x - jnp.asarray(self.mean, x.dtype)
        if self.std:
            x = x / jnp.asarray(self.std, x.dtype)
        if self.stem == "cifar":
            x = conv(self.width, (3, 3), padding=1, name="conv1")(x)
        else:
            x = conv(self.width, (7, 7), strides=2, padding=3, name="conv1")(x)
        x = self.activation(norm(name="bn1")(x))
        if self.stem == "imagenet":
            x = max_pool(x, 3, stride=2, padding=1)
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                x = self.block(
                    channels=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    activation=self.activation,
                    name=f"layer{stage + 1}.{index}",
                )(x)
        return classify(jnp.mean(x, axis=(1, 2)), self.num_classes, self.weight_init)

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels of the head's input, which is averaged over the image whatever its size."""
        return 1, 1, self.width * 2 ** (len(self.stage_sizes) - 1) * self.block.expansion


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck)
ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck)

# Geiping et al. 2020 (Inverting Gradients), reference implementation `inversefed/nn/models.py`: three stages on CIFAR,
# 4 and 10 times He et al.'s 16 channels. There the stages are called layers.0, layers.1 and layers.2.
_published = partial(ResNet, block=BasicBlock, activation=nn.relu, weight_init="torch")
ResNet20x4 = partial(_published, stage_sizes=(3, 3, 3), width=16 * 4)
ResNet32x10 = partial(_published, stage_sizes=(5, 5, 5), width=16 * 10)
