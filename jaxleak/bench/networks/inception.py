"""Inception v3 in torch, NCHW, state_dict names as torchvision's. `Make` says channels before they are scaled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d


class Unit(nn.Module):
    """A convolution without bias, a norm with epsilon 0.001, an activation."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.conv, self.bn, self.activation = conv, norm, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn(self.conv(x)))


class Make(NamedTuple):
    """What all units share: the factor of their channels, the activation, GroupNorm's groups (None is BatchNorm)."""

    width: float
    activation: Callable[[Tensor], Tensor]
    groups: int | None = None

    def channels(self, outputs: int) -> int:
        return max(1, round(self.width * outputs))

    def unit(self, inputs: int, outputs: int, kernel, stride: int = 1, padding: Any = 0) -> Unit:
        """A unit that takes `inputs` channels as they are, and gives `outputs` scaled."""
        own = self.channels(outputs)
        norm = nn.BatchNorm2d(own, eps=0.001) if self.groups is None else nn.GroupNorm(self.groups, own, eps=0.001)
        conv = nn.Conv2d(inputs, own, kernel, stride=stride, padding=padding, bias=False)
        return Unit(conv, norm, self.activation)

    def chain(self, inputs: int, *layers: tuple) -> list[Unit]:
        """Units one after the other: (outputs, kernel, stride, padding) each."""
        units = []
        for outputs, *rest in layers:
            units.append(self.unit(inputs, outputs, *rest))
            inputs = self.channels(outputs)
        return units


class Block(nn.Module):
    """Branches side by side. A branch is a list of (name, unit) and may begin with a function (pooling)."""

    def __init__(self, **branches: list):
        super().__init__()
        self.branches = []
        for name, parts in branches.items():
            units = [part for part in parts if isinstance(part, nn.Module)]
            for i, unit in enumerate(units, start=1):
                self.add_module(name if len(units) == 1 else f"{name}_{i}", unit)
            self.branches.append(parts)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for parts in self.branches:
            y = x
            for part in parts:
                y = part(y)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


def means(x: Tensor) -> Tensor:
    return avg_pool2d(x, 3, 1, 1)


def maxima(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, 2)


def block_a(make: Make, inputs: int, pool_channels: int) -> Block:
    return Block(
        branch1x1=make.chain(inputs, (64, 1)),
        branch5x5=make.chain(inputs, (48, 1), (64, 5, 1, 2)),
        branch3x3dbl=make.chain(inputs, (64, 1), (96, 3, 1, 1), (96, 3, 1, 1)),
        branch_pool=[means, make.unit(inputs, pool_channels, 1)],
    )


def block_b(make: Make, inputs: int) -> Block:
    return Block(
        branch3x3=make.chain(inputs, (384, 3, 2)),
        branch3x3dbl=make.chain(inputs, (64, 1), (96, 3, 1, 1), (96, 3, 2)),
        branch_pool=[maxima],
    )


def block_c(make: Make, inputs: int, inner: int) -> Block:
    def wide(outputs: int) -> tuple:
        return outputs, (1, 7), 1, (0, 3)

    def tall(outputs: int) -> tuple:
        return outputs, (7, 1), 1, (3, 0)

    return Block(
        branch1x1=make.chain(inputs, (192, 1)),
        branch7x7=make.chain(inputs, (inner, 1), wide(inner), tall(192)),
        branch7x7dbl=make.chain(inputs, (inner, 1), tall(inner), wide(inner), tall(inner), wide(192)),
        branch_pool=[means, make.unit(inputs, 192, 1)],
    )


def block_d(make: Make, inputs: int) -> Block:
    return Block(
        branch3x3=make.chain(inputs, (192, 1), (320, 3, 2)),
        branch7x7x3=make.chain(inputs, (192, 1), (192, (1, 7), 1, (0, 3)), (192, (7, 1), 1, (3, 0)), (192, 3, 2)),
        branch_pool=[maxima],
    )


class BlockE(nn.Module):
    """Two branches end in a 1x3 and a 3x1 unit beside each other."""

    def __init__(self, make: Make, inputs: int):
        super().__init__()
        self.branch1x1 = make.unit(inputs, 320, 1)
        self.branch3x3_1 = make.unit(inputs, 384, 1)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = make.chain(inputs, (448, 1), (384, 3, 1, 1))
        for name in ("branch3x3_2", "branch3x3dbl_3"):
            self.add_module(f"{name}a", make.unit(make.channels(384), 384, (1, 3), 1, (0, 1)))
            self.add_module(f"{name}b", make.unit(make.channels(384), 384, (3, 1), 1, (1, 0)))
        self.branch_pool = make.unit(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        split = [
            self.get_submodule(f"{name}{part}")(y)
            for name, y in (("branch3x3_2", three), ("branch3x3dbl_3", double))
            for part in "ab"
        ]
        return torch.cat([self.branch1x1(x), *split, self.branch_pool(means(x))], dim=1)


class Auxiliary(nn.Module):
    """5x5 means with stride 3, a 1x1 and a 5x5 unit, the mean of each channel, a dense layer."""

    def __init__(self, make: Make, inputs: int, num_classes: int):
        super().__init__()
        self.conv0, self.conv1 = make.chain(inputs, (128, 1), (768, 5))
        self.fc = nn.Linear(make.channels(768), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv1(self.conv0(avg_pool2d(x, 5, 3))).mean(dim=(2, 3)))


class Stem(nn.Module):
    """From the image to the first block."""

    def __init__(self, make: Make):
        super().__init__()
        layers = ((32, 3, 2), (32, 3), (64, 3, 1, 1), (80, 1), (192, 3))
        names = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        for name, unit in zip(names, make.chain(3, *layers), strict=True):
            self.add_module(name, unit)

    def forward(self, x: Tensor) -> Tensor:
        for name, unit in self.named_children():
            x = unit(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = maxima(x)
        return x


class Inception3(Stem):
    """Szegedy et al. 2016, table 1, as torchvision has it: gives the logits, and the auxiliary ones or None."""

    def __init__(self, num_classes: int, make: Make, aux: bool):
        super().__init__(make)
        self.stem = [name for name, _ in self.named_children()]
        channels = make.channels(192)
        self.body = []

        def add(name: str, block: nn.Module) -> None:
            nonlocal channels
            self.add_module(f"Mixed_{name}", block)
            self.body.append(f"Mixed_{name}")
            with torch.no_grad():
                channels = block.eval()(torch.zeros(1, channels, 9, 9)).shape[1]
            block.train()

        for name, pool_channels in (("5b", 32), ("5c", 64), ("5d", 64)):
            add(name, block_a(make, channels, pool_channels))
        add("6a", block_b(make, channels))
        for name, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            add(name, block_c(make, channels, inner))
        self.AuxLogits = Auxiliary(make, channels, num_classes) if aux else None
        add("7a", block_d(make, channels))
        add("7b", BlockE(make, channels))
        add("7c", BlockE(make, channels))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [b, k] of images [b, c, h, w]; in train mode the auxiliary ones too."""
        for name in self.stem:
            x = self.get_submodule(name)(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = maxima(x)
        aux = None
        for name in self.body:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6e" and self.AuxLogits is not None and self.training:
                aux = self.AuxLogits(x)
        return self.fc(x.mean(dim=(2, 3))), aux
