"""Names of the same networks in other libraries, brought to those of timm (ViT) and torchvision (ResNet).

Source: transformers `modeling_vit.py` and `modeling_resnet.py` (versions 4 and 5), torchvision `vision_transformer.py`.
"""

import re
import warnings
from collections.abc import Collection
from dataclasses import replace
from itertools import product, takewhile

import numpy as np

from jaxleak.models.files.read import Stored, renamed

# Each a pattern of a whole name; in the replacement {n+1} stands for group n as a number and one more.
DIALECTS: dict[str, tuple[tuple[str, str], ...]] = {
    "Hugging Face's ViT": (
        (r"vit\.embeddings\.cls_token", "cls_token"),
        (r"vit\.embeddings\.position_embeddings", "pos_embed"),
        (r"vit\.embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
        (r"vit\.(?:encoder\.)?layers?\.(\d+)\.attention\.(?:attention\.)?([qkv])\w*\.(\w+)", r"blocks.\1.attn.\2.\3"),
        (r"vit\.(?:encoder\.)?layers?\.(\d+)\.attention\.(?:o_proj|output\.dense)\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (r"vit\.(?:encoder\.)?layers?\.(\d+)\.layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
        (r"vit\.(?:encoder\.)?layers?\.(\d+)\.layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
        (r"vit\.(?:encoder\.)?layers?\.(\d+)\.(?:mlp\.fc1|intermediate\.dense)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
        (r"vit\.(?:encoder\.)?layers?\.(\d+)\.(?:mlp\.fc2|output\.dense)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
        (r"vit\.layernorm\.(\w+)", r"norm.\1"),
        (r"classifier\.(\w+)", r"head.\1"),
    ),
    "torchvision's ViT": (
        (r"class_token", "cls_token"),
        (r"encoder\.pos_embedding", "pos_embed"),
        (r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
        (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
        (r"encoder\.ln\.(\w+)", r"norm.\1"),
        (r"heads\.head\.(\w+)", r"head.\1"),
    ),
    "Hugging Face's ResNet": (
        (r"resnet\.embedder\.embedder\.convolution\.(\w+)", r"conv1.\1"),
        (r"resnet\.embedder\.embedder\.normalization\.(\w+)", r"bn1.\1"),
        (
            r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.(\w+)",
            r"layer{1+1}.\2.conv{3+1}.\4",
        ),
        (
            r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.(\w+)",
            r"layer{1+1}.\2.bn{3+1}.\4",
        ),
        (
            r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.(\w+)",
            r"layer{1+1}.\2.downsample.0.\3",
        ),
        (
            r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.(\w+)",
            r"layer{1+1}.\2.downsample.1.\3",
        ),
        (r"classifier\.1\.(\w+)", r"fc.\1"),
    ),
}
JOINED = re.compile(r"(.*\.attn)\.[qkv]\.(weight|bias)")


def translated(what: str, stored: Stored, known: Collection[str], wrappers: Collection[str]) -> Stored:
    """The tensors under the names of timm and torchvision, where more of them then are the model's; a line says so.

    A prefix that all names share is left out for it.

    Args:
        what: "weights" or "update", for messages.
        stored: the file.
        known: names that the model has.
        wrappers: parts of names that wrap a module, which are left out.
    """
    known = set(known)
    best, most, dialect = stored, len(known & set(stored.tensors)), ""
    parts = {name: [part for part in name.split(".") if part not in wrappers] for name in stored.tensors}
    levels = zip(*(steps[:-1] for steps in parts.values()), strict=False)
    shared = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    for (library, rules), depth in product(DIALECTS.items(), range(shared + 1)):
        names = {}
        for name, steps in parts.items():
            bare = ".".join(steps[depth:])
            for pattern, replacement in rules:
                match = re.fullmatch(pattern, bare)
                if match:
                    counted = re.sub(r"\{(\d)\+1\}", lambda n, m=match: str(int(m[int(n[1])]) + 1), replacement)
                    names[name] = match.expand(counted)
        if names and len(set(names.values())) == len(names):
            spoken = _joined(renamed(stored, names), known)
            fitting = len(known & set(spoken.tensors))
            if fitting > most:
                best, most, dialect = spoken, fitting, library
    if dialect:
        warnings.warn(f"`{what}`: names are read as those of {dialect}", stacklevel=2)
    return best


def _joined(stored: Stored, known: set[str]) -> Stored:
    """Queries, keys and values in one tensor, where the model has them so."""
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in stored.tensors.items():
        match = JOINED.fullmatch(name)
        whole = f"{match[1]}.qkv.{match[2]}" if match else ""
        if match is None or whole not in known:
            tensors[name] = tensor
            continue
        parts = [stored.tensors.get(f"{match[1]}.{part}.{match[2]}") for part in "qkv"]
        present = [part for part in parts if part is not None]
        if len(present) == len(parts) and len({part.shape for part in present}) == 1:
            tensors[whole] = np.concatenate(present)
        else:
            tensors[name] = tensor
    return replace(stored, tensors=tensors)
