"""The LeNets of DLG and of CPL in torch, NCHW."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """5x5 convolutions of 12 channels (padding 2) with an activation after each, and a dense layer.

    Every weight and bias is drawn from U(-0.5, 0.5). state_dict names: body.{0,2,4}.* and fc.0.*.

    Source: Zhu et al. 2019 (DLG) and Zhao et al. 2020 (iDLG), their LeNet; Wei et al. 2020 (CPL), strides 2, 2, 1, 1.
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        num_classes: int,
        strides: Sequence[int] = (2, 2, 1),
        activation: nn.Module | None = None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, stride in zip((channels, 12, 12, 12), strides, strict=False):
            convolution = nn.Conv2d(inputs, 12, kernel_size=5, padding=2, stride=stride)
            layers += [convolution, activation or nn.Sigmoid()]
        self.body = nn.Sequential(*layers)
        with torch.no_grad():
            features = self.body(torch.zeros(1, channels, height, width)).numel()
        self.fc = nn.Sequential(nn.Linear(features, num_classes))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [b, k] of images [b, c, h, w]."""
        return self.fc(self.body(image).flatten(1))
