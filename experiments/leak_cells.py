"""The cells of the leak map: networks, what is varied around them, and the attack of each cell."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jaxleak
from experiments.leak_networks import VGG, PreActResNet

IMAGES = 40
EPOCH = 765  # steps of 64 images: all of the training split but the 40 that are attacked and 1,000 held out
TRAININGS = {"untrained": 0, "epoch": EPOCH, "trained": 4 * EPOCH}
BATCHES, LOCAL_STEPS, LOCAL_LR = (1, 2, 4, 8), (0, 5), 0.01
DEFENCES = {"none": "", "weak": "clip:1 gaussian:0.001", "strong": "clip:1 gaussian:0.01"}
# How far a value is from the plain case. Cells are run in the order of the sum: the ends of each axis come first.
FAR = {"untrained": 0, "trained": 2, "epoch": 3, 1: 0, 8: 2, 2: 3, 4: 3, 0: 0, 5: 2, "none": 0, "strong": 2, "weak": 3}


class Network(NamedTuple):
    """A line of the map.

    Attributes:
        what: for tables.
        model: a name, or a class.
        fields: of it.
        mode: of BatchNorm, where it has some.
        evaluations: of an update's attack: of one gradient, and of local steps.
        smooth: its activation has a slope everywhere.
        closed, closed_batch: attacks that solve it, from the gradient of one image, and of several.
        normalise: of its input.
        twin: the same in evaluation mode, whose training it shares.
    """

    what: str
    model: Any
    fields: dict[str, Any]
    mode: str = "–"
    evaluations: tuple[int, int] = (150, 50)
    smooth: bool = False
    closed: str = ""
    closed_batch: str = ""
    normalise: str = "cifar100"
    twin: str = ""


_RELU = {"activation": "relu", "weight_init": "torch"}
_RESNET = {"stage_sizes": (1, 1, 1), "width": 8, "weight_init": "torch"}
_LENET, _DEEP = (250, 100), (150, 50)
NETWORKS = {
    "lenet-sigmoid": Network("LeNet, sigmoid", "lenet", {}, "–", (600, 100), smooth=True, normalise="none"),
    "lenet-relu": Network("LeNet, ReLU", "lenet", _RELU, "–", _LENET, closed="rgap"),
    "mlp": Network("MLP 64-64, ReLU", "mlp", {**_RELU, "hidden": (64, 64)}, "–", _LENET, False, "analytic", "spear"),
    "vit": Network("ViT, 2 blocks of 64", "vit", {"dim": 64, "depth": 2}, "–", _DEEP, True, "april"),
    "vgg": Network("VGG-like, width 8", VGG, {"width": 8}, evaluations=_DEEP),
    "convnet-eval": Network("ConvNet, width 4", "convnet", {"width": 4, "train": False}, "evaluation", _DEEP),
    "convnet-train": Network("ConvNet, width 4", "convnet", {"width": 4}, "train", _DEEP, twin="convnet-eval"),
    "convnet-group": Network("ConvNet, GroupNorm", "convnet-gn", {"width": 4, "groups": 2}, "–", _DEEP),
    "resnet-eval": Network("ResNet-8, width 8", "resnet20-4", {**_RESNET, "train": False}, "evaluation", _DEEP),
    "resnet-train": Network("ResNet-8, width 8", "resnet20-4", _RESNET, "train", _DEEP, twin="resnet-eval"),
    "resnet-group": Network("ResNet-8, GroupNorm", "resnet20-4", {**_RESNET, "norm": "group", "groups": 4}, "–", _DEEP),
    "resnet-softplus": Network(
        "ResNet-8, softplus", "resnet20-4", {**_RESNET, "activation": "softplus", "train": False}, "evaluation",
        (600, 100), smooth=True,
    ),
    "preact-train": Network("pre-activation ResNet-8", PreActResNet, {}, "train", _DEEP),
    "preact-group": Network("pre-activation, GroupNorm", PreActResNet, {"groups": 4}, "–", _DEEP),
}  # fmt: skip


AXES = (NETWORKS, TRAININGS, BATCHES, LOCAL_STEPS, DEFENCES)


class Cell(NamedTuple):
    """A place of the map."""

    network: str
    training: str
    batch: int
    steps: int
    defence: str

    @property
    def name(self) -> str:
        return f"{self.network}-{self.training}-b{self.batch}-s{self.steps}-{self.defence}"


def all_cells() -> dict[str, Cell]:
    """Every cell by its name, the most important first."""
    cells = [Cell(*values) for values in product(*AXES)]
    return {cell.name: cell for cell in sorted(cells, key=lambda cell: sum(FAR[value] for value in cell[1:]))}


def attack_of(cell: Cell) -> jaxleak.Attack:
    """The strongest attack known today for a cell's network, labels read from the update.

    Closed forms where there is one and the update is a gradient without noise. Else L-BFGS on pixels kept in [0, 1]: by
    relative squared distance of gradients behind smooth activations, else by cosine. Total variation is for what leaves
    the images open: kinks, noise, batches, local steps.
    """
    network, exact = NETWORKS[cell.network], cell.defence == "none"
    closed = network.closed if cell.batch == 1 else network.closed_batch
    if closed and exact and not cell.steps:
        return jaxleak.ATTACKS[closed]
    budget, label = network.evaluations[bool(cell.steps)], "bias" if cell.batch == 1 else "counts"
    base = replace(
        jaxleak.IDLG, label=label, box=True, stop_objective=0.0, max_evaluations=budget, iterations=budget
    )  # fmt: skip
    if network.smooth and exact and not cell.steps:
        return replace(base, name="L2", scale="relative", tv=0.0 if cell.batch == 1 else 1e-4)
    tv = {"none": 0.003 if network.smooth else 0.03, "weak": 0.03, "strong": 0.1}[cell.defence]
    return replace(base, name="cosine", objective="cosine", tv=tv)


def victim_of(cell: Cell, data: jaxleak.Dataset, kept: dict[str, jaxleak.Victim], runs: Path) -> jaxleak.Victim:
    """The victim of a cell.

    Args:
        cell: which one.
        data: CIFAR-100.
        kept: victims with a trained network, one for each, to which new ones are added.
        runs: where these networks lie; they are trained once.
    """
    network = NETWORKS[cell.network]
    own = network.twin or cell.network
    trained = f"{own}-{cell.training}"
    if trained not in kept:
        kind, steps = NETWORKS[own], TRAININGS[cell.training]
        images = data.random_batches(IMAGES // max(BATCHES), max(BATCHES), seed=2026, labels="distinct")
        named = isinstance(kind.model, str)
        model = kind.model if named else kind.model(data.num_classes, **kind.fields)
        folder = runs / "leak_map" / "networks" / trained
        victim = jaxleak.make_victim(
            model, data, images, network="shared", fields=kind.fields if named else None, normalise=kind.normalise,
            trained_steps=steps, checkpoint=folder,
        )  # fmt: skip
        if steps:
            folder.mkdir(parents=True, exist_ok=True)
            victim.write_checkpoint(folder)
        kept[trained] = replace(victim, surrogates=None)
    victim = kept[trained]
    if network.twin:
        victim = victim.in_training()
    defences = tuple(map(jaxleak.parse_defence, DEFENCES[cell.defence].split()))
    client = jaxleak.Client(steps=cell.steps, lr=LOCAL_LR) if cell.steps else jaxleak.Client()
    return replace(victim, batch=cell.batch, client=client, defences=defences)
