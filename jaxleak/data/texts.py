"""The embedded text, and the user's own `.txt` file, as texts of a given number of tokens."""

import importlib.resources
import io
from pathlib import Path
from typing import Any

import numpy as np

from jaxleak.data.dataset import Dataset
from jaxleak.errors import InputError, check_choice, check_positive

LENGTH = 16  # tokens of a text, unless another number is asked for
SPACE = "▁"  # what the vocabulary has for the space before a word


def load_text(split: str | None, length: int | None) -> Dataset:
    """The embedded text: text i is the `length` tokens from the i-th beginning of a sentence, or of a part of one.

    Texts whose beginnings are near each other overlap. A text's label is its last token.
    """
    folder = importlib.resources.files("jaxleak.data") / "text"
    with np.load(io.BytesIO((folder / "text.npz").read_bytes())) as stored:
        tokens, starts, vocabulary = (stored[name] for name in ("tokens", "starts", "vocabulary"))
    return _texts("text", tokens, starts, vocabulary, split, length)


def load_text_file(name: str, path: Path, split: str | None, length: int | None) -> Dataset:
    """A text of one's own in the embedded vocabulary; text i is the `length` tokens from its i-th line on.

    Raises:
        InputError: the package `tokenizers` is missing, no UTF-8, or fewer tokens than one text has.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError(
            f"`dataset` {name!r} needs the package tokenizers: pip install 'jaxleak[text]'; the data set text does not."
        ) from None
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`dataset` {name!r} cannot be read as UTF-8 text ({type(error).__name__}).") from None
    tokenizer = Tokenizer.from_str((importlib.resources.files("jaxleak.data") / "text/tokenizer.json").read_text())
    encoded = [tokenizer.encode(line).ids for line in lines]
    lengths = [len(ids) for ids in encoded]
    vocabulary = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size())]
    tokens = np.asarray([token for ids in encoded for token in ids], np.uint16)
    starts = np.cumsum([0, *lengths])[:-1]
    return _texts(name, tokens, starts, np.asarray(vocabulary), split, length)


def _texts(name: str, tokens, starts, vocabulary, split: str | None, length: int | None) -> Dataset:
    check_choice("split", split or "all", ["all"])
    length = LENGTH if length is None else length
    check_positive("length", length, integer=True)
    if length < 2:
        raise InputError(f"`length` must be at least 2, a token and the next; got {length}.")
    starts = np.asarray(starts)[np.asarray(starts) + length <= len(tokens)]
    if not len(starts):
        raise InputError(f"`length` must be at most {len(tokens)}, all tokens of {name}; got {length}.")

    def reader(positions):
        read = np.stack([tokens[starts[position] :][:length] for position in positions])
        return read, read[:, -1]

    shape: Any = (length,)
    return Dataset(
        name=name,
        split="all",
        image_shape=shape,
        class_names=tuple(map(str, vocabulary)),
        index=np.arange(len(starts)),
        reader=reader,
        modality="text",
    )


def readable(tokens, vocabulary) -> str:
    """A text from its tokens; what is no token becomes a question mark in a box."""
    words = [
        str(vocabulary[int(token)]) if 0 <= token < len(vocabulary) else "\N{REPLACEMENT CHARACTER}" for token in tokens
    ]
    return "".join(words).replace(SPACE, " ").strip()
