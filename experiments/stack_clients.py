"""What real training stacks hand over of one image: files as their users write them. Needs the extra `stacks`."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import jaxleak

CLASSES = 10
STEPS, LR, CLIP = 3, 0.05, 1.0
VIT = {"patch_size": 8, "dim": 48, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "epsilon": 1e-12}
Made = tuple[dict[str, Any], str]  # arguments of `load_update`, and the stack's version


def lenet() -> Any:
    """DLG's LeNet in torch, as in `jaxleak.models.LeNet`."""
    import torch
    from torch import nn

    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            layers = []
            for channels, stride in ((3, 2), (12, 2), (12, 1)):
                layers += [nn.Conv2d(channels, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
            self.body = nn.Sequential(*layers)
            self.fc = nn.Sequential(nn.Linear(768, CLASSES))
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)

        def forward(self, x):
            return self.fc(self.body(x).flatten(1))

    torch.manual_seed(0)
    return LeNet()


def flower(folder: Path, x: Any, y: Any) -> Made:
    import torch
    from flwr.client import NumPyClient  # pyright: ignore[reportMissingImports]
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays  # pyright: ignore[reportMissingImports]

    net = lenet()
    names = list(net.state_dict())

    class Client(NumPyClient):
        def get_parameters(self, config):
            return [tensor.numpy().copy() for tensor in net.state_dict().values()]

        def fit(self, parameters, config):
            net.load_state_dict(dict(zip(names, map(torch.tensor, parameters), strict=True)))
            optimizer = torch.optim.SGD(net.parameters(), lr=config["lr"])
            for _ in range(int(config["steps"])):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            return self.get_parameters({}), len(x), {}

    client = Client().to_client()
    before = ndarrays_to_parameters([tensor.numpy().copy() for tensor in net.state_dict().values()])
    answer = client.fit(FitIns(before, {"lr": LR, "steps": STEPS}))
    for name, parameters in (("before", before), ("after", answer.parameters)):
        arrays: dict[str, Any] = dict(zip(names, parameters_to_ndarrays(parameters), strict=True))
        np.savez(folder / f"{name}.npz", **arrays)
    client_of = jaxleak.Client(steps=STEPS, lr=LR)
    files = {name: folder / f"{name}.npz" for name in ("before", "after")}
    return {**files, "model": "lenet", "client": client_of}, version("flwr")


def opacus(multiplier: float) -> Callable[[Path, Any, Any], Made]:
    def make(folder: Path, x: Any, y: Any) -> Made:
        import torch
        from opacus import PrivacyEngine  # pyright: ignore[reportMissingImports]

        torch.manual_seed(1)
        net = lenet()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
        private: Any = PrivacyEngine().make_private(
            module=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=LR),
            data_loader=loader,
            noise_multiplier=multiplier,
            max_grad_norm=CLIP,
            poisson_sampling=False,
        )
        model, optimizer, loader = private
        torch.save(model.state_dict(), folder / "weights.pt")
        for images, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.pre_step()
        torch.save({name: weight.grad for name, weight in model.named_parameters()}, folder / "gradients.pt")
        defence = jaxleak.parse_defence(f"dp-sgd:{CLIP}:{multiplier}")
        files = {"update": folder / "gradients.pt", "weights": folder / "weights.pt"}
        return {**files, "model": "lenet", "defences": (defence,)}, version("opacus")

    return make


def huggingface(folder: Path, x: Any, y: Any) -> Made:
    import torch
    from transformers import ViTConfig, ViTForImageClassification  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    sizes = {"hidden_size": VIT["dim"], "num_hidden_layers": VIT["depth"], "num_attention_heads": VIT["heads"]}
    wide = int(VIT["dim"] * VIT["mlp_ratio"])
    images = {"image_size": x.shape[-1], "patch_size": VIT["patch_size"], "num_labels": CLASSES}
    net = ViTForImageClassification(ViTConfig(**sizes, intermediate_size=wide, **images)).eval()
    torch.save(net.state_dict(), folder / "before.pt")
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    net(pixel_values=x, labels=y).loss.backward()
    optimizer.step()
    torch.save(net.state_dict(), folder / "after.pt")
    files = {name: folder / f"{name}.pt" for name in ("before", "after")}
    return {**files, "model": "vit", "fields": VIT, "client": jaxleak.Client(steps=1, lr=LR)}, version("transformers")


STACKS: dict[str, tuple[str, Callable[[Path, Any, Any], Made]]] = {
    "flower": ("NumPyClient, 3 local steps", flower),
    "opacus": ("DP-SGD step, clip 1", opacus(0.0)),
    "opacus-noise": ("DP-SGD step, clip 1, noise 0.001", opacus(1e-3)),
    "huggingface": ("ViT, one step of SGD", huggingface),
}
