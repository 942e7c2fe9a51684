"""Chooses a page's trials: all for the tables, most for the curves, some for pictures. The page lists omissions."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxleak.results.figures import choose_trials
from jaxleak.results.page.collect import Series, Source
from jaxleak.results.page.pictures import digest, frame_bytes
from jaxleak.results.store.columns import Row

MOST_ROWS = 20_000  # of a page, over all runs
MOST_CURVES = 4_000  # trials
MOST_PICTURE_BYTES = 7_000_000  # of all sprites, before they are compressed

Trial = tuple[int, int]  # source, trial id


class Image(NamedTuple):
    """An attacked image, or batch of them; two runs that attacked the same share it."""

    dataset: str
    index: int
    digest: str  # of its pixels


@dataclass
class Shown:
    """The trials and images that a page shows.

    Attributes:
        images: every image that was attacked.
        image_of: where in `images` each row's is, by source and data set index.
        rows: of each source.
        curves: trials with curves.
        pictures: trials with pictures, the most wanted first.
        ranks: best, median and worst trial of each series (by its place) and image.
        examples: of each status but success, trials with it, by series.
        left_out: sentences.
    """

    images: list[Image]
    image_of: list[dict[int, int]]
    rows: list[list[Row]]
    curves: set[Trial] = field(default_factory=set)
    pictures: list[Trial] = field(default_factory=list)
    ranks: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)
    examples: list[tuple[int, Row]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def choose(sources: Sequence[Source], series: Sequence[Series], trials: int) -> Shown:
    """Choose rows, curves and pictures.

    Args:
        sources: the runs.
        series: their attacks.
        trials: how many trials of each series and image have pictures beside the best, the median, the worst and the
            examples of each way to fail.
    """
    images, image_of = _images(sources)
    shown = Shown(images, image_of, _fair(sources))
    total, kept = sum(len(source.rows) for source in sources), sum(map(len, shown.rows))
    if kept < total:
        shown.left_out.append(
            f"Choices, curves and the CSV hold {kept:,} of {total:,} trials; rates and tables are of all. "
            "Every row lies in the runs' rows-*.parquet."
        )
    waves = _waves(sources, series, shown, trials)
    _choose_curves(shown, waves)
    _choose_pictures(sources, shown, waves)
    return shown


def _images(sources: Sequence[Source]) -> tuple[list[Image], list[dict[int, int]]]:
    images: dict[Image, int] = {}
    places = []
    for source in sources:
        dataset = source.run.settings["victim"]["dataset"]
        digests = {}
        if source.truth is not None:
            indices, pixels = source.truth["image"], source.truth["pixels"]
            digests = {int(index): digest(picture) for index, picture in zip(indices, pixels, strict=True)}
        attacked = list(digests) or list(dict.fromkeys(row["image"] for row in source.rows))
        keys = {index: Image(dataset, index, digests.get(index, "")) for index in attacked}
        places.append({index: images.setdefault(key, len(images)) for index, key in keys.items()})
    return list(images), places


def _fair(sources: Sequence[Source]) -> list[list[Row]]:
    """The rows of each source; where there are too many, as many of each, evenly spread over its trials."""
    if sum(len(source.rows) for source in sources) <= MOST_ROWS:
        return [source.rows for source in sources]
    share = max(1, MOST_ROWS // len(sources))
    return [spread(source.rows, share) for source in sources]


def spread(items: Sequence, most: int) -> list:
    """At most so many of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, most)]


def _waves(
    sources: Sequence[Source], series: Sequence[Series], shown: Shown, trials: int
) -> list[list[tuple[Trial, Row]]]:
    """The trials to show, the most wanted first: the best of each series and image, then the median, and so on.

    Within a wave the first image of every series comes before the second of any.
    """
    waves: dict[tuple[int, str, int], list[tuple[Trial, Row]]] = {}
    for place, one_series in enumerate(series):
        rows = [row for row in shown.rows[one_series.source] if row["attack"] == one_series.attack]
        if not rows:
            continue
        known = {"image": np.array(list(shown.image_of[one_series.source]))}
        for order, block in enumerate(choose_trials(rows, known, list(dict.fromkeys(row["image"] for row in rows)))):
            ranked = dict(block.lines)
            first = next(iter(ranked.values()))
            chosen = {
                "best": first,
                "median": ranked.get("median", first),
                "worst": ranked.get("worst", first),
            }
            image = shown.image_of[one_series.source][block.image]
            shown.ranks[place, image] = {rank: row["trial"] for rank, row in chosen.items()}
            for number, (rank, row) in enumerate(chosen.items()):
                waves.setdefault((number, rank, order), []).append(((one_series.source, row["trial"]), row))
            more = [row for row in rows if row["image"] == block.image][:trials]
            for number, row in enumerate(more):
                waves.setdefault((4 + number, "more", order), []).append(((one_series.source, row["trial"]), row))
        for status in dict.fromkeys(row["status"] for row in rows if not row["success"]):
            example = next(row for row in rows if row["status"] == status)
            shown.examples.append((place, example))
            waves.setdefault((3, status, 0), []).append(((one_series.source, example["trial"]), example))
    return [waves[key] for key in sorted(waves)]


def _choose_curves(shown: Shown, waves: Iterable[list[tuple[Trial, Row]]]) -> None:
    every = [(number, row["trial"]) for number, rows in enumerate(shown.rows) for row in rows]
    wanted = list(dict.fromkeys(trial for wave in waves for trial, _ in wave))[:MOST_CURVES]
    shown.curves = set(wanted) | set(spread(every, max(0, MOST_CURVES - len(wanted))))
    if len(shown.curves) < len(every):
        shown.left_out.append(
            f"Curves are those of {len(shown.curves):,} of {len(every):,} trials, and so is their spread."
        )


def _choose_pictures(sources: Sequence[Source], shown: Shown, waves: list[list[tuple[Trial, Row]]]) -> None:
    """Choose pictures of as many trials as the limit allows."""
    spent, refused, chosen = 0, Counter(), {}
    for wave in waves:
        for (number, trial), row in wave:
            if (number, trial) in chosen or (number, trial) not in shown.curves:
                continue
            size = frame_bytes(sources[number]) * (1 + len(frames_before(sources[number], row)))
            if spent + size > MOST_PICTURE_BYTES and chosen:
                refused[number, trial] += 1
                continue
            spent += size
            chosen[number, trial] = None
    shown.pictures = list(chosen)
    if refused:
        shown.left_out.append(
            f"Pictures of {len(refused):,} trials that would be shown are left out, to keep the page small: "
            f"{len(chosen):,} have some. A page of fewer runs shows more."
        )
    unrecorded = sum(not sources[number].recorded(row) for wave in waves for (number, _), row in wave)
    if unrecorded and any(source.run.settings.get("snapshot_seeds") is not None for source in sources):
        shown.left_out.append(
            "Candidates were kept over the iterations for the first seeds only (--snapshot-seeds); of the others the "
            "last one is shown."
        )


def frames_before(source: Source, row: Row) -> list[int]:
    """Places of the snapshots that were taken before a trial ended."""
    if not source.recorded(row):
        return []
    return [place for place, iteration in enumerate(source.snapshots) if iteration < row["iterations"]]
