"""What a user's PyTorch script does: compute a gradient, and save it with the weights. Nothing here is jaxleak's.

python -m tests.oracles.export_update {lenet,resnet} PICTURE.npz OUT [--classes K] [--steps N] [--lr LR]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from jaxleak.bench.networks.resnet import ResNet
from tests.oracles.torch_lenet import LeNet


def network(name: str, picture: Tensor, classes: int) -> nn.Module:
    """LeNet, or a ResNet of two blocks; weights from U(-0.5, 0.5), norms as torch has them."""
    _, channels, height, width = picture.shape
    net = LeNet(height, width, channels, classes)
    if name == "resnet":
        net = ResNet(classes, (1, 1), False, 8, "cifar", torch.sigmoid, None)
    for which, parameter in net.named_parameters():
        if ".bn" not in f".{which}" and "downsample.1" not in which:
            nn.init.uniform_(parameter, -0.5, 0.5)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=["lenet", "resnet"])
    parser.add_argument("picture", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.01)
    options = parser.parse_args()
    torch.manual_seed(0)
    with np.load(options.picture) as file:
        picture = torch.from_numpy(file["images"].astype(np.float32) / 255).permute(0, 3, 1, 2)
        label = torch.from_numpy(file["labels"].astype(np.int64))
    net = network(options.network, picture, options.classes)

    def gradient() -> dict[str, Tensor]:
        net.zero_grad()
        nn.functional.cross_entropy(net(picture), label).backward()
        return {
            name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None
        }

    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    update = gradient()
    if options.steps:
        stepper = torch.optim.SGD(net.parameters(), lr=options.lr)
        for _ in range(options.steps):
            gradient()
            stepper.step()
        update = {name: before[name] - tensor.detach() for name, tensor in net.named_parameters()}
    save_file(update, options.out / "grads.safetensors")
    save_file(before, options.out / "w.safetensors")


if __name__ == "__main__":
    main()
