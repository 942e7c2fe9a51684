"""A stack of dense layers: the model whose update gives its image away in closed form (`jaxleak.attacks.analytic`)."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from jaxleak.errors import InputError, check_choice
from jaxleak.kernels.dense import blocked_dot_general
from jaxleak.models.layers import read_features
from jaxleak.models.weight_init import WEIGHT_INITS, layer_inits


class MLP(nn.Module):
    """Dense layers "dense1", "dense2", ... on the flattened image, an activation after each, and a dense head.

    Attributes:
        num_classes: outputs of the head.
        hidden: outputs of each layer before the head; none leaves a linear model.
        activation: applied after each of them.
        weight_init: "uniform" (DLG: weights and biases from U(-0.5, 0.5)), "torch" (torch's default: U(-b, b) with
            b = 1 / sqrt(inputs of a unit)) or "flax" (Flax's: weights N(0, 1 / inputs of a unit), biases 0).

    Raises:
        InputError: a field has a value that is not allowed.

    Example:
        >>> import jaxleak
        >>> from jaxleak.models import MLP
        >>> jaxleak.parameter_count(MLP(num_classes=10, hidden=(16,)), (8, 8, 1))
        1210
    """

    num_classes: int
    hidden: tuple[int, ...] = (128, 128)
    activation: Callable = nn.sigmoid
    weight_init: str = "uniform"

    def __post_init__(self):
        check_choice("weight_init", self.weight_init, WEIGHT_INITS)
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in self.hidden):
            raise InputError(f"`hidden` must be whole numbers above 0; got {', '.join(map(repr, self.hidden))}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b k"]:
        """Class logits [b, k] of images [b, h, w, c] in [0, 1]."""
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.hidden, start=1):
            x = self.activation(self._dense(size, x.shape[-1], f"dense{i}")(x))
        return read_features(self._dense(self.num_classes, x.shape[-1], "head"), x)

    def _dense(self, size: int, fan_in: int, name: str) -> nn.Dense:
        inits = layer_inits(self.weight_init, fan_in)
        return nn.Dense(size, **inits, dot_general=blocked_dot_general, name=name)

    @property
    def torch_names(self) -> tuple[tuple[str, str], ...]:
        """Linen's name of each layer and torch's, in `Sequential(Linear, Sigmoid(), Linear, ...)`."""
        return tuple((name, str(2 * i)) for i, name in enumerate(self._layers))

    @property
    def _layers(self) -> tuple[str, ...]:
        return (*(f"dense{i}" for i in range(1, len(self.hidden) + 1)), "head")

    def flattened(self, image_shape: tuple[int, int, int]) -> tuple[str, tuple[int, int, int]]:
        """The layer that reads the flattened image, and the image's height, width and channels."""
        return self._layers[0], image_shape
