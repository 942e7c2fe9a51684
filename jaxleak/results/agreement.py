"""What restarts say about images nobody can compare with the truth: which fit the update, and whether they agree."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxleak.data.paths import write_atomically
from jaxleak.results.matching import match, mosaic
from jaxleak.results.metrics import relative_error
from jaxleak.results.result import Result
from jaxleak.results.store.columns import Row
from jaxleak.results.store.parts import json_bytes, npz_bytes

EXPLAINS = 1e-2  # share of the update, squared, that may be left over where a restart counts as fitting
AGREES = 0.2  # relative distance below which two restarts show the same image: the criterion of success
KEPT = 8  # restarts whose images are kept, of each attack


class Restarts(NamedTuple):
    """The restarts of one attack with a finite objective, the lowest first."""

    attack: str
    rows: list[Row]
    images: Float[np.ndarray, "n b h w c"]  # as they ended, not cut to [0, 1]; slots as the first one has them
    distances: Float[np.ndarray, "n b"]  # relative distance of each image from the first one's
    labels: list[list[int]]  # that each worked with, in the order of its images
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
    order = [match(one, images[0]) for one in images]
    images = [one[places] for one, places in zip(images, order, strict=True)]
    distances = [relative_error(np.asarray(one), np.asarray(images[0])) for one in images]
    labels = [one[places].tolist() for one, places in zip(_labels(result, rows, batch), order, strict=True)]
    return Restarts(attack, rows, np.stack(images), np.stack(distances), labels, total)


def _labels(result: Result, rows: list[Row], batch: int) -> list[np.ndarray]:
    """The labels of each restart, in the order in which its images are stored; -1 where it has none for one."""
    if batch == 1:
        return [np.array([row["label_found"]]) for row in rows]
    arrays = result.run.arrays(["trial", "slots", "labels_found"], trials=[row["trial"] for row in rows])
    of_trial = {
        int(trial): np.where(slots >= 0, labels[slots], -1)
        for trial, slots, labels in zip(arrays["trial"], arrays["slots"], arrays["labels_found"], strict=True)
    }
    return [of_trial[row["trial"]] for row in rows]


def fits(row: Row) -> bool:
    """Whether a restart explains the update but for `EXPLAINS` of its squared norm, or of 1 - cosine."""
    return row["relative_objective"] < EXPLAINS


def report(found: Restarts) -> dict[str, Any]:
    """What the restarts of one attack come to, as plain data."""
    labels = found.labels
    fitting = np.array([fits(row) for row in found.rows], bool)
    same = np.all(found.distances < AGREES, axis=1) & fitting
    slots = np.sum((found.distances < AGREES) & fitting[:, None], axis=0)
    best = found.rows[0] if found.rows else None
    return {
        "attack": found.attack,
        "restarts": found.total,
        "finite": len(found.rows),
        "fit": int(fitting.sum()),
        "agree": int(same.sum()),
        "agree_by_image": slots.tolist(),
        "labels": labels[0] if labels else None,
        "same_labels": sum(sorted(one) == sorted(labels[0]) for one in labels) if labels else 0,
        "trial": best and best["trial"],
        "objective": best and best["objective"],
        "relative_objective": best and _known(best["relative_objective"]),
        "psnr": best and _known(best["psnr"]),
        "missing": _missing(found, fitting, slots),
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _missing(found: Restarts, fitting: np.ndarray, slots: np.ndarray) -> list[str]:
    """What could not be recovered, in sentences."""
    if not found.rows:
        return ["every restart ended with an objective that is not a number"]
    if not fitting.any():
        left = found.rows[0]["relative_objective"]
        return [
            f"no restart explains the update: the best leaves {left:.2g} of it (squared); "
            "model, weights, normalisation or client steps may be others than the client's"
        ]
    if fitting.sum() == 1:
        return ["one restart alone explains the update: nothing agrees with it; use more --seeds"]
    alone = [slot for slot, count in enumerate(slots) if count < 2]
    if len(slots) == 1 and alone:
        return [f"{int(fitting.sum())} restarts explain the update, each with another image: it is not determined"]
    return [f"image {slot}: no two restarts that explain the update agree on it" for slot in alone]


def write_report(result: Result, folder: Path) -> tuple[list[dict[str, Any]], list[tuple]]:
    """`report.json` and `best.npz` in the run directory; returns what the first one holds, and what `draw` takes.

    `best.npz` has, of the best restarts of each attack, `images` [n, b, h, w, c] cut to [0, 1], `objective` [n],
    `labels` [n, b], `trial` [n] and `attack` [n].
    """
    told, kept = [], []
    for attack in dict.fromkeys(row["attack"] for row in result.rows):
        found = restarts(result, attack)
        told.append(report(found))
        kept += [
            (attack, row["trial"], row["objective"], one, np.clip(images, 0, 1), distance)
            for row, one, images, distance in zip(
                found.rows[:KEPT], found.labels[:KEPT], found.images[:KEPT], found.distances[:KEPT], strict=True
            )
        ]
    write_atomically(folder / "report.json", json_bytes({"attacks": told}))
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
    return told, kept


def draw(kept: list[tuple], truth: Float[np.ndarray, "b h w c"] | None, path: Path) -> None:
    """A line of pictures for each attack: the truth where it is known, the best restart, and the others."""
    from matplotlib.figure import Figure

    attacks = list(dict.fromkeys(one[0] for one in kept))
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
