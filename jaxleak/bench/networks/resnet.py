"""The ResNet family in torch, NCHW, state_dict names as torchvision's."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Convolutions with a norm after each, a shortcut added before the last activation.

    Args:
        inputs: channels that come in.
        kernels: (kernel size, stride, channels) of each convolution.
        norm: channels -> norm layer.
        activation: after all norms but the last, and after the sum.
    """

    def __init__(self, inputs: int, kernels: Sequence[tuple[int, int, int]], norm: Callable, activation: Callable):
        super().__init__()
        self.activation, self.depth = activation, len(kernels)
        channels, total_stride = inputs, 1
        for i, (size, stride, outputs) in enumerate(kernels, start=1):
            conv = nn.Conv2d(channels, outputs, size, stride=stride, padding=size // 2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", norm(outputs))
            channels, total_stride = outputs, total_stride * stride
        self.downsample = None
        if total_stride != 1 or channels != inputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride=total_stride, bias=False), norm(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            if i < self.depth:
                y = self.activation(y)
        return self.activation(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """He et al. 2016, figure 5 and table 1; the stride of a bottleneck is at its 3x3 convolution (v1.5).

    Args:
        stage_sizes: blocks per stage.
        bottleneck: blocks of 1x1, 3x3, 1x1 (four times the channels) instead of two 3x3.
        width: channels of the first stage.
        stem: "cifar" or "imagenet".
        groups: of GroupNorm; None is BatchNorm.
    """

    def __init__(
        self,
        num_classes: int,
        stage_sizes: Sequence[int],
        bottleneck: bool,
        width: int,
        stem: str,
        activation: Callable[[Tensor], Tensor],
        groups: int | None,
    ):
        super().__init__()

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if groups is None else nn.GroupNorm(groups, channels)

        self.activation, self.stages = activation, len(stage_sizes)
        if stem == "cifar":
            self.conv1 = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = norm(width)
        inputs = width
        for stage, size in enumerate(stage_sizes):
            channels, blocks = width * 2**stage, []
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                kernels = (
                    [(1, 1, channels), (3, stride, channels), (1, 1, 4 * channels)]
                    if bottleneck
                    else [(3, stride, channels), (3, 1, channels)]
                )
                blocks.append(ResidualBlock(inputs, kernels, norm, activation))
                inputs = kernels[-1][2]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, k] of images [b, c, h, w]."""
        x = self.maxpool(self.activation(self.bn1(self.conv1(x))))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(x.mean(dim=(2, 3)))
