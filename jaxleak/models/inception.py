"""Inception v3: a unit, five kinds of block, one network. Modules are named as in torchvision."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice, check_positive
from jaxleak.models.layers import classify, convolution
from jaxleak.models.norms import check_norm, normalisation
from jaxleak.models.pooling import avg_pool, max_pool
from jaxleak.models.weight_init import NORMED_WEIGHT_INITS

EPSILON = 1e-3  # of its norms, in torchvision as in TensorFlow
SMALLEST, SMALLEST_AUX = 75, 299  # pixels of a side with which every map of features, or the auxiliary head's, is left
# Channels of all units, those of the auxiliary head included.
CHANNELS = (32, 48, 64, 80, 96, 128, 160, 192, 320, 384, 448, 768)

Images = Float[Array, "b h w c"]
Maps = Float[Array, "b oh ow o"]


def scaled(channels: int, width: float) -> int:
    """`width` times `channels`, a whole number above 0."""
    return max(1, round(width * channels))


class Unit(nn.Module):
    """A convolution, a norm and an activation. Source: torchvision `BasicConv2d`.

    Attributes:
        channels: outputs where `width` is 1.
        kernel: height and width in pixels.
        stride: of both axes.
        same: pads so that the image keeps its size at stride 1; else without padding.
        width: multiplies the channels.
    """

    channels: int
    kernel: tuple[int, int]
    conv: Callable
    norm: Callable
    activation: Callable
    stride: int = 1
    same: bool = True
    width: float = 1.0

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        padding = [(size // 2, size // 2) if self.same else (0, 0) for size in self.kernel]
        channels = scaled(self.channels, self.width)
        x = self.conv(channels, self.kernel, strides=self.stride, padding=padding, name="conv")(x)
        return self.activation(self.norm(name="bn")(x))


def branch(unit: Callable, x: Images, name: str, *layers: tuple[int, tuple[int, int]]) -> Maps:
    """Units one after the other, called `name`_1, `name`_2 and so on, of these channels and kernels."""
    for i, (channels, kernel) in enumerate(layers, start=1):
        x = unit(channels, kernel, name=f"{name}_{i}")(x)
    return x


def pooled(unit: Callable, x: Images, channels: int) -> Maps:
    """3x3 means, then a 1x1 unit."""
    return unit(channels, (1, 1), name="branch_pool")(avg_pool(x, 3, stride=1, padding=1))


def halved(unit: Callable, x: Images, channels: int, name: str) -> Maps:
    """A 3x3 unit with stride 2 and no padding."""
    return unit(channels, (3, 3), stride=2, same=False, name=name)(x)


class InceptionA(nn.Module):
    """Branches of 1x1, of 5x5, of two 3x3, and of means. Source: Szegedy et al. 2016, figure 5; torchvision's name."""

    unit: Callable
    pool_channels: int

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        one = self.unit(64, (1, 1), name="branch1x1")(x)
        five = branch(self.unit, x, "branch5x5", (48, (1, 1)), (64, (5, 5)))
        double = branch(self.unit, x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
        return jnp.concatenate([one, five, double, pooled(self.unit, x, self.pool_channels)], axis=-1)


class InceptionB(nn.Module):
    """Halves the image: branches of 3x3, of two 3x3, and of maxima. Source: torchvision's block of this name."""

    unit: Callable

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        three = halved(self.unit, x, 384, "branch3x3")
        double = branch(self.unit, x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)))
        double = halved(self.unit, double, 96, "branch3x3dbl_3")
        return jnp.concatenate([three, double, max_pool(x, 3, stride=2)], axis=-1)


class InceptionC(nn.Module):
    """Branches of 1x1, of a factored 7x7, of two of them, and of means. Source: Szegedy et al. 2016, figure 6."""

    unit: Callable
    channels: int

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        inner, wide, tall = self.channels, (1, 7), (7, 1)
        one = self.unit(192, (1, 1), name="branch1x1")(x)
        seven = branch(self.unit, x, "branch7x7", (inner, (1, 1)), (inner, wide), (192, tall))
        double = branch(
            self.unit, x, "branch7x7dbl", (inner, (1, 1)), (inner, tall), (inner, wide), (inner, tall), (192, wide)
        )
        return jnp.concatenate([one, seven, double, pooled(self.unit, x, 192)], axis=-1)


