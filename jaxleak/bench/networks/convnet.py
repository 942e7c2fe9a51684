"""ConvNet of Inverting Gradients in torch, NCHW, with the reference implementation's names."""

from collections import OrderedDict

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Geiping et al. 2020: conv0..conv7 (3x3, with bias), each with a norm and an activation, maxima after 5 and 7.

    Args:
        size: height and width of the images.
        width: channels of conv0.
        activation: a module.
        groups: of GroupNorm; None is BatchNorm.
    """

    def __init__(
        self, num_classes: int, size: tuple[int, int], width: int, activation: nn.Module, groups: int | None = None
    ):
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for i, outputs in enumerate([width, 2 * width, 2 * width, *[4 * width] * 5]):
            layers[f"conv{i}"] = nn.Conv2d(channels, outputs, 3, padding=1)
            layers[f"bn{i}"] = nn.BatchNorm2d(outputs) if groups is None else nn.GroupNorm(groups, outputs)
            layers[f"act{i}"] = activation
            if i in (5, 7):
                layers[f"pool{i}"] = nn.MaxPool2d(3)
            channels = outputs
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(channels * (size[0] // 9) * (size[1] // 9), num_classes)
        self.model = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, k] of images [b, c, h, w]."""
        return self.model(x)
