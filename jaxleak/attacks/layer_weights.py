"""Weights of layers in the objective, as in "conv1:4.0"."""

import difflib
import math

import jax
from jaxtyping import PyTree

from jaxleak.errors import InputError


def parse_layer(text: str) -> tuple[str, float]:
    """Name and weight of an entry of `layers`: "conv1", whose weight is 1, or "conv1:4.0".

    The name is a layer's, or the names from the outermost to it joined by "/", as in "layer1.0/conv1", and stands for
    all tensors in that layer; "*" stands for all layers.

    Raises:
        InputError: no name, or a weight that is not a number from 0 up.
    """
    name, colon, number = text.partition(":")
    try:
        weight = float(number) if colon else 1.0
    except ValueError:
        weight = math.nan
    if not name or not 0 <= weight < math.inf:
        raise InputError(
            f"`layers` must be names of layers, each with a weight from 0 up after a colon if it is not 1, such as "
            f"conv1 or conv1:4.0; got {text!r}."
        )
    return name, weight


def check_layers(layers: tuple[str, ...], params: PyTree) -> None:
    """Raise unless every entry names layers of these parameters, and some tensor's weight is above 0.

    Raises:
        InputError: an entry cannot be read or matches no layer, or no tensor is left.
    """
    paths = _tensor_paths(params)
    for name, _ in map(parse_layer, layers):
        if not any(_within(path, name) for path in paths):
            raise InputError(_unknown_layer(name, paths))
    if layers and not any(_weight(path, layers) for path in paths):
        raise InputError(f"`layers` must leave a layer with a weight above 0; got {' '.join(layers)}.")


def _unknown_layer(name: str, paths: list[str]) -> str:
    parts = [path.split("/") for path in paths]
    layers = dict.fromkeys("/".join(part[:depth]) for part in parts for depth in range(1, len(part)))
    outermost = [layer for layer in layers if "/" not in layer]
    inner = next((layer for layer in layers if "/" in layer), None)
    close = difflib.get_close_matches(name, layers, n=1, cutoff=0.5)
    return (
        f"`layers` must be '*' or name layers of the network: {', '.join(outermost)}"
        f"{f', or layers inside these such as {inner}' if inner else ''}; got {name!r}."
        f"{f' Did you mean {close[0]!r}?' if close else ''}"
    )


def _tensor_paths(params: PyTree) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]


def _within(path: str, name: str) -> bool:
    return name == "*" or f"{path}/".startswith(f"{name}/")


def _weight(path: str, layers: tuple[str, ...]) -> float:
    """That of the last entry that names the tensor, else 0."""
    return ([0.0] + [weight for name, weight in map(parse_layer, layers) if _within(path, name)])[-1]


def layer_weights(layers: tuple[str, ...], params: PyTree) -> PyTree:
    """A weight for each tensor."""
    if not layers:
        return jax.tree.map(lambda _: 1.0, params)
    check_layers(layers, params)
    return jax.tree.structure(params).unflatten([_weight(path, layers) for path in _tensor_paths(params)])
