"""The gradient of an embedding of tokens, in the file of an update of one's own."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxleak.errors import InputError, check_choice
from jaxleak.models.files import read_tensors

# Parts of names that embeddings of tokens have in networks of PyTorch users; those of positions are others.
NAMES = ("wte", "word_embeddings", "embed_tokens", "tok_embeddings", "token_embedding", "embed", "embedding", "emb")
NOT_TOKENS = ("position", "pos_embed", "wpe", "token_type", "type_embed", "patch", "norm")


def read_embedding(update: str | Path, name: str | None = None) -> tuple[str, np.ndarray]:
    """The tensor with a row for each token, and its name.

    Args:
        update: file of a gradient or of a weight difference.
        name: of the tensor; None finds it by parts of names that are in use.

    Raises:
        InputError: a file that cannot be read, or in it no such tensor, or several.
    """
    tensors = read_tensors(update, "update").tensors
    name = _embedding_of(tensors, name)
    return name, np.asarray(tensors[name])


def _embedding_of(tensors: Mapping[str, np.ndarray], name: str | None) -> str:
    if name is not None:
        return check_choice("embedding", name, tensors)
    matrices = [key for key, tensor in tensors.items() if np.ndim(tensor) == 2]
    tokens = [key for key in matrices if not any(part in key.lower() for part in NOT_TOKENS)]
    for part in NAMES:
        found = [key for key in tokens if part in key.lower()]
        if len(found) == 1:
            return found[0]
        if found:
            break
    else:
        found = []
    shown = ", ".join((found or matrices)[:6]) or "no matrix"
    which = "several tensors whose names say" if found else "no tensor whose name says"
    raise InputError(f"`update` has {which} embedding of tokens; it has {shown}. Name it: --embedding NAME.")
