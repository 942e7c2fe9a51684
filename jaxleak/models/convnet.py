"""The ConvNet of Inverting Gradients."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from jaxleak.errors import check_choice, check_positive
from jaxleak.kernels.conv import fast_conv
from jaxleak.kernels.dense import blocked_dot_general
from jaxleak.models.layers import read_features
from jaxleak.models.norms import check_norm, normalisation
from jaxleak.models.pooling import max_pool, pooled_size
from jaxleak.models.weight_init import NORMED_WEIGHT_INITS, layer_inits

MULTIPLES = (1, 2, 2, 4, 4, 4, 4, 4)  # of `width`: the channels of each convolution
POOLED = (5, 7)  # convolutions after which 3x3 maxima are taken
WINDOW = 3


class ConvNet(nn.Module):
    """Eight 3x3 convolutions with a norm and an activation each, two 3x3 maxima with stride 3, and a dense head.

    Source: Geiping et al. 2020 (Inverting Gradients), reference implementation `inversefed/nn/models.py`, class
        `ConvNet`. Its list has nine convolutions, but two have one name, and torch keeps the second of them.

    Attributes:
        num_classes: outputs of the head.
        width: channels of the first convolution; the others have two or four times as many.
        activation: applied after each norm.
        norm: "batch" or "group" (GroupNorm of each image).
        groups: of GroupNorm; must divide `width`.
        train: BatchNorm takes the statistics of the batch at hand; else those of the collection `batch_stats`.
        weight_init: "torch" (torch's default: U(-1, 1) / sqrt(fan-in), norms 1 and 0), "uniform" (DLG: all from
            U(-0.5, 0.5), scales and biases of norms too), "uniform-weights" (norms 1 and 0) or "flax" (kernels
            N(0, 1 / fan-in), biases 0, norms 1 and 0).

    Raises:
        InputError: a field has a value that is not allowed, or the image is smaller than 9x9.

    Example:
        >>> import jaxleak
        >>> from jaxleak.models import ConvNet
        >>> jaxleak.parameter_count(ConvNet(num_classes=10, width=8), (32, 32, 3))
        48634
    """

    num_classes: int
    width: int = 64
    activation: Callable = nn.relu
    norm: str = "batch"
    groups: int = 32
    train: bool = True
    weight_init: str = "torch"

    def __post_init__(self):
        check_choice("weight_init", self.weight_init, NORMED_WEIGHT_INITS)
        check_positive("width", self.width, integer=True)
        check_norm(self.norm, self.groups, [self.width])
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c]."""
        norm = normalisation(self.norm, self.train, self.groups, self.weight_init)
        for i, multiple in enumerate(MULTIPLES):
            x = self.activation(norm(name=f"bn{i}")(self._conv(x, multiple * self.width, f"conv{i}")))
            if i in POOLED:
                x = max_pool(x, WINDOW, WINDOW)
        x = x.reshape(x.shape[0], -1)
        inits = layer_inits(self.weight_init, x.shape[-1])
        return read_features(nn.Dense(self.num_classes, **inits, dot_general=blocked_dot_general, name="head"), x)

    def _conv(self, x: Float[Array, "b h w c"], channels: int, name: str) -> Float[Array, "b h w o"]:
        inits = layer_inits(self.weight_init, 9 * x.shape[-1])
        return nn.Conv(channels, (3, 3), padding=1, **inits, conv_general_dilated=fast_conv, name=name)(x)

    @property
    def torch_names(self) -> tuple[tuple[str, str], ...]:
        """Linen's name of each layer and torch's in the reference implementation."""
        layers = [f"{kind}{i}" for i in range(len(MULTIPLES)) for kind in ("conv", "bn")]
        return (*((layer, f"model.{layer}") for layer in layers), ("head", "model.linear"))

    def head_input_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Height, width and channels that are flattened into the head's input (NHWC order)."""
        h, w, _ = image_shape
        for _ in POOLED:
            h, w = pooled_size(h, WINDOW, WINDOW), pooled_size(w, WINDOW, WINDOW)
        return h, w, MULTIPLES[-1] * self.width
