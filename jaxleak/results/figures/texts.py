"""Texts over the iterations, as in DLG's figure: tokens that are right in their places are black, others coloured."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxleak.data.texts import SPACE
from jaxleak.results.figures.grid import choose_trials
from jaxleak.results.figures.style import DPI, FAILED, PAGE_INCHES, save_figure, style_context, task_names
from jaxleak.results.store.columns import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 6.5  # points of the letters, which are all as wide
LETTER, LINE = 0.602 * SIZE / 72, 1.5 * SIZE / 72  # inches
INDENT = 17  # letters before a text
WIDTH = int(PAGE_INCHES[0] / LETTER) - 2  # letters of a line
MOST = 8  # iterations of a trial


class Word(NamedTuple):
    """A token as it is drawn."""

    text: str
    right: bool


def words(tokens: Any, truth: Any, vocabulary: Any) -> list[Word]:
    """The tokens of a text, each with whether it is the true one."""
    found = [str(vocabulary[int(token)]).replace(SPACE, " ") for token in tokens]
    found[:1] = [found[0].lstrip()]
    return [Word(text, int(token) == int(true)) for text, token, true in zip(found, tokens, truth, strict=True)]


def text_grid(
    rows: Sequence[Row],
    arrays: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    snapshots: Sequence[int],
    path: str | Path | None = None,
    *,
    images: Sequence[int] | None = None,
    snapshot_seeds: int | None = None,
) -> "Figure":
    """For each text and attack the best trial by the objective: its text at iterations, and the true text.

    Args:
        rows: result rows.
        arrays: `trial` [n], `candidate` [n, b, t] and `snapshots` [n, s, b, t], of at least the best trials.
        truth: `image` [I], `pixels` [I, b, t], the tokens, and `class_names` [k], the vocabulary.
        snapshots: the iterations [s] of the snapshots.
        path: of the PNG.
        images: see `choose_trials`.
        snapshot_seeds: of how many seeds there are snapshots; None: of all.

    Raises:
        InputError: see `choose_trials`; or the PNG cannot be written.
    """
    blocks = choose_trials(rows, truth, images)
    names, place = task_names(block.key for block in blocks), {int(t): i for i, t in enumerate(arrays["trial"])}
    lines: list[tuple[str, list[Word] | None]] = []
    for block in blocks:
        row, true = block.lines[0][1], truth["pixels"][truth["image"] == block.image][0]
        i = place[row["trial"]]
        kept = "snapshots" in arrays and (snapshot_seeds is None or row["seed"] < snapshot_seeds)
        frames = [
            (f"iteration {at}", arrays["snapshots"][i, s])
            for s, at in enumerate(snapshots[:MOST] if kept else ())
            if at < row["iterations"]
        ]
        lines.append((f"{names[block.key]}, text {block.image}: {row['status']}", None))
        for label, texts in [*frames, (f"end, {row['iterations']}", arrays["candidate"][i]), ("true", true)]:
            for text, wanted in zip(texts, true, strict=True):
                lines.append((label, words(text, wanted, truth["class_names"])))
                label = ""
    return save_figure(_drawn(lines), path)


def _drawn(lines: list[tuple[str, list[Word] | None]]) -> "Figure":
    from matplotlib.figure import Figure

    placed: list[tuple[float, int, str, dict[str, Any]]] = []  # letters from the left, lines from the top
    row = 0
    for label, text in lines:
        placed.append((1, row, label, {"weight": "bold"} if text is None else {"color": "0.4"}))
        at = INDENT
        for word in text or ():
            if at + len(word.text) > WIDTH:
                row, at = row + 1, INDENT
            placed.append((at, row, word.text, {} if word.right else {"color": FAILED}))
            at += len(word.text)
        row += 1
    height = (row + 1) * LINE
    with style_context():
        figure = Figure(figsize=(PAGE_INCHES[0], height), dpi=DPI)
        for at, line, text, looks in placed:
            x, y = at * LETTER / PAGE_INCHES[0], 1 - (line + 0.5) * LINE / height
            figure.text(x, y, text.replace("$", r"\$"), family="monospace", size=SIZE, va="top", **looks)
    return figure
