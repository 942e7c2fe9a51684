"""Networks that were trained for a run, kept in its directory: a resumed run attacks the same ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from jaxleak.data.paths import local_copy, write_atomically
from jaxleak.models.weights import to_torch, variables_from_torch

FILE = "trained-{}.safetensors"
LAYOUT = "kernels"  # what is transposed; files without this word have every tensor transposed


def training_id(settings: dict[str, Any], steps: int) -> str:
    """Identity of a training run: a hash of the victim's settings before it and the number of steps."""
    text = json.dumps([settings, steps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_checkpoint(
    folder: Path,
    model: Any,
    networks: list[dict[str, PyTree]],
    training: dict[str, Any],
    shape: tuple[int, int, int],
) -> None:
    """One safetensors file for each network, in torch's names and layout, unless they can be read back already.

    Args:
        folder: the run directory.
        model: their model.
        networks: `params` of each, and `batch_stats` where it has them.
        training: `loss` and `accuracy` of each, and the `id` of all.
        shape: of the images.
    """
    from safetensors.numpy import save

    if read_checkpoint(folder, model, len(networks), training["id"], shape) is not None:
        return
    for number, network in enumerate(networks):
        path = folder / FILE.format(number)
        metadata = {"id": training["id"], "loss": training["loss"][number], "accuracy": training["accuracy"][number]}
        metadata["layout"] = LAYOUT
        tensors = to_torch(model, network["params"], shape, network.get("batch_stats"))
        write_atomically(path, save(tensors, {"training": json.dumps(metadata)}))


def read_checkpoint(
    folder: Path, model: Any, count: int, identity: str, shape: tuple[int, int, int]
) -> tuple[list[Any], dict[str, Any]] | None:
    """The networks of `write_checkpoint` and their training; None if any network of this training is missing."""
    from safetensors import SafetensorError, safe_open

    networks, training = [], {"id": identity, "loss": [], "accuracy": []}
    for number in range(count):
        try:
            with local_copy(folder / FILE.format(number)) as copy, safe_open(copy, "np") as file:
                metadata = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None
        if metadata["id"] != identity:
            return None
        networks.append(variables_from_torch(model, tensors, shape, all_reversed=metadata.get("layout") != LAYOUT))
        training["loss"].append(metadata["loss"])
        training["accuracy"].append(metadata["accuracy"])
    return networks, training