class InceptionD(nn.Module):
    """Halves the image: branches of 3x3, of a factored 7x7 and 3x3, and of maxima. Source: torchvision's block."""

    unit: Callable

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        three = halved(self.unit, branch(self.unit, x, "branch3x3", (192, (1, 1))), 320, "branch3x3_2")
        seven = branch(self.unit, x, "branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
        seven = halved(self.unit, seven, 192, "branch7x7x3_4")
        return jnp.concatenate([three, seven, max_pool(x, 3, stride=2)], axis=-1)


class InceptionE(nn.Module):
    """Branches of 1x1, of one and two 3x3 with the last split in 1x3 beside 3x1, and of means.

    Source: Szegedy et al. 2016, figure 7.
    """

    unit: Callable

    @nn.compact
    def __call__(self, x: Images) -> Maps:
        one = self.unit(320, (1, 1), name="branch1x1")(x)
        three = self._split(branch(self.unit, x, "branch3x3", (384, (1, 1))), "branch3x3_2")
        double = self._split(branch(self.unit, x, "branch3x3dbl", (448, (1, 1)), (384, (3, 3))), "branch3x3dbl_3")
        return jnp.concatenate([one, *three, *double, pooled(self.unit, x, 192)], axis=-1)

    def _split(self, x: Images, name: str) -> list[Maps]:
        return [self.unit(384, (1, 3), name=f"{name}a")(x), self.unit(384, (3, 1), name=f"{name}b")(x)]


class InceptionAux(nn.Module):
    """The auxiliary head: logits from 17x17 maps, for a second term of the loss. Source: torchvision's block.

    Attributes:
        wide_unit: as `unit`, for the 5x5 convolution, whose weights are drawn otherwise.
        num_classes: outputs.
        weight_init: of its dense layer.
    """

    unit: Callable
    wide_unit: Callable
    num_classes: int
    weight_init: str

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "b k"]:
        x = self.unit(128, (1, 1), name="conv0")(avg_pool(x, 5, stride=3))
        x = self.wide_unit(768, (5, 5), same=False, name="conv1")(x)
        kernel_init = nn.initializers.normal(0.001)
        return classify(jnp.mean(x, axis=(1, 2)), self.num_classes, self.weight_init, "fc", kernel_init=kernel_init)


def stem(unit: Callable, x: Images) -> Maps:
    """Five units and two 3x3 maxima with stride 2."""
    x = unit(32, (3, 3), stride=2, same=False, name="Conv2d_1a_3x3")(x)
    x = unit(32, (3, 3), same=False, name="Conv2d_2a_3x3")(x)
    x = max_pool(unit(64, (3, 3), name="Conv2d_2b_3x3")(x), 3, stride=2)
    x = unit(80, (1, 1), name="Conv2d_3b_1x1")(x)
    return max_pool(unit(192, (3, 3), same=False, name="Conv2d_4a_3x3")(x), 3, stride=2)


