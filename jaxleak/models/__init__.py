"""Linen models. In every one the last dense layer is named "head"."""

import flax.linen as nn

from jaxleak.errors import check_choice, check_positive
from jaxleak.models.lenet import LeNet
from jaxleak.models.weights import load_weights, save_weights

MODELS: dict[str, type[nn.Module]] = {"lenet": LeNet}

__all__ = ["MODELS", "LeNet", "build_model", "load_weights", "save_weights"]


def build_model(name: str, num_classes: int) -> nn.Module:
    """The model called `name` with `num_classes` outputs.

    Raises:
        InputError: unknown name, or fewer than one class.
    """
    check_choice("model", name, MODELS)
    check_positive("num_classes", num_classes, integer=True)
    return MODELS[name](num_classes=num_classes)
