"""Linen models. In every one the last dense layer is named "head"."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxleak.errors import InputError, check_choice, check_not_negative, check_positive
from jaxleak.models.activations import ACTIVATIONS, find_activation
from jaxleak.models.convnet import ConvNet
from jaxleak.models.densenet import DenseNet, DenseNet121
from jaxleak.models.inception import Inception3
from jaxleak.models.lenet import LeNet, LeNetCPL
from jaxleak.models.mlp import MLP
from jaxleak.models.resnet import (
    ResNet,
    ResNet18,
    ResNet20x4,
    ResNet32x10,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
)
from jaxleak.models.transformer import Transformer
from jaxleak.models.vit import ViT
from jaxleak.models.weights import WithStatistics, load_variables, load_weights, save_weights

# Called as MODELS[name](num_classes=..., **fields).
MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet": LeNet,
    "lenet-cpl": LeNetCPL,
    "mlp": MLP,
    "convnet": ConvNet,
    "convnet-gn": partial(ConvNet, norm="group"),
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "resnet20-4": ResNet20x4,
    "resnet32-10": ResNet32x10,
    "densenet121": DenseNet121,
    "inception3": Inception3,
    "vit": ViT,
    "transformer": Transformer,
}

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "MODELS",
    "ConvNet",
    "DenseNet",
    "DenseNet121",
    "Inception3",
    "LeNet",
    "LeNetCPL",
    "ResNet",
    "ResNet18",
    "ResNet20x4",
    "ResNet32x10",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "Transformer",
    "ViT",
    "WithStatistics",
    "build_model",
    "load_variables",
    "load_weights",
    "parameter_count",
    "save_weights",
]


def build_model(name: str, num_classes: int, /, **fields) -> nn.Module:
    """The model called `name` with `num_classes` outputs.

    Args:
        name: a key of `MODELS`.
        num_classes: outputs of the head.
        fields: other fields of that model, such as `width` of a ResNet; `activation` is a function or a key of
            `ACTIVATIONS`.

    Raises:
        InputError: unknown name, fewer than one class, or a field that the model lacks or refuses.

    Example:
        >>> import jaxleak
        >>> jaxleak.build_model("lenet", 100, activation="tanh").num_classes
        100
    """
    build = MODELS[check_choice("model", name, MODELS)]
    check_positive("num_classes", num_classes, integer=True)
    model = build(num_classes=num_classes)
    known = set(type(model).__dataclass_fields__) - {"num_classes", "parent", "name"}
    for field in fields:
        check_choice("field", field, known)
    checked = {field: _checked(field, value, getattr(model, field)) for field, value in fields.items()}
    return model.clone(**checked)


def parameter_count(model: Any, image_shape: tuple[int, ...]) -> int:
    """Numbers in the model's `params`, for images of this height, width and channels, or texts of so many tokens.

    Example:
        >>> import jaxleak
        >>> jaxleak.parameter_count(jaxleak.build_model("lenet", 100), (32, 32, 3))
        85036
    """
    variables: Any = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def _checked(field: str, value: Any, default: Any) -> Any:
    """A field's value, of the kind that its default has; one number stands for a tuple of one.

    Raises:
        InputError: it is of another kind, or a number that is not above 0.
    """
    if field == "activation":
        return find_activation(value)
    if isinstance(default, tuple):
        parts = value if isinstance(value, tuple | list) else (value,)
        if not default:
            return tuple(_number(field, part, whole=False) for part in parts)
        try:
            return tuple(_number(field, part, whole=True) for part in parts)
        except InputError:
            got = ", ".join(map(repr, parts))
            raise InputError(f"`{field}` must be whole numbers above 0; got {got}.") from None
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(f"`{field}` must be true or false; got {value!r}.")
    elif isinstance(default, int | float):
        return _number(field, value, whole=isinstance(default, int))
    elif isinstance(default, str) and not isinstance(value, str):
        raise InputError(f"`{field}` must be a name; got {value!r}.")
    elif callable(default) and not callable(value):
        raise InputError(f"`{field}` must be a function or a class, which can be given in Python only; got {value!r}.")
    return value


def _number(field: str, value: Any, *, whole: bool) -> int | float:
    (check_not_negative if field == "mean" else check_positive)(field, value, integer=whole)
    return int(value) if whole else value
