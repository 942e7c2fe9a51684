"""The data of the page's script: rows, curves and pictures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxleak.results.figures.style import ATTACK_COLOURS, FAILED, SOLVED
from jaxleak.results.page import curves, pictures
from jaxleak.results.page.choose import Shown, Trial, frames_before
from jaxleak.results.page.collect import Series, Source
from jaxleak.results.store.columns import COLUMNS, Row
from jaxleak.results.verdict import Criteria

# The first are those of the figures; yellow, which is hard to see on white, comes last.
COLOURS = (*ATTACK_COLOURS[:5], SOLVED, FAILED, *ATTACK_COLOURS[5:])
MOST_SIMILAR = 4_000  # pictures whose SSIM is computed: about 800 a second on two cores


def payload(sources: Sequence[Source], series: Sequence[Series], facets: Sequence[str], shown: Shown) -> dict[str, Any]:
    """The whole payload; `shown.left_out` gains sentences about what is left out here."""
    first = np.cumsum([0, *map(len, shown.rows)])  # rows are numbered over all sources
    position = {
        (number, row["trial"]): int(first[number]) + place
        for number, rows in enumerate(shown.rows)
        for place, row in enumerate(rows)
    }
    places = {(one_series.source, one_series.attack): place for place, one_series in enumerate(series)}
    traced, pictured = {}, {}
    similar = _similar(sources, shown)
    for number, source in enumerate(sources):
        rows = {row["trial"]: row for row in shown.rows[number]}
        traced |= _curves(source, [row for trial, row in rows.items() if (number, trial) in shown.curves], number)
        wanted = [trial for at, trial in shown.pictures if at == number]
        pictured |= _pictures(source, rows, number, wanted, similar)
    return {
        "colours": COLOURS,
        "wrong": pictures.wrong(sources),
        "series": [_series(sources[one_series.source], one_series, facets) for one_series in series],
        "facets": [
            {"name": name, "values": list(dict.fromkeys(one_series.values[name] for one_series in series))}
            for name in facets
        ],
        "images": _truths(sources, shown),
        "runs": [
            {
                "name": source.name,
                "columns": _columns(rows),
                "rows": len(rows),
                "series": [places[number, row["attack"]] for row in rows],
                "images": [shown.image_of[number][row["image"]] for row in rows],
            }
            for number, (source, rows) in enumerate(zip(sources, shown.rows, strict=True))
        ],
        "curves": {position[trial]: pair for trial, pair in traced.items()},
        "pictures": {position[trial]: picture for trial, picture in pictured.items()},
        "ranks": {
            f"{place},{image}": {rank: position[series[place].source, trial] for rank, trial in trials.items()}
            for (place, image), trials in shown.ranks.items()
        },
        "examples": [position[series[place].source, row["trial"]] for place, row in shown.examples],
    }


def _series(source: Source, one_series: Series, facets: Sequence[str]) -> dict[str, Any]:
    criteria = Criteria(**source.run.settings["criteria"])
    return {
        "label": one_series.label,
        "values": [one_series.values[name] for name in facets],
        "threshold": criteria.threshold(one_series.values["objective"]),
        "objective": one_series.values["objective"],
        "likeness": pictures.LIKENESS[source.run.modality],
    }


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows by column; a column of one value is just that."""
    columns = {}
    for name, *_ in COLUMNS:
        values = [_cell(row[name]) for row in rows]
        same = len(values) > 1 and all(value == values[0] and type(value) is type(values[0]) for value in values)
        columns[name] = {"all": values[0]} if same else values
    return columns


