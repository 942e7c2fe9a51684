"""The words of an update of one's own, from its file."""

import hashlib
from pathlib import Path

import numpy as np

from jaxleak.attacks.words import read_words
from jaxleak.data.paths import write_atomically
from jaxleak.errors import InputError, check_file
from jaxleak.results.store.environment import environment
from jaxleak.results.store.parts import json_bytes
from jaxleak.runs.infer.infer import Inference
from jaxleak.runs.infer.rows import Rows
from jaxleak.threat.own_embedding import read_embedding


def infer_own_words(
    update: str | Path, out: str | Path | None, embedding: str | None = None, vocabulary: str | Path | None = None
) -> Inference:
    """The tokens that an update's embedding shows; nobody knows which are right.

    Args:
        update: file of a gradient, or of a weight difference.
        out: folder for run.json, rows.jsonl and summary.json.
        embedding: name of the tensor with a row for each token; None finds it by its name.
        vocabulary: a text file with one token a line.

    Raises:
        InputError: a file that cannot be read or has no such tensor, a vocabulary of another size, or `out` holds
            something else.
    """
    name, gradient = read_embedding(update, embedding)
    texts = None if vocabulary is None else _vocabulary(vocabulary, len(gradient))
    found = read_words(gradient)
    digest = hashlib.sha256(np.ascontiguousarray(gradient, np.float64).tobytes()).hexdigest()[:12]
    settings = {"infer": "words", "update": f"{Path(str(update)).name} sha256:{digest}", "embedding": name}
    made = environment(Path(out) if out is not None else None)
    tokens = found.tokens.tolist()
    row = {"update": 0, "found": len(tokens), "threshold": found.threshold, "found_tokens": tokens}
    words = {} if texts is None else {"words": [texts[token] for token in tokens]}
    rows = Rows.open(out, settings, made)
    try:
        if 0 not in rows.found:
            rows.append(row)
        summary = {"what": "own words", "n": 1, "vocabulary": len(gradient), **row, **words}
        summary |= {"settings": settings, "environment": made}
        if rows.path is not None:
            write_atomically(rows.path / "summary.json", json_bytes(summary))
    finally:
        rows.close()
    return Inference("words", rows.ordered(), summary)


def _vocabulary(path: str | Path, size: int) -> list[str]:
    check_file("vocabulary", path, "a text file with one token a line")
    try:
        texts = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`vocabulary` {str(path)!r} cannot be read as UTF-8 text ({type(error).__name__}).") from None
    if len(texts) != size:
        raise InputError(f"`vocabulary` must have a line for each of {size} tokens; it has {len(texts)}.")
    return texts