class Inception3(nn.Module):
    """Inception v3; the defaults of activation and initialisation are DLG's, as in `ResNet`.

    Source: Szegedy et al. 2016; torchvision `models/inception.py`.
    Differs: no dropout before the head; torchvision's has 0.5 in train mode. Images come in as they are
        (torchvision's `transform_input=False`).

    Attributes:
        num_classes: outputs of the head.
        width: multiplies the channels of every convolution; 1 is the published network.
        aux: the network has the auxiliary head. Its logits are computed in train mode only, and only where
            they are asked for: `logits, state = model.apply(variables, x, mutable=["aux"])`, then
            `state["aux"]["logits"]` is a tuple that holds them [b, k]. torchvision trains on the loss of the logits
            plus 0.4 times that of these.
        activation: applied everywhere.
        norm: "batch" or "group" (GroupNorm of each image), both with epsilon 0.001.
        groups: of GroupNorm; must divide the channels of every convolution.
        train: BatchNorm takes the statistics of the batch at hand; else those of the collection `batch_stats`.
        weight_init: "uniform" (DLG: all from U(-0.5, 0.5), scales and biases of norms too), "uniform-weights"
            (convolutions and head from U(-0.5, 0.5), norms 1 and 0), "torch" (torchvision: weights N(0, 0.1²), in the
            auxiliary head's second convolution N(0, 0.01²) and dense layer N(0, 0.001²), norms 1 and 0, biases
            U(-1, 1) / sqrt(fan-in); it cuts the weights at -2 and 2, 20 standard deviations or more) or "flax"
            (Flax's: kernels N(0, 1 / fan-in), biases 0, norms 1 and 0).

    Raises:
        InputError: a field has a value that is not allowed, or the image is smaller than 75x75, or 299x299 with `aux`.

    Example:
        >>> import jaxleak
        >>> from jaxleak.models import Inception3
        >>> jaxleak.parameter_count(Inception3(10, width=0.125, train=False), (75, 75, 3))
        346830
    """

    num_classes: int
    width: float = 1.0
    aux: bool = False
    activation: Callable = nn.sigmoid
    norm: str = "batch"
    groups: int = 16
    train: bool = True
    weight_init: str = "uniform"

    # Every other module has torchvision's name, and so has "fc" of the auxiliary head.
    torch_names = (("head", "fc"),)

    def __post_init__(self):
        check_choice("weight_init", self.weight_init, NORMED_WEIGHT_INITS)
        check_positive("width", self.width)
        check_norm(self.norm, self.groups, [scaled(channels, self.width) for channels in CHANNELS])
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c]."""
        self._check_size(x)
        unit = self._unit(0.1)
        x = stem(unit, x)
        for name, channels in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = InceptionA(unit, channels, name=f"Mixed_{name}")(x)
        x = InceptionB(unit, name="Mixed_6a")(x)
        for name, channels in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = InceptionC(unit, channels, name=f"Mixed_{name}")(x)
        if self.aux:
            self._auxiliary(unit, x)
        x = InceptionD(unit, name="Mixed_7a")(x)
        for name in ("7b", "7c"):
            x = InceptionE(unit, name=f"Mixed_{name}")(x)
        kernel_init = nn.initializers.normal(0.1)
        return classify(jnp.mean(x, axis=(1, 2)), self.num_classes, self.weight_init, kernel_init=kernel_init)

    def _unit(self, deviation: float) -> Callable:
        """A constructor of `Unit`; `deviation` is that of its weights under "torch"."""
        return partial(
            Unit,
            conv=convolution(self.weight_init, nn.initializers.normal(deviation)),
            norm=normalisation(self.norm, self.train, self.groups, self.weight_init, EPSILON),
            activation=self.activation,
            width=self.width,
        )

    def _auxiliary(self, unit: Callable, x: Images) -> None:
        """Sow the auxiliary logits as "logits" of the collection "aux"; where it initialises, just make the weights."""
        head = InceptionAux(unit, self._unit(0.01), self.num_classes, self.weight_init, name="AuxLogits")
        if self.is_initializing():
            head(jnp.concatenate([x, x]))  # two images: its maps may be of one pixel, which BatchNorm refuses of one
        elif self.train and self.is_mutable_collection("aux"):
            self.sow("aux", "logits", head(x))

    def _check_size(self, x: Images) -> None:
        least = SMALLEST_AUX if self.aux else SMALLEST
        if min(x.shape[1:3]) < least:
            raise InputError(
                f"Inception v3{' with `aux`' if self.aux else ''} needs images of {least}x{least} pixels or more; "
                f"got {x.shape[1]}x{x.shape[2]}."
            )

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels of the head's input, which is averaged over the image whatever its size."""
        return 1, 1, sum(scaled(channels, self.width) for channels in (320, *[384] * 4, 192))
