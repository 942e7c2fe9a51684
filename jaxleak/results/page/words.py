"""A run's settings in words: what was attacked, and what the attacker knows."""

import math
from pathlib import Path
from typing import Any

from jaxleak.results.verdict import Criteria

NETWORKS = {
    "shared": "one network for all trials",
    "per-image": "a network for each update",
    "per-trial": "a fresh network for every trial",
}
LABELS = {"joint": "optimised beside the images", "known": "given", "text": "those of the text that is found"}


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def attacked(settings: dict[str, Any]) -> str:
    """Model, network and images."""
    victim = settings["victim"]
    text = victim.get("modality") == "text"
    images = victim["images"]
    listed = ", ".join(map(str, images[:12])) + (", …" if len(images) > 12 else "")
    dataset = Path(victim["dataset"]).name or victim["dataset"]
    trained = victim.get("trained_steps") or 0
    on = "the data set" if victim.get("trained_on") == "data" else "the update's own images"
    training = f"trained for {plural(trained, 'step')} on {on}"
    outputs = f"{victim['num_classes']:,} {'tokens' if text else 'classes'}"
    return (
        f"{victim['model']} ({outputs}; {NETWORKS.get(victim['network'], victim['network'])}, "
        f"{training if trained else _weights(victim)}) on "
        f"{plural(len(images), 'text' if text else 'image')} of {dataset}, {_size(victim['image_shape'])}: {listed}. "
        f"{plural(settings['seeds'], 'start')} for each update and attack"
    )


def _size(shape: list[int]) -> str:
    if len(shape) == 1:
        return f"{plural(shape[0], 'token')} each"
    height, width, channels = shape
    return f"{width}x{height} pixels, {plural(channels, 'channel')}"


def _weights(victim: dict[str, Any]) -> str:
    return f"weights {victim['weights']}" if victim.get("weights") else "not trained"


def shared(settings: dict[str, Any]) -> str:
    """The update that the client sends, in words."""
    victim = settings["victim"]
    client, batch = victim.get("client") or {}, int(victim.get("batch", 1))
    steps, epochs = client.get("steps") or 0, client.get("epochs") or 0
    noun = "text" if victim.get("modality") == "text" else "image"
    images = f"one {noun}" if batch == 1 else f"a batch of {batch} {noun}s"
    if steps or epochs:
        work = plural(steps, "local step") if steps else plural(epochs, "local epoch")
        text = f"how far the weights moved in {work} of {_optimizer(client)} on {images}"
        if "loss" in client:
            text += f" with the loss {_loss(client)}"
    else:
        text = f"the gradient of the {_loss(client)} on {images}"
    if client.get("clients", 1) > 1:
        text = f"{text}, averaged over {client['clients']} clients"
    defences = victim.get("defences", "none")
    if victim.get("update"):
        text = f"an update that was given ({images})"
    return f"{text}; {'no defence' if defences == 'none' else f'defended by {defences}'}"


def _loss(client: dict[str, Any]) -> str:
    return client.get("loss", "cross-entropy").partition(" sha256:")[0]


def _optimizer(client: dict[str, Any]) -> str:
    """The optimiser, with what is not as usual of it and of the order of the images."""
    lr = client["lr"]
    words = [f"rate {lr:g}" if isinstance(lr, int | float) else f"rates {', '.join(f'{rate:g}' for rate in lr)}"]
    words += [
        name.replace("_", " ") if client[name] is True else f"{name.replace('_', ' ')} {client[name]:g}"
        for name in ("momentum", "nesterov", "dampening", "weight_decay", "clip", "drop_last")
        if name in client
    ]
    words += ["shuffled"] if "shuffle" in client else ["in a given order"] if "order" in client else []
    return f"{client['optimizer']} ({', '.join(words)})"


def known(settings: dict[str, Any]) -> str:
    """The attacker's knowledge beside the update, in words."""
    victim = settings["victim"]
    noun = "texts" if victim.get("modality") == "text" else "images"
    parts = ["the model and its weights before the update", f"how many {noun} it holds"]
    if victim.get("normalisation"):
        parts.append("how inputs are normalised")
    if "knows_statistics" in victim:
        parts.append(f"{'' if victim['knows_statistics'] else 'but not '}BatchNorm's running statistics")
    if victim.get("knows_order") is False:
        parts.append("but not the order in which the client took its images")
    labels: dict[str, list[str]] = {}
    for attack in settings["attacks"]:
        text = LABELS.get(attack["label"], f"read from the update ({attack['label']})")
        labels.setdefault(text, []).append(attack["name"])
    said = "; ".join(f"{text} by {', '.join(names)}" if len(labels) > 1 else text for text, names in labels.items())
    return f"{', '.join(parts)}. Labels: {said}"


def success(settings: dict[str, Any]) -> str:
    """The success criteria, in words."""
    criteria = Criteria(**settings["criteria"])
    kinds = {attack["objective"] for attack in settings["attacks"]}
    units = {"cosine": " (1 - cosine)", "likelihood": " (nats per entry)"}
    limits = [f"an objective below {criteria.threshold(kind):g}" + units.get(kind, "")
              for kind in sorted(kinds, reverse=True)]  # fmt: skip
    if settings["victim"].get("modality") == "text":
        wrong = math.ceil(criteria.relative_error) - 1
        right = f"at most {plural(wrong, 'token')} wrong in every text" if wrong else "every token of every text right"
        return f"{' or '.join(limits)}, and {right}"
    return f"{' or '.join(limits)}, and a relative image error below {criteria.relative_error:g} of every image"


def threat_model(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Headings and sentences."""
    fields = settings["victim"].get("model_fields")
    return [
        ("Attacked", attacked(settings)),
        *([("The model", fields)] if fields else []),
        ("The client sends", shared(settings)),
        ("The attacker knows", known(settings)),
        *[(f"The attack {one['name']} is", one["chosen"]) for one in settings["attacks"] if one.get("chosen")],
        ("Solved means", success(settings)),
    ]
