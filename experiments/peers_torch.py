"""What a peer in PyTorch is given of a victim, and breaching's attacks on it. breaching is read from a folder.

Of breaching (Jonas Geiping, https://github.com/JonasGeiping/breaching) only `breaching.attacks` is imported, as it is,
and its presets are read from its `config/attack`: its own start-up also wants hydra, torchvision and data sets.
"""

import importlib
import json
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak

# PyTorch's gradient of the true images and the update, norm of the difference over the update's: 2e-6, but where a ReLU
# or a pool is at a kink. In one of eight updates in train mode weights that differ by 1e-7 change the gradient by 0.07.
AGREES = 0.2
WARM, TIMED = 5, 20  # iterations before the first attack: not counted, and timed


class Handed(NamedTuple):
    """An update for PyTorch: the network with its weights, the update by its parameters, the labels."""

    net: Any
    update: list[Any]
    labels: Any


class Found(NamedTuple):
    """What an attack on an update ended with: pixels [b, h, w, c], the evaluations and the seconds it took."""

    images: np.ndarray
    evaluations: int
    seconds: float
    compile_seconds: float  # before it


class Settings(dict):
    """Settings by their names; None where there is none."""

    __getattr__ = dict.get


def handed(victim: jaxleak.Victim, number: int) -> Handed:
    """Update `number` of the victim, computed by jaxleak.

    Raises:
        RuntimeError: PyTorch has another gradient of these images.
    """
    import torch
    from safetensors.torch import load_file

    from jaxleak.bench.networks.build import build

    own = slice(number * victim.batch, (number + 1) * victim.batch)
    params = victim.params
    if victim.network == "per-image":
        params = jax.tree.map(lambda leaf: leaf[number], params)
    x, labels = victim.to_input(jnp.asarray(victim.images[own])), np.asarray(victim.labels)[own]
    update = jax.jit(victim.share)(params, x, victim.target(labels), jax.random.key(0))
    model: Any = victim.model
    fields = {name: getattr(model, name) for name in type(model).__dataclass_fields__ if name not in ("parent", "name")}
    plain = {name: getattr(value, "__name__", value) for name, value in fields.items()}
    h, w, c = victim.images.shape[1:]
    net = build(type(model).__name__, plain, (h, w, c))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tensors"
        jaxleak.save_weights(file, model, params or {}, (h, w, c), victim.batch_stats)
        net.load_state_dict(load_file(file), strict=False)
        jaxleak.save_weights(file, model, update, (h, w, c))
        named = load_file(file)
    tensors, true = [named[name] for name, _ in net.named_parameters()], torch.from_numpy(labels.astype(np.int64))
    images = torch.from_numpy(np.array(x, np.float32).transpose(0, 3, 1, 2))
    loss = torch.nn.functional.cross_entropy(net(images), true)
    gradient = torch.autograd.grad(loss, list(net.parameters()))
    apart = sum(float((ours - theirs).square().sum()) for ours, theirs in zip(tensors, gradient, strict=True))
    relative = (apart / sum(float(tensor.square().sum()) for tensor in tensors)) ** 0.5
    if not relative < AGREES:
        raise RuntimeError(f"update {number}: PyTorch's gradient is {relative:.1e} of the update's norm away from it.")
    return Handed(net, tensors, true)


def preset(folder: Path, name: str) -> Settings:
    """breaching's settings of an attack, with its defaults."""
    import yaml

    def merged(base: Any, own: Any) -> Any:
        both = isinstance(base, dict) and isinstance(own, dict)
        return {**base, **{key: merged(base.get(key), value) for key, value in own.items()}} if both else own

    files = [folder / "breaching/config/attack" / f"{file}.yaml" for file in ("_default_optimization_attack", name)]
    return json.loads(json.dumps(merged(*(yaml.safe_load(file.read_text()) for file in files))), object_hook=Settings)


def attacks_of(folder: Path) -> Any:
    """Its module `breaching.attacks`, without what stands above it."""
    for name in ("breaching", "breaching.cases", "breaching.cases.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module("breaching.attacks")


def attacked(victim: jaxleak.Victim, folder: Path, name: str, seconds: float) -> Iterator[Found]:
    """Its attack on every update, one after the other on one thread, with the iterations that fit in `seconds`.

    Labels are known. The rate at which it iterates is measured before the first update, then on the last one.
    """
    import torch

    torch.set_num_threads(1)
    module, settings, rate = attacks_of(folder), preset(folder, name), 0.0
    setup: Any = {"dtype": torch.float, "device": torch.device("cpu")}
    h, w, c = victim.images.shape[1:]
    means: Any = [np.broadcast_to(part, c).tolist() for part in victim.normalisation or ((0.0,), (1.0,))]
    pixels = Settings(shape=(c, h, w), mean=means[0], std=means[1], modality="vision")
    for number in range(victim.updates):
        net, update, labels = handed(victim, number)
        told = {"num_data_points": victim.batch, "labels": labels, "local_hyperparams": None}
        buffers = None if getattr(victim.model, "train", False) else list(net.buffers())
        server = {"parameters": list(net.parameters()), "buffers": buffers, "metadata": pixels}
        shared = {"gradients": update, "buffers": None, "metadata": told}

        def run(iterations: int, net=net, server=server, shared=shared, number=number) -> tuple[np.ndarray, float]:
            settings["optim"] |= {"max_iterations": iterations, "callback": iterations + 1}
            torch.manual_seed(number)
            attacker = module.prepare_attack(net, torch.nn.CrossEntropyLoss(), settings, setup)
            began = time.perf_counter()
            data = attacker.reconstruct([server], [shared], {})[0]["data"]
            return np.asarray(data.permute(0, 2, 3, 1)) * means[1] + means[0], time.perf_counter() - began

        warming = 0.0
        if not rate:
            warming = run(WARM)[1]
            took = run(TIMED)[1]
            rate, warming = TIMED / took, warming + took
        iterations = max(1, round(seconds * rate))
        images, spent = run(iterations)
        rate = iterations / spent
        yield Found(images, iterations, spent, warming)
