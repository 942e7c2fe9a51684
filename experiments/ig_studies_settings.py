"""The networks, clients and budgets of `ig_studies`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

import jaxleak

EVAL = {"train": False, "activation": "relu", "weight_init": "torch"}
RELU = {"activation": "relu", "weight_init": "torch"}
IG = replace(jaxleak.IG, tv=1e-2)  # ten times less or more is in `inverting_gradients`
CONV = partial(nn.Conv, conv_general_dilated=jaxleak.fast_conv, kernel_init=nn.initializers.he_normal())
STRIDES = (1, 2, 1, 2, 1, 2)  # a shift by 8 pixels is a shift by 1 of the last map
PADDINGS = {"zero": "SAME", "circular": "CIRCULAR", "none": "VALID"}


class Padded(nn.Module):
    """Six 3x3 convolutions with ReLUs, 16 to 128 channels, and a dense head.

    Attributes:
        padding: of every convolution, as Flax names it.
        mean: whether the head reads the mean of each channel, which has no place, or the whole map.
    """

    padding: str
    mean: bool
    num_classes: int = 100

    @nn.compact
    def __call__(self, x):
        channels = 16
        for stride in STRIDES:
            channels *= stride
            x = nn.relu(CONV(channels, (3, 3), strides=stride, padding=self.padding)(x))
        x = jnp.mean(x, axis=(1, 2)) if self.mean else x.reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, dot_general=jaxleak.blocked_dot_general)(x)


@dataclass(frozen=True)
class Setting:
    """One line of a table: a network, what its client does, and the attack."""

    model: str | Callable | nn.Module
    fields: dict[str, Any] = field(default_factory=dict)
    attack: jaxleak.Attack = IG
    images: int = 20
    client: dict[str, Any] = field(default_factory=dict)
    batch: int = 1


def short(model: Any, steps: int, fields: dict[str, Any] | None = None, **more: Any) -> Setting:
    """The attack with so many steps."""
    return Setting(model, fields or {}, replace(IG, iterations=steps), **more)


def averaging(images: int, epochs: int, lr: float) -> Setting:
    """LeNet with local steps on two images each; the attacker has the labels and repeats the steps."""
    client = {"epochs": epochs, "lr": lr, "batch": min(images, 2)}
    return Setting("lenet", {}, replace(IG, iterations=600, label="known"), client=client, batch=images)


def budgets(fields: dict[str, Any]) -> dict[str, Setting]:
    """The paper's two networks with few steps and with its own two numbers of steps, on two images."""
    return {
        f"{model}, {steps}": short(model, steps, EVAL | fields, images=2)
        for model in ("convnet", "resnet20-4")
        for steps in (300, 4800, 24_000)
    }


STUDIES: dict[str, dict[str, Setting]] = {
    "width": {str(width): short("resnet18", 300, EVAL | {"width": width}) for width in (4, 8, 16, 32)},
    "depth": {depth: short(f"resnet{depth}", 300, EVAL | {"width": 8}) for depth in ("18", "34", "50", "101", "152")},
    "padding": {
        f"{name}, {'mean' if mean else 'map'}": short(Padded(padding, mean), 1000)
        for mean in (False, True)
        for name, padding in PADDINGS.items()
    },
    "averaging": {
        f"{images} x {epochs}, lr {lr}": averaging(images, epochs, lr)
        for images in (1, 4)
        for epochs, lr in ((1, 0.01), (5, 0.01), (5, 0.1))
    },
    "dense": {
        "analytic": Setting("mlp", RELU, jaxleak.ATTACKS["analytic"]),
        "ig": Setting("mlp", RELU, jaxleak.IG, images=4),
    },
    "steps": budgets({"width": 8}),
    "full": budgets({}),
}
