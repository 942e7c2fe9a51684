"""Evidence from restarts where the true images are unknown: which fit the update, and whether they agree."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxleak.data.paths import write_atomically
from jaxleak.results.matching import match, mosaic
from jaxleak.results.metrics import relative_error
from jaxleak.results.result import Result
from jaxleak.results.store.columns import Row
from jaxleak.results.store.parts import npz_bytes
from jaxleak.results.verdict import Criteria

AGREES = Criteria().relative_error  # relative distance below which two restarts show the same image
KEPT = 8  # restarts whose images are kept, of each attack


class Restarts(NamedTuple):
    """The restarts of one attack with a finite objective, the lowest first."""

    attack: str
    rows: list[Row]
    images: Float[np.ndarray, "n b h w c"]  # as they ended, not cut to [0, 1]; slots as the first one has them
    distances: Float[np.ndarray, "n b"]  # relative distance of each image from the first one's
    labels: list[list]  # that each worked with, in the order of its images; vectors where targets are no classes
    total: int  # restarts, those without a finite objective included


def restarts(result: Result, attack: str) -> Restarts:
    """The restarts of one attack, ordered and matched with the one that has the lowest objective."""
    rows = [row for row in result.rows if row["attack"] == attack]
    total = len(rows)
    rows = sorted((row for row in rows if np.isfinite(row["objective"])), key=lambda row: row["objective"])
    candidates = result.reconstructions([row["trial"] for row in rows]) if rows else {"trial": [], "candidate": []}
    batch = result.run.settings["victim"]["batch"]
    of_trial = {
        int(trial): np.asarray(images).reshape(batch, *np.shape(images)[-3:])
        for trial, images in zip(candidates["trial"], candidates["candidate"], strict=True)
    }
    images = [of_trial[row["trial"]] for row in rows]
    if not images:
        return Restarts(attack, rows, np.zeros((0, batch, 1, 1, 1)), np.zeros((0, batch)), [], total)
    order = [match(candidate, images[0]) for candidate in images]
    images = [candidate[places] for candidate, places in zip(images, order, strict=True)]
    distances = [relative_error(np.asarray(candidate), np.asarray(images[0])) for candidate in images]
    labels = [array[places].tolist() for array, places in zip(_labels(result, rows, batch), order, strict=True)]
    return Restarts(attack, rows, np.stack(images), np.stack(distances), labels, total)


def _labels(result: Result, rows: list[Row], batch: int) -> list[np.ndarray]:
    """The labels of each restart, in the order in which its images are stored; -1 where it has none for one."""
    if "targets_found" in result.run.arrays(trials=[rows[0]["trial"]]):
        arrays = result.run.arrays(["trial", "targets_found"], trials=[row["trial"] for row in rows])
        of_trial = dict(zip(arrays["trial"].tolist(), arrays["targets_found"], strict=True))
        return [of_trial[row["trial"]] for row in rows]
    if batch == 1:
        return [np.array([row["label_found"]]) for row in rows]
    arrays = result.run.arrays(["trial", "slots", "labels_found"], trials=[row["trial"] for row in rows])
    of_trial = {
        int(trial): np.where(slots >= 0, labels[slots], -1)
        for trial, slots, labels in zip(arrays["trial"], arrays["slots"], arrays["labels_found"], strict=True)
    }
    return [of_trial[row["trial"]] for row in rows]


def write_best(folder: Path, groups: list[tuple[str, Restarts]]) -> list[tuple]:
    """Write `best.npz` into the run directory; returns the argument `kept` of `draw`.

    It holds the best restarts of each attack: `images` [n, b, h, w, c] cut to [0, 1], `objective` [n], `labels` [n, b],
    `trial` [n] and `attack` [n].
    """
    kept = [
        (attack, row["trial"], row["objective"], labels, np.clip(images, 0, 1), distance)
        for attack, group in groups
        for row, labels, images, distance in zip(
            group.rows[:KEPT], group.labels[:KEPT], group.images[:KEPT], group.distances[:KEPT], strict=True
        )
    ]
    if kept:
        names, trials, objectives, labels, images, _ = zip(*kept, strict=True)
        arrays = {
            "images": np.stack(images).astype(np.float32),
            "objective": np.array(objectives),
            "labels": np.array(labels),
            "trial": np.array(trials),
            "attack": np.array(names),
        }
        write_atomically(folder / "best.npz", npz_bytes(arrays))
    return kept


def draw(kept: list[tuple], truth: Float[np.ndarray, "b h w c"] | None, path: Path) -> None:
    """A line of pictures for each attack: the truth where it is known, the best restart, and the others."""
    from matplotlib.figure import Figure

    attacks = list(dict.fromkeys(entry[0] for entry in kept))
    first = [] if truth is None else [("truth", mosaic(truth))]
    lines = [
        first
        + [(f"{objective:.1e}\n{'best' if place == 0 else f'{np.max(distance):.2f} away'}", mosaic(images))
           for place, (_, _, objective, _, images, distance) in enumerate(k for k in kept if k[0] == attack)]
        for attack in attacks
    ]  # fmt: skip
    columns = max(map(len, lines))
    figure = Figure(figsize=(1.3 * columns + 0.4, 1.75 * len(lines)), dpi=110, layout="constrained")
    panels = figure.subplots(len(lines), columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for row, (attack, line) in zip(panels, zip(attacks, lines, strict=True), strict=True):
        row[0].set_ylabel(attack, fontsize=8)
        for axes, (text, picture) in zip(row, line, strict=False):
            shown = picture if picture.shape[-1] == 3 else picture[..., 0]
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(text, fontsize=7)
        for axes in row[len(line) :]:
            axes.set_visible(False)
    png = io.BytesIO()
    figure.savefig(png)
    write_atomically(path, png.getvalue())