def _cell(value: Any) -> Any:
    """A value in JSON's types; a number that is not finite as JavaScript's name of it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _truths(sources: Sequence[Source], shown: Shown) -> list[dict[str, Any]]:
    several = len({image.dataset for image in shown.images}) > 1
    noun = "text" if all(source.run.modality == "text" for source in sources) else "image"
    truths: list[dict[str, Any]] = [
        {"label": f"{image.dataset.rstrip('/').split('/')[-1]} {image.index}" if several else f"{noun} {image.index}"}
        for image in shown.images
    ]
    for source, places in zip(sources, shown.image_of, strict=True):
        if source.truth is None:
            continue
        names = class_names(source)
        for place, index in enumerate(source.truth["image"]):
            entry = truths[places[int(index)]]
            pixels, label = source.truth["pixels"][place], int(source.truth["label"][place])
            if source.run.modality == "text":
                entry["texts"] = pictures.written(pixels[None], source.truth["class_names"])[0]
                continue
            if "truth" not in entry and np.isfinite(pixels).all():
                entry["truth"] = pictures.sprite(pixels[None])
            if label >= 0 and source.batch == 1:
                entry["name"] = names.get(label, f"class {label}")
            height, width, _ = pixels.shape
            entry["size"] = [width, height]
    return truths


def class_names(source: Source) -> dict[int, str]:
    """Names of the classes, where the run has kept them."""
    names = (source.truth or {}).get("class_names")
    return {} if names is None else {label: str(name) for label, name in enumerate(names)}


def _curves(source: Source, rows: Sequence[Row], number: int) -> dict[Trial, list[str]]:
    if not rows:
        return {}
    arrays = source.run.arrays(["trial", "objective_trace", "mse_trace"], [row["trial"] for row in rows])
    places = {int(trial): place for place, trial in enumerate(arrays["trial"])}
    return {
        (number, row["trial"]): [
            curves.encoded(arrays[name][places[row["trial"]]], row["iterations"])
            for name in ("objective_trace", "mse_trace")
        ]
        for row in rows
    }


def _similar(sources: Sequence[Source], shown: Shown) -> set[Trial]:
    """Trials whose PSNR and SSIM are computed over the snapshots: those with pictures, and others as time allows."""
    rows = {(n, row["trial"]): row for n, source_rows in enumerate(shown.rows) for row in source_rows}
    pictured = set(shown.pictures)
    others = [trial for trial in rows if trial in shown.curves and trial not in pictured]
    chosen, spent = set(), 0
    for number, trial in [*shown.pictures, *others]:
        source, row = sources[number], rows[number, trial]
        if source.truth is None:
            continue
        spent += source.batch * (1 + len(frames_before(source, row)))
        if spent > MOST_SIMILAR:
            names = " and ".join(name for _, name, _ in pictures.likenesses(sources))
            shown.left_out.append(
                f"{names} over the iterations are those of {len(chosen):,} trials, as are their spreads."
            )
            break
        chosen.add((number, trial))
    return chosen


def _pictures(
    source: Source, rows: dict[int, Row], number: int, wanted: Sequence[int], similar: set[Trial]
) -> dict[Trial, dict[str, Any]]:
    """Of each trial its frames.

    `at`: their iterations, the last that of the trial's end; what `pictures.LIKENESS` names; `src`: the sprite, or
    `texts`.
    """
    read = sorted({*wanted, *(trial for at, trial in similar if at == number)})
    if not read:
        return {}
    keys = ["trial", "candidate", *(["snapshots"] if source.snapshots else [])]
    arrays = source.run.arrays(keys, read)
    places = {int(trial): place for place, trial in enumerate(arrays["trial"])}
    entries: dict[Trial, dict[str, Any]] = {}
    text = source.run.modality == "text"
    stack, truths = [], []
    for trial in read:
        row, place = rows[trial], places[trial]
        before = frames_before(source, row)
        frames = arrays["candidate"][place][None].astype(np.float64)
        if before:
            frames = np.concatenate([arrays["snapshots"][place, before] / (1 if text else 255.0), frames])
        entry: dict[str, Any] = {"at": [*(source.snapshots[i] for i in before), row["iterations"]]}
        if trial in wanted and text:
            entry["texts"] = pictures.written(frames, [*class_names(source).values()])
        elif trial in wanted:
            entry["src"] = pictures.sprite(frames)
        if (number, trial) in similar:
            stack.append(frames)
            truths.append(np.broadcast_to(_truth(source, row), frames.shape))
        entries[number, trial] = entry
    if stack:
        pair = np.concatenate(stack), np.concatenate(truths)
        like = pictures.likeness_of_texts(*pair) if text else pictures.likeness(*pair, source.batch)
        first = 0
        for trial in read:
            if (number, trial) in similar:
                after = first + len(entries[number, trial]["at"])
                for name, values in like.items():
                    entries[number, trial][name] = [_cell(round(float(value), 4)) for value in values[first:after]]
                first = after
    return entries


def _truth(source: Source, row: Row) -> np.ndarray:
    assert source.truth is not None
    return source.truth["pixels"][np.flatnonzero(source.truth["image"] == row["image"])[0]]
