"""The page's tables, as plain data: rates, rates by image, ways to fail, labels, batch slots."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxleak.results.intervals import wilson
from jaxleak.results.page.choose import Shown
from jaxleak.results.page.collect import Series, Source
from jaxleak.results.page.payload import class_names
from jaxleak.results.page.pictures import likenesses
from jaxleak.results.store.columns import Row
from jaxleak.results.tables import MEANINGS, NOTHING, rate_text
from jaxleak.results.verdict import STATUSES


class Cell(NamedTuple):
    """Text of a table's cell, what it is sorted by, and the rate with its interval that is drawn beside it."""

    text: str
    key: float | str = ""
    rate: tuple[float, float, float] | None = None
    show: str = ""  # "SERIES,IMAGE,SEED": the trial that a click shows


class Table(NamedTuple):
    name: str
    title: str
    note: str
    headings: list[tuple[str, bool]]  # text, and whether it is of numbers
    rows: list[list[Cell]]


def number(value: float | None, digits: int = 4) -> Cell:
    """A number, or nothing."""
    if value is None or not math.isfinite(value):
        return Cell(NOTHING, "")
    if value == round(value) or abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif abs(value) >= 1e-3:
        text = np.format_float_positional(value, digits - 1, unique=False, fractional=False, trim="-")
    else:
        text = f"{value:.{digits - 1}g}"
    return Cell(text, float(value))


def share(value: float | None) -> Cell:
    """A share, with two digits as rates have."""
    return Cell(NOTHING, "") if value is None else Cell(f"{value:.2f}", float(value))


def rate(successes: int, count: int, judged: bool = True) -> list[Cell]:
    """`k/n`, and the rate with its interval."""
    if not judged or not count:
        return [Cell(NOTHING, ""), Cell(NOTHING, "")]
    low, high = wilson(successes, count)
    part = successes / count
    text = rate_text({"success_rate": part, "ci95": (low, high)})
    return [Cell(f"{successes}/{count}", successes), Cell(text, part, (part, low, high))]


class Group(NamedTuple):
    """A series, with its group in the summary and its rows."""

    place: int
    series: Series
    source: Source
    summary: dict[str, Any]
    rows: list[Row]


def _groups(sources: Sequence[Source], series: Sequence[Series], image: bool) -> list[Group]:
    """The groups of every series: that over all images, or those of single images."""
    groups = []
    for place, one_series in enumerate(series):
        source = sources[one_series.source]
        rows = [row for row in source.rows if row["attack"] == one_series.attack]
        for group in source.summary["groups"]:
            if group["attack"] == one_series.attack and (group["image"] is not None) == image:
                of_image = rows if group["image"] is None else [row for row in rows if row["image"] == group["image"]]
                groups.append(Group(place, one_series, source, group, of_image))
    return groups


def _median(rows: Sequence[Row], column: str) -> float | None:
    values = [row[column] for row in rows if row[column] is not None and math.isfinite(row[column])]
    return float(np.median(values)) if values else None


def rates(sources: Sequence[Source], series: Sequence[Series], facets: Sequence[str]) -> Table:
    """Success, iterations, evaluations, seconds and labels of each series."""
    column, name = _likeness(sources)
    names = [facet for facet in facets if facet != "attack"]
    rows = []
    for entry in _groups(sources, series, image=False):
        group, engine = entry.summary, entry.source.summary["engine"]
        solved = [row for row in entry.rows if row["success"]]
        labels = group["label_accuracy"] if group["labels_known"] else None
        restarts = [
            group[choice]["success_rate"] if group["truth_known"] else None for choice in ("selected", "oracle")
        ]
        rows.append(
            [
                Cell(entry.series.attack, entry.series.attack),
                *rate(group["successes"], group["trials"], group["truth_known"]),
                number(group["iterations_median"]),
                number(group["evaluations_median"]),
                number(_median(solved, column)),
                share(labels),
                *(share(value) for value in restarts),
                number(_median(entry.rows, "seconds"), 3),
                number(engine["evaluations_per_second"], 4),
                *(Cell(entry.series.values[name], entry.series.values[name]) for name in names),
            ]
        )
    headings = ["median iterations", "median evaluations", f"median {name}", "label right"]
    headings += ["selected", "oracle", "seconds per trial", "evaluations / s (run)"]
    note = (
        "Rates are over all trials, with 95 % Wilson intervals; failed trials stay in the denominator. Iterations and "
        "evaluations are those to the objective's threshold; they and the likeness are medians over solved trials. "
        "Selected: share of images whose restart with the lowest objective solved; oracle: with the lowest error. "
        "Seconds are wall-clock from a trial's start to its end, with other trials running beside it."
    )
    return Table(
        "rates",
        "Success by attack and setting",
        note,
        [
            *(("attack", False), ("solved", True), ("rate [95 %]", True)),
            *((text, True) for text in headings),
            *((name, False) for name in names),
        ],
        rows,
    )


def by_image(sources: Sequence[Source], series: Sequence[Series], shown: Shown) -> Table:
    """Success, iterations, evaluations and likeness of each series and image."""
    rows = []
    column, name = _likeness(sources)
    for entry in _groups(sources, series, image=True):
        group = entry.summary
        judged, selected, oracle = group["truth_known"], group["selected"], group["oracle"]
        place = _image(shown, entry)
        best = oracle and oracle.get(column)
        rows.append(
            [
                Cell(str(group["image"]), group["image"], show=f"{entry.place},{place},"),
                Cell(entry.series.label, entry.series.label),
                *rate(group["successes"], group["trials"], judged),
                number(group["iterations_median"]),
                number(group["evaluations_median"]),
                number(_median(entry.rows, column)),
                number(best),
                _yes(selected, judged),
            ]
        )
    headings = ["median iterations", "median evaluations", f"median {name}", f"best {name}", "selected solved"]
    return Table(
        "by-image",
        "Success by image",
        "Medians of likeness are over all trials of the image. Selected: the restart with the lowest objective. "
        "A click on an image shows it above.",
        [
            ("image", True),
            ("series", False),
            ("solved", True),
            ("rate [95 %]", True),
            *((text, True) for text in headings),
        ],
        rows,
    )


