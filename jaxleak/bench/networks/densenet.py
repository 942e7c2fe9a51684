"""The DenseNet family in torch, NCHW, state_dict names as torchvision's."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class DenseLayer(nn.Module):
    """Norm, activation, 1x1 convolution to bottleneck * growth channels; norm, activation, 3x3 to growth; appended."""

    def __init__(self, inputs: int, growth: int, bottleneck: int, norm: Callable, activation: Callable):
        super().__init__()
        self.activation = activation
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, bottleneck * growth, 1, bias=False)
        self.norm2 = norm(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.activation(self.norm1(x)))
        return torch.cat([x, self.conv2(self.activation(self.norm2(y)))], dim=1)


class Transition(nn.Module):
    """Norm, activation, 1x1 convolution to half the channels, 2x2 means."""

    def __init__(self, inputs: int, norm: Callable, activation: Callable):
        super().__init__()
        self.norm, self.activation = norm(inputs), activation
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.conv(self.activation(self.norm(x))), 2, 2)


class DenseNet(nn.Module):
    """Huang et al. 2017, table 1, with "features.*" and "classifier".

    Args:
        block_sizes: layers of each block.
        growth: channels a layer adds.
        width: channels of the stem.
        stem: "cifar" or "imagenet".
        groups: of GroupNorm; None is BatchNorm.
    """

    def __init__(
        self,
        num_classes: int,
        block_sizes: Sequence[int],
        growth: int,
        width: int,
        bottleneck: int,
        stem: str,
        activation: Callable[[Tensor], Tensor],
        groups: int | None = None,
    ):
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if groups is None else nn.GroupNorm(groups, channels)

        self.activation, self.imagenet = activation, stem == "imagenet"
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        size, stride = (7, 2) if self.imagenet else (3, 1)
        parts["conv0"] = nn.Conv2d(3, width, size, stride=stride, padding=size // 2, bias=False)
        parts["norm0"] = norm(width)
        channels = width
        for i, layers in enumerate(block_sizes, start=1):
            if i > 1:
                parts[f"transition{i - 1}"] = Transition(channels, norm, activation)
                channels //= 2
            block = nn.Sequential()
            for j in range(1, layers + 1):
                block.add_module(f"denselayer{j}", DenseLayer(channels, growth, bottleneck, norm, activation))
                channels += growth
            parts[f"denseblock{i}"] = block
        parts["norm5"] = norm(channels)
        self.features = nn.Sequential(parts)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, k] of images [b, c, h, w]."""
        for name, part in self.features.named_children():
            x = part(x)
            if name.startswith("norm"):
                x = self.activation(x)
            if name == "norm0" and self.imagenet:
                x = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.classifier(x.mean(dim=(2, 3)))
