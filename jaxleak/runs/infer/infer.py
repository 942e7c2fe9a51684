"""`infer`: what updates tell of their batches, without rebuilding them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxleak.data import Dataset
from jaxleak.data.paths import write_atomically
from jaxleak.errors import InputError, check_choice, check_positive, check_seed
from jaxleak.results.store.environment import environment
from jaxleak.results.store.parts import json_bytes
from jaxleak.runs.infer.properties import PROPERTIES
from jaxleak.runs.infer.questions import OTHERS, Membership, Property, Words
from jaxleak.runs.infer.rows import Row, Rows
from jaxleak.runs.infer.summary import sentences, summarise
from jaxleak.threat.victim import Victim

WHAT = ("words", "membership", "property")
UPDATES = {"words": 50, "membership": 200, "property": 200}
OWN_UPDATES = 400
SAID = 50  # updates between two lines


@dataclass(frozen=True, eq=False)
class Inference:
    """What came of `infer`.

    Attributes:
        what: "words", "membership" or "property".
        rows: one for each update.
        summary: rates and areas under ROC curves, with 95 % intervals; the content of `summary.json`.
    """

    what: str
    rows: list[Row]
    summary: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join(sentences(self.summary))


def infer(
    victim: Victim,
    what: str,
    data: Dataset | None = None,
    *,
    property: str = "grey",
    others: str = "same-label",
    updates: int | None = None,
    own_updates: int = OWN_UPDATES,
    seed: int = 0,
    out: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Inference:
    """What updates tell of their batches: words, whether a record is among them, or a property of them.

    The client's batches are drawn from the victim's images: none is used again before all have been. The attacker
    knows the network, the client's computation and its defences, but not the noise that these drew.

    - "words": tokens of texts, from the rows of the embedding's gradient (`attacks.words.read_words`).
    - "membership": is this record in the batch? By the cosine or inner product of the update and the record's own
      gradient, by a classifier of both, layer by layer, and by the cosine of what is left of both after the directions
      in which the attacker's own updates differ. Half of the records are.
    - "property": have the batch's images a property that labels do not tell? By a classifier of the update. Half of the
      batches have it in all their images.

    Classifiers are trained on updates of batches that the attacker draws from the other images of `data`, defended as
    the client's are.

    Args:
        victim: of one network ("shared"); its images are the client's data, its `batch` the size of batches.
        what: "words", "membership" or "property".
        data: the data set of the victim's images; words need none.
        property: "grey", "mirrored" or "framed": given to images, whatever they show.
        others: records that are not members: "same-label" (one of the batch has theirs, where the client has such data)
            or "any", where an attack that only reads the batch's labels is mostly right.
        updates: attacked updates; None takes 50 for words, else 200.
        own_updates: of the attacker's batches, that classifiers are trained on.
        seed: from which batches, records and classifiers are drawn.
        out: folder for run.json, rows.jsonl, summary.json and, but for words, roc.png; the same call continues it.
        say: is given lines of progress.

    Raises:
        InputError: an unknown choice, a number out of range, a victim or data that this cannot be asked of,
            scikit-learn is missing, or `out` holds something else.
        StorageError: the disk is full.

    Source: Melis, Song, De Cristofaro & Shmatikov 2019 (Unintended feature leakage in collaborative learning).
    Differs: their members and properties are of data sets with several attributes; here a property is given to images.

    Example:
        >>> import jaxleak
        >>> texts = jaxleak.load_dataset("text", length=8)
        >>> victim = jaxleak.make_victim("transformer", texts, images=list(range(8)), batch=2, network="shared")
        >>> found = jaxleak.infer(victim, "words", updates=4)
        >>> found.summary["n"], round(found.summary["precision"], 2)
        (4, 1.0)
    """
    check_choice("what", what, WHAT)
    check_choice("property", property, PROPERTIES)
    check_choice("others", others, OTHERS)
    updates = UPDATES[what] if updates is None else updates
    for name, count in (("updates", updates), ("own_updates", own_updates)):
        check_positive(name, count, integer=True)
        if what != "words" and count < 2:
            raise InputError(f"`{name}` must be at least 2, as half of them have what is asked for; got {count}.")
    check_seed("seed", seed)
    if what == "words":
        question: Any = Words(victim, updates, seed)
    elif what == "membership":
        question = Membership(victim, data, others, updates, own_updates, seed)  # pyright: ignore[reportArgumentType]
    else:
        question = Property(victim, data, property, updates, own_updates, seed)  # pyright: ignore[reportArgumentType]
    settings = {
        "infer": what,
        "victim": victim.settings(),
        "updates": updates,
        "seed": seed,
        "dtype": str(jnp.zeros(()).dtype),
        **({} if what == "words" else {"own_updates": own_updates}),
        **({"property": property} if what == "property" else {}),
        **({"others": others} if what == "membership" else {}),
    }
    made = environment(Path(out) if out is not None else None)
    rows = Rows.open(out, settings, made)
    try:
        missing = [number for number in range(updates) if number not in rows.found]
        if missing and what != "words":
            say(f"{what}: training on {own_updates} updates of the attacker's own")
        for number in missing:
            rows.append(question.row(number))
            if len(rows.found) % SAID == 0:
                say(f"{what}: {len(rows.found)}/{updates} updates done")
        found = rows.ordered()
        summary = {**summarise(what, found, question.truth, question.scores), "settings": settings, "environment": made}
        if rows.path is not None:
            write_atomically(rows.path / "summary.json", json_bytes(summary))
            if question.scores:
                _draw(found, question, summary, rows.path / "roc.png")
    finally:
        rows.close()
    return Inference(what, found, summary)


def _draw(rows: list[Row], question: Any, summary: dict[str, Any], path: Path) -> None:
    from jaxleak.results.figures.roc import roc_curves

    scores = {name: np.asarray([row[name] for row in rows]) for name in question.scores}
    victim = summary["settings"]["victim"]
    asked = summary["settings"].get("property", summary["what"])
    title = f"{asked}: {victim['model']}, {victim['dataset']}, batches of {victim['batch']}, {victim['defences']}"
    roc_curves(scores, np.asarray([row[question.truth] for row in rows]), title, path)
