"""Victims whose private images come from a data set; their networks are trained if asked for."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxleak.data import Dataset
from jaxleak.data.paths import reachable
from jaxleak.errors import InputError, check_choice, check_not_negative, check_type
from jaxleak.models import load_variables
from jaxleak.models.own import AdaptedModel, adapt_model, module_name
from jaxleak.models.own.from_file import model_builder
from jaxleak.threat.checkpoint import read_checkpoint, training_id
from jaxleak.threat.client import Client
from jaxleak.threat.defences import as_defences, check_defences
from jaxleak.threat.loss import BinaryCrossEntropy
from jaxleak.threat.network import Normalise, draw_params, normalisation_of
from jaxleak.threat.training import train_network
from jaxleak.threat.victim import Victim


def make_victim(
    model: Any,
    data: Dataset,
    images: list[int],
    *,
    network: str = "per-trial",
    network_seed: int = 0,
    weights: str | Path | None = None,
    normalise: Normalise = "none",
    fields: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    **threat_model: Any,
) -> Victim:
    """A victim whose private images are these of a data set.

    Args:
        model: name of a model; a Python file with a function `build_model(classes)` (or `file.py:function`); or a model
            of your own with `data.num_classes` outputs: whatever `adapt_model` takes.
        data: where the images come from (`load_dataset`).
        images: indices in the data set.
        network: see `Victim`.
        network_seed: from which networks are drawn.
        weights: file in torch's names, running statistics included where the model uses them (`load_variables`); needs
            network="shared".
        fields: of the model, where it is given by its name or file.
        checkpoint: a run directory: where the same training was done for it, its networks are taken.
        normalise: a name in `NORMALISATIONS`, by whose mean and deviation inputs are normalised; or these two.
        threat_model: further fields of `Victim`: `batch`, `client`, `defences`, `trained_steps` and others. With
            trained_on="data" (as it is) the network is trained here, on the images of `data` that are not attacked.

    Raises:
        InputError: unknown model, index out of range, weights that do not fit, a threat model that makes no sense.

    Example:
        >>> import jaxleak
        >>> photos = jaxleak.load_dataset("photos")
        >>> victim = jaxleak.make_victim(
        ...     "resnet18", photos, images=[6], network="shared", fields={"width": 16}, client=jaxleak.Client(steps=2)
        ... )
        >>> victim.model_name, victim.network, victim.client.trains
        ('resnet18', 'shared', True)
    """
    check_type("data", data, Dataset, "a Dataset, as `load_dataset` gives it")
    if isinstance(images, str) or not isinstance(images, Iterable):
        raise InputError(f"`images` must be indices in the data set, as in [0, 1]; got {images!r}.")
    module: Any = model
    outputs = _outputs(data, threat_model.get("client"))
    if isinstance(model, str | Path):
        model_name, build = model_builder(model)
        module = build(outputs, **(fields or {}))
    elif fields:
        raise InputError("`fields` are of a model that is given by its name; build yours with them.")
    else:
        model_name = module_name(model)
    module = module if isinstance(module, AdaptedModel) else adapt_model(module, data.image_shape, num_classes=outputs)
    defences = as_defences(threat_model.get("defences", ()))
    check_defences(defences)
    for defence in defences:
        module = defence.network(module)
    params = None
    if weights is not None:
        if network != "shared":
            raise InputError(f"`weights` are one network for all trials and need `network` shared; got {network!r}.")
        variables = load_variables(weights, module, data.image_shape)
        params = variables["params"]
        threat_model = {"batch_stats": variables.get("batch_stats"), **threat_model}
    known = [field.name for field in dataclass_fields(Victim)]
    for name in threat_model:
        check_choice("threat_model", name, known)
    images = list(images)
    pixels, labels = data.images(images)
    steps = threat_model.pop("trained_steps", 0)
    victim = Victim(
        model=module,
        model_name=model_name,
        dataset=data.name,
        split=data.split,
        indices=[int(index) for index in images],
        images=pixels,
        labels=labels,
        network=network,
        network_seed=network_seed,
        params=params,
        weights_name="given" if weights is None else Path(weights).name,
        num_classes=outputs,
        targets=data.targets(images),
        normalisation=normalisation_of(normalise),
        class_names=data.class_names,
        modality=data.modality,
        **threat_model,
    )
    check_not_negative("trained_steps", steps, integer=True)
    victim = replace(victim, surrogates=_surrogates(victim, data))
    if steps and victim.trained_on == "data":
        if "batch_stats" in getattr(module, "state", ()):
            warnings.warn(
                "The model trains in evaluation mode: its running statistics stay as they were drawn. "
                "To have them learned too, train it yourself and give `weights`.",
                stacklevel=2,
            )
        return _trained(victim, data, int(steps), None if checkpoint is None else reachable(checkpoint))
    return replace(victim, trained_steps=int(steps))


def _outputs(data: Dataset, client: Client | None) -> int:
    """Outputs of a network for these data: with binary cross-entropy one logit for two classes."""
    binary = isinstance(client, Client) and isinstance(client.loss, BinaryCrossEntropy)
    return 1 if binary and data.vectors is None and data.num_classes == 2 else data.num_classes


def _surrogates(victim: Victim, data: Dataset) -> np.ndarray | None:
    """For each update, an image that is not attacked, drawn from its first image's index."""
    private = set(victim.indices)
    if len(data) <= len(private):
        return None
    others = np.setdiff1d(data.index, victim.indices)
    chosen = [int(np.random.default_rng(first).choice(others)) for first in victim.indices[:: victim.batch]]
    return data.images(chosen)[0]


