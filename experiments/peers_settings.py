"""The settings in which `best` is measured beside breaching: networks, batches, and the victim of each."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxleak

SEED, MOST = 2026, 64  # of the images; updates at most, whose images no network is trained on
# The coarse class of each class, as CIFAR-100 comes with it.
CODES = "41e80677i33e9i7b397b6b5a76df3f0b1aceg9b55j88fdehiag4h420h4iha32ccgc19j2a01gc9dfdgj246j558ji12f60h8ed"
COARSE = np.array([int(code, 20) for code in CODES])


class Setting(NamedTuple):
    """A network and its update; `steps` of training, of 64 images each."""

    model: str
    batch: int
    train: bool = False
    steps: int = 0
    width: int = 8

    @property
    def fields(self) -> dict[str, Any]:
        relu = {"activation": "relu", "weight_init": "torch"}
        return relu if self.model == "lenet" else {**relu, "width": self.width, "train": self.train}


SETTINGS = {
    "convnet 1": Setting("convnet", 1),
    "convnet train 4": Setting("convnet", 4, train=True),
    "convnet 4": Setting("convnet", 4),
    "convnet 8": Setting("convnet", 8),
    "convnet trained 1": Setting("convnet", 1, steps=4 * 765),
    "resnet20-4 1": Setting("resnet20-4", 1),
    "resnet20-4 4": Setting("resnet20-4", 4),
    "resnet20-4 trained 1": Setting("resnet20-4", 1, steps=8 * 765),
    "resnet18 1": Setting("resnet18", 1, width=16),
    "lenet 1": Setting("lenet", 1),
}


def victim_of(setting: Setting, data: jaxleak.Dataset, updates: int, folder: Path) -> jaxleak.Victim:
    """The victim of a setting. Its network is trained once, and kept in the folder."""
    told: dict[str, Any] = {"fields": setting.fields, "batch": setting.batch, "normalise": "cifar100"}
    images = data.random_indices(MOST * setting.batch, seed=SEED)
    if setting.steps:
        coarse, fine = tuple(map(str, range(20))), data.reader

        def reader(places: Any) -> tuple[np.ndarray, np.ndarray]:
            pixels, labels = fine(places)
            return pixels, COARSE[labels]

        data = replace(data, name="cifar100-coarse", class_names=coarse, reader=reader)
        told |= {"network": "shared", "trained_steps": setting.steps, "checkpoint": folder}
        victim = jaxleak.make_victim(setting.model, data, images, **told)
        folder.mkdir(parents=True, exist_ok=True)
        victim.write_checkpoint(folder)
        count = updates * setting.batch
        part = {"indices": images[:count], "images": victim.images[:count], "labels": victim.labels[:count]}
        return replace(victim, **part, surrogates=None)
    images = images[: updates * setting.batch]
    victim = jaxleak.make_victim(setting.model, data, images, network="per-image", **told)
    keys = [jax.random.key(image) for image in images[:: setting.batch]]
    networks = [jaxleak.draw_params(victim.model, key, data.image_shape) for key in keys]
    return replace(victim, params=jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks))