def _likeness(sources: Sequence[Source]) -> tuple[str, str]:
    """Column and heading of the first measure of likeness."""
    column, name, unit = likenesses(sources)[0]
    return column, f"{name} [{unit.strip()}]" if unit else name


def _image(shown: Shown, entry: Group) -> int:
    return shown.image_of[entry.series.source][entry.summary["image"]]


def _yes(choice: dict[str, Any] | None, judged: bool) -> Cell:
    if choice is None or not judged:
        return Cell(NOTHING, "")
    return Cell("yes" if choice["success"] else "no", float(choice["success"]))


def failures(sources: Sequence[Source], series: Sequence[Series], shown: Shown) -> Table:
    """Number of trials with each status; a click on a count shows an example."""
    groups = _groups(sources, series, image=False)
    there = {status for entry in groups for status, count in entry.summary["status"].items() if count}
    statuses = [status for status in STATUSES if status in there]
    example = {
        (place, row["status"]): f"{place},{shown.image_of[series[place].source][row['image']]},{row['seed']}"
        for place, row in shown.examples
    }
    rows = [
        [
            Cell(entry.series.label, entry.series.label),
            *(
                Cell(str(count), count, show=example.get((entry.place, status), "") if count else "")
                for status in statuses
                for count in [entry.summary["status"].get(status, 0)]
            ),
            Cell(str(len(entry.rows)), len(entry.rows)),
        ]
        for entry in groups
    ]
    meanings = "".join(f"{name.capitalize()}: {MEANINGS[name]}. " for name in statuses if name in MEANINGS)
    return Table(
        "failures",
        "How trials ended",
        f"Converged is solved; all others failed. {meanings}A click on a count shows an example above.",
        [("series", False), *((status, True) for status in statuses), ("trials", True)],
        rows,
    )


def labels(sources: Sequence[Source], series: Sequence[Series]) -> Table:
    """True label, labels found and how often they were right, for each series and image."""
    rows = []
    for entry in _groups(sources, series, image=True):
        if not entry.summary["labels_known"]:
            continue
        names = class_names(entry.source)
        count, right = (sum(row[column] for row in entry.rows) for column in ("dummies", "labels_right"))
        counts = Counter(row["label_found"] for row in entry.rows)
        listed = ", ".join(f"{_class(names, label)} ({n})" for label, n in counts.most_common(4))
        more = ", …" if len(counts) > 4 else ""
        label = entry.rows[0]["label"]
        rows.append(
            [
                Cell(str(entry.summary["image"]), entry.summary["image"]),
                Cell(_class(names, label) if entry.source.batch == 1 else f"batch of {entry.source.batch}", label),
                Cell(entry.series.label, entry.series.label),
                *rate(right, count),
                Cell(listed + more, listed),
            ]
        )
    return Table(
        "labels",
        "Labels",
        "How often the label that the attack used was the true one; of a batch, over all dummies. Found: of a "
        "batch, that of the first image.",
        [
            ("image", True),
            ("true", False),
            ("series", False),
            ("right", True),
            ("rate [95 %]", True),
            ("found (trials)", False),
        ],
        rows,
    )


def _class(names: dict[int, str], label: int) -> str:
    name = names.get(label)
    return str(label) if name is None or name == str(label) else f"{label} {name}"


def slots(sources: Sequence[Source], series: Sequence[Series], shown: Shown) -> Table:
    """Images of the best trial of each batch: the dummy matched to each, its label and its error."""
    rows = []
    for (place, image), ranks in shown.ranks.items():
        one_series = series[place]
        source = sources[one_series.source]
        if source.batch == 1:
            continue
        arrays = source.run.arrays(["slots", "labels_found", "errors"], [ranks["best"]])
        index = next(index for index, at in shown.image_of[one_series.source].items() if at == image)
        names, true = class_names(source), _batch_labels(source, index)
        limit = source.run.settings["criteria"]["relative_error"]
        matched = 0
        for position, slot in enumerate(arrays["slots"][0]):
            error = float(arrays["errors"][0][matched]) if slot >= 0 else None
            matched += slot >= 0
            label_found = int(arrays["labels_found"][0][slot]) if slot >= 0 else None
            rows.append(
                [
                    Cell(str(index), index, show=f"{place},{image},"),
                    Cell(one_series.label, one_series.label),
                    Cell(str(position), position),
                    Cell(str(slot) if slot >= 0 else NOTHING, int(slot)),
                    Cell(NOTHING if true is None else _class(names, true[position])),
                    Cell(NOTHING if label_found is None else _class(names, label_found)),
                    number(error, 3),
                    Cell("yes" if error is not None and error < limit else "no"),
                ]
            )
    headings = [("first image", True), ("series", False), ("place", True), ("dummy", True), ("label", False)]
    headings += [("label found", False), ("relative error", True), ("recovered", False)]
    note = "Of the best trial by the objective. Dummies: the optimised images, matched so that the MSE is smallest."
    return Table("slots", "Batches, image by image", note, headings, rows)


def _batch_labels(source: Source, index: int) -> list[int] | None:
    truth = source.truth or {}
    if "labels" not in truth:
        return None
    return truth["labels"][np.flatnonzero(truth["image"] == index)[0]].tolist()
