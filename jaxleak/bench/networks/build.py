"""A model of jaxleak as PyTorch's network."""

import itertools
from collections.abc import Callable
from typing import Any

from torch import nn

from jaxleak.bench.networks.convnet import ConvNet
from jaxleak.bench.networks.densenet import DenseNet
from jaxleak.bench.networks.inception import Inception3, Make
from jaxleak.bench.networks.lenet import LeNet
from jaxleak.bench.networks.resnet import ResNet
from jaxleak.bench.networks.transformer import Transformer
from jaxleak.bench.networks.vit import ViT

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def build(kind: str, fields: dict[str, Any], shape: tuple[int, ...]) -> nn.Module:
    """The network that a model of jaxleak is, every weight from U(-0.5, 0.5).

    Args:
        kind: the model's class: LeNet, MLP, ConvNet, ResNet, DenseNet, Inception3, ViT or Transformer.
        fields: its fields; activations and blocks by name.
        shape: height, width and channels of the images, or the tokens of a text.
    """
    height, width, channels = shape if len(shape) == 3 else (1, *shape, 1)
    classes, act = fields["num_classes"], ACTIVATIONS[fields["activation"]]()
    groups = fields["groups"] if fields.get("norm") == "group" else None

    def lenet() -> nn.Module:
        return LeNet(height, width, channels, classes, fields["strides"], act)

    def mlp() -> nn.Module:
        sizes = [height * width * channels, *fields["hidden"], classes]
        layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), act)]
        return nn.Sequential(nn.Flatten(), *layers[:-1])

    def resnet() -> nn.Module:
        bottleneck = fields["block"] == "Bottleneck"
        return ResNet(classes, fields["stage_sizes"], bottleneck, fields["width"], fields["stem"], act, groups)

    def densenet() -> nn.Module:
        sizes = (fields["block_sizes"], fields["growth"], fields["width"], fields["bottleneck"])
        return DenseNet(classes, *sizes, fields["stem"], act, groups)

    def vit() -> nn.Module:
        dim = fields["dim"]
        sizes = (fields["patch_size"], dim, fields["depth"], fields["heads"], round(fields["mlp_ratio"] * dim))
        return ViT(classes, (height, width, channels), *sizes, act, fields["encoder"] == "sequential")

    def transformer() -> nn.Module:
        sizes = (fields["dim"], fields["depth"], fields["heads"], round(fields["mlp_ratio"] * fields["dim"]))
        return Transformer(classes, width, *sizes, fields["task"] == "causal")

    net = {
        "LeNet": lenet,
        "MLP": mlp,
        "ConvNet": lambda: ConvNet(classes, (height, width), fields["width"], act, groups),
        "ResNet": resnet,
        "DenseNet": densenet,
        "Inception3": lambda: Inception3(classes, Make(fields["width"], act, groups), fields["aux"]),
        "ViT": vit,
        "Transformer": transformer,
    }[kind]()
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return net.train(fields.get("train", True))


def logits(output: Any) -> Any:
    """A network's logits; Inception gives its auxiliary ones beside them."""
    return output[0] if isinstance(output, tuple) else output
