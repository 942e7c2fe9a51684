"""Updates of users' PyTorch scripts, right and wrong in known ways. Nothing here is jaxleak's.

python -m tests.oracles.export_audits KIND PICTURE.npz OUT [--classes K] [--seed N] [--amount A]

Each leaves w.safetensors (before) and grads.safetensors (what is shared, as the kind says).
"""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jaxleak.bench.networks.resnet import ResNet
from tests.oracles.torch_lenet import LeNet

KINDS = (
    *("plain", "clipped", "flipped", "scaled", "quickstart", "smoothing", "batchnorm", "zeros", "noise", "half"),
    *("steps", "weights", "sum", "bce", "autocast", "strided"),
)


class Quickstart(nn.Module):
    """The network of PyTorch's and Flower's first example: two convolutions, max-pooling, ReLU, three dense layers."""

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5), nn.Conv2d(6, 16, 5)
        side = ((size - 4) // 2 - 4) // 2
        self.fc1, self.fc2 = nn.Linear(16 * side * side, 120), nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


class Strided(nn.Module):
    """An ordinary network with ReLUs, whose convolutions have strides in place of pooling."""

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, stride=1, padding=1)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(24 * (size // 2) ** 2, 32)
        self.fc2 = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def trained(net: nn.Module, picture: Tensor, classes: int) -> nn.Module:
    """The network after ten steps of SGD on noise."""
    stepper = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(10):
        stepper.zero_grad()
        outputs = net(torch.rand(32, *picture.shape[1:]))
        nn.functional.cross_entropy(outputs, torch.randint(classes, (32,))).backward()
        stepper.step()
    return net


def network(kind: str, picture: Tensor, classes: int) -> nn.Module:
    """LeNet with weights from U(-0.5, 0.5); a small ResNet with BatchNorm; or the quickstart's, as torch begins it."""
    _, channels, height, width = picture.shape
    if kind == "quickstart":
        return Quickstart(channels, height, classes)
    if kind == "strided":
        return trained(Strided(channels, height, classes), picture, classes)
    net: nn.Module = LeNet(height, width, channels, classes)
    if kind == "batchnorm":
        net = ResNet(classes, (1, 1), False, 8, "cifar", torch.sigmoid, None)
    for which, parameter in net.named_parameters():
        if ".bn" not in f".{which}" and "downsample.1" not in which:
            nn.init.uniform_(parameter, -0.5, 0.5)
    return net.train(kind == "batchnorm")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("picture", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--amount", type=float, help="factor, smoothing, clip, sigma or learning rate of the kind")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    with np.load(options.picture) as file:
        picture = torch.from_numpy(file["images"].astype(np.float32) / 255).permute(0, 3, 1, 2)
        label = torch.from_numpy(file["labels"].astype(np.int64))
    make(options.kind, picture, label, options.out, options.classes, options.amount)


def make(kind: str, picture: Tensor, label: Tensor, out: Path, classes: int, amount: float | None = None) -> None:
    """Write both files of a client with these images and labels."""
    net = network(kind, picture, classes)
    amounts = {"scaled": 0.1, "smoothing": 0.1, "clipped": 1.0, "noise": 1e-2, "steps": 0.05, "quickstart": 1.0}
    if amount is None:
        amount = amounts.get(kind, 1.0)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=kind == "autocast"):
            outputs = net(picture).float()
        if kind == "bce":
            target = nn.functional.one_hot(label, classes).float()
            return nn.functional.binary_cross_entropy_with_logits(outputs, target)
        smoothing = amount if kind == "smoothing" else 0.0
        reduction = "sum" if kind == "sum" else "mean"
        return nn.functional.cross_entropy(outputs, label, label_smoothing=smoothing, reduction=reduction)

    def gradient() -> OrderedDict[str, Tensor]:
        net.zero_grad()
        loss().backward()
        return OrderedDict((name, p.grad.clone()) for name, p in net.named_parameters() if p.grad is not None)

    before = OrderedDict((name, tensor.clone()) for name, tensor in net.state_dict().items())
    update = gradient()
    if kind in ("flipped", "batchnorm", "steps", "weights"):
        lr = amount if kind == "steps" else 1.0
        stepper = torch.optim.SGD(net.parameters(), lr=lr)
        for number in range(5 if kind == "steps" else 1):
            if number:
                gradient()
            stepper.step()
        after = net.state_dict()
        sign = -1.0 if kind == "flipped" else 1.0
        update = OrderedDict(
            (name, sign * (before[name] - after[name]) / lr) for name in before if "num_batches" not in name
        )
        if kind == "weights":
            update = OrderedDict((name, after[name].clone()) for name in update)
    elif kind == "scaled":
        update = OrderedDict((name, amount * tensor) for name, tensor in update.items())
    elif kind == "clipped":
        norm = torch.sqrt(sum((tensor**2).sum() for tensor in update.values()))  # type: ignore[arg-type]
        update = OrderedDict((name, tensor * min(1.0, amount / float(norm))) for name, tensor in update.items())
    elif kind == "noise":
        update = OrderedDict((name, tensor + amount * torch.randn_like(tensor)) for name, tensor in update.items())
    elif kind == "half":
        update = OrderedDict((name, tensor.half()) for name, tensor in update.items())
    elif kind == "zeros":
        for name in list(update)[2:4]:
            update[name] = torch.zeros_like(update[name])
    out.mkdir(parents=True, exist_ok=True)
    save_file(update, out / "grads.safetensors")
    save_file(before, out / "w.safetensors")


if __name__ == "__main__":
    main()
