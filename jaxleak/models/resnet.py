"""The ResNet family: two blocks, one network, variants by `partial`. Modules are named as in torchvision."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxleak.conv import fast_conv
from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.models.weight_init import dlg_uniform, torch_uniform

EPSILON = 1e-5  # torch's, in BatchNorm and GroupNorm
STEMS = ("cifar", "imagenet")
NORMS = ("batch", "group")
WEIGHT_INITS = ("uniform", "uniform-weights", "torch")


class BatchNorm(nn.Module):
    """Each channel to mean 0 and variance 1, then scale and bias: (x - m) / sqrt(v + 1e-5) * scale + bias.

    Attributes:
        train: m and v are the mean and the biased variance of the batch at hand; else the running ones, variables
            "mean" and "var" of the collection `batch_stats`, or 0 and 1, those of a new network, where the model is
            applied without that collection.
        scale_init, bias_init: initialisation of the two parameters.

    Differs: train mode keeps no running statistics, so that it needs no collection but `params`.
    """

    train: bool
    scale_init: Callable = nn.initializers.ones
    bias_init: Callable = nn.initializers.zeros

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
            mean = jnp.mean(x, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(x - mean), axis=(0, 1, 2))
        else:
            mean, var = (self._running(name, value, x) for name, value in (("mean", 0), ("var", 1)))
        return (x - mean) * (scale * lax.rsqrt(var + EPSILON)) + bias

    def _running(self, name: str, new: float, x: Float[Array, "b h w c"]) -> Float[Array, "c"]:
        if not (self.is_initializing() or self.has_variable("batch_stats", name)):
            return jnp.full(x.shape[-1:], new, x.dtype)
        return self.variable("batch_stats", name, jnp.full, x.shape[-1:], new, jnp.float32).value


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow c"]:
    """Maximum over 3x3 windows, stride 2, padding 1: torch's `MaxPool2d(3, 2, 1)`, ties included.

    Of equal values the first in the window has the derivative. Written as selections, of which every derivative of
    any order is again selections.
    """
    for axis in (2, 1):  # columns before rows: the first of a window is the leftmost of its topmost row
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        size = (x.shape[axis] - 1) // 2 + 1
        x = lax.slice_in_dim(padded, 0, 2 * size - 1, 2, axis)
        for offset in (1, 2):
            other = lax.slice_in_dim(padded, offset, offset + 2 * size - 1, 2, axis)
            x = jnp.where((other > x) | jnp.isnan(other), other, x)
    return x


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
            (convolutions and head from U(-0.5, 0.5), norms 1 and 0) or "torch" (torchvision: convolutions
            N(0, 2 / fan-out), norms 1 and 0, head U(-1, 1) / sqrt(fan-in)).
        mean, std: of each channel of the images; the network's input is (x - mean) / std. None where empty.

    Raises:
        InputError: a field has a value that is not allowed.
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
        check_choice("norm", self.norm, NORMS)
        check_choice("weight_init", self.weight_init, WEIGHT_INITS)
        check_positive("width", self.width, integer=True)
        check_positive("groups", self.groups, integer=True)
        if self.norm == "group" and self.width % self.groups:
            raise InputError(f"`groups` must divide `width`; got {self.groups} groups for width {self.width}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c]."""
        conv, norm = self._convolution(), self._normalisation()
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
            x = max_pool(x)
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
        return self._head(jnp.mean(x, axis=(1, 2)))

    def _convolution(self) -> Callable:
        torchs = self.weight_init == "torch"
        kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal") if torchs else dlg_uniform
        return partial(nn.Conv, use_bias=False, kernel_init=kernel_init, conv_general_dilated=fast_conv)

    def _normalisation(self) -> Callable:
        inits = {"scale_init": dlg_uniform, "bias_init": dlg_uniform} if self.weight_init == "uniform" else {}
        if self.norm == "batch":
            return partial(BatchNorm, train=self.train, **inits)
        # The variance as E[(x - m)²], as BatchNorm's: E[x²] - m² would cancel.
        return partial(nn.GroupNorm, num_groups=self.groups, epsilon=EPSILON, use_fast_variance=False, **inits)

    def _head(self, x: Float[Array, "b f"]) -> Float[Array, "b k"]:
        init = torch_uniform(x.shape[-1]) if self.weight_init == "torch" else dlg_uniform
        return nn.Dense(self.num_classes, kernel_init=init, bias_init=init, name="head")(x)

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels of the head's input, which is averaged over the image whatever its size."""
        return 1, 1, self.width * 2 ** (len(self.stage_sizes) - 1) * self.block.expansion


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck)
ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck)