def _trained(victim: Victim, data: Dataset, steps: int, checkpoint: Path | None) -> Victim:
    """The victim with its networks trained, or read from a checkpoint of the same training."""
    if victim.network == "per-trial":
        raise InputError(
            "`trained_steps` on the data set trains every network; with `network` per-trial that is one for each "
            "trial. Use --network shared or per-image, or --trained-on own."
        )
    if victim.learns_statistics and victim.network != "shared":
        raise InputError(
            "`trained_steps` of a network whose BatchNorm is in evaluation mode need `network` shared; "
            f"got {victim.network!r}."
        )
    identity = training_id(victim.settings(), steps)
    count = 1 if victim.network == "shared" else victim.updates
    h, w, c = victim.images.shape[1:]
    stored = None if checkpoint is None else read_checkpoint(checkpoint, victim.model, count, identity, (h, w, c))
    networks, training = stored or _train(victim, data, steps)
    params = networks[0]["params"]
    if victim.network == "per-image":
        params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(network["params"] for network in networks))
    done: dict[str, Any] = {"params": params, "batch_stats": networks[0].get("batch_stats", victim.batch_stats)}
    training = {**training, "id": identity}
    return replace(victim, **done, trained_steps=steps, training=training, weights_name="trained")


def _train(victim: Victim, data: Dataset, steps: int) -> tuple[list[dict[str, PyTree]], dict[str, list]]:
    """Train each network without the victim's defences, which apply to the update only."""
    plain = replace(victim, defences=(), client=Client(loss=victim.client.loss), batch=1)
    root, firsts = jax.random.key(victim.network_seed), victim.indices[:: victim.batch]
    h, w, c = victim.images.shape[1:]
    keys = [root] if victim.network == "shared" else [jax.random.fold_in(root, first) for first in firsts]
    networks, training = [], {"loss": [], "accuracy": []}
    for number, key in enumerate(keys):
        begin = victim.params
        if begin is None:
            begin = draw_params(victim.model, key, (h, w, c))
        begin = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), begin)
        done = train_network(plain, begin, data, steps=steps, seed=victim.network_seed + number)
        statistics = {} if done.batch_stats is None else {"batch_stats": done.batch_stats}
        networks.append({"params": done.params, **statistics})
        training["loss"].append(done.losses.tolist())
        training["accuracy"].append(done.accuracy)
    return networks, training
