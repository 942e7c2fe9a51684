"""Success for each image, and shares of trials below thresholds of the MSE."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxleak.results.figures.style import (
    COLUMN_INCHES,
    PAGE_INCHES,
    Summary,
    attack_looks,
    figure_title,
    groups_by_task,
    literal_text,
    make_panels,
    rate_text,
    save_figure,
    shortened,
    style_context,
    task_key,
)
from jaxleak.results.intervals import wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Of a legend: what the vertical axis and its labels take, a mark with its gaps, and a letter on average.
MARGIN_INCHES, HANDLE_INCHES, LETTER_INCHES = 0.5, 0.3, 0.049


def success_by_image(summary: Summary, path: str | Path | None = None) -> "Figure":
    """Success rate of each image and, right of the line, of all images, with 95 % Wilson intervals.

    Args:
        summary: as `summary.summarise` makes it.
        path: of the PNG.

    Raises:
        InputError: no groups, or the PNG cannot be written.
    """
    tasks, looks = groups_by_task(summary), attack_looks(summary)
    marks = max(sum(g["image"] is not None and task_key(g)[1:] == task for g in summary["groups"]) for task in tasks)
    with style_context():
        width = COLUMN_INCHES if marks <= 20 else PAGE_INCHES[0]
        figure, axes = make_panels(len(tasks), width, 2.1 * len(tasks))
        for panel, (task, overall) in zip(axes.flat, tasks.items(), strict=True):
            _draw_rates(panel, summary, overall, looks)
            _finish_rates(panel, figure_title(*task, summary), "success rate (95 % interval)")
        return save_figure(figure, path)


def _draw_rates(
    axes: "Axes", summary: Summary, overall: list[dict[str, Any]], looks: dict[str, tuple[str, str]]
) -> None:
    task = task_key(overall[0])[1:]
    of_task = [group for group in summary["groups"] if group["image"] is not None and task_key(group)[1:] == task]
    images = sorted({group["image"] for group in of_task})
    for number, total in enumerate(overall):
        colour, marker = looks[total["attack"]]
        of_attack = [group for group in of_task if group["attack"] == total["attack"]]
        x = [images.index(group["image"]) + _dodge(number, len(overall)) for group in of_attack]
        label = f"{literal_text(total['attack'])}, all: {rate_text(total['success_rate'], total['ci95'])}"
        _draw_intervals(axes, x, of_attack, colour, marker, label)
        _draw_intervals(axes, [len(images) + _dodge(number, len(overall))], [total], colour, marker)
    axes.axvline(len(images) - 0.5, color="black", lw=0.6)
    ticks = [*map(str, images), "all"]
    axes.set_xticks(range(len(ticks)), ticks)
    crowded = len(ticks) * max(map(len, ticks)) > 14 * axes.figure.get_figwidth()  # pyright: ignore[reportAttributeAccessIssue]
    axes.tick_params(axis="x", rotation=90 if crowded else 0)
    axes.set_xlim(-0.6, len(images) + 0.6)
    axes.set_xlabel("image")


def _dodge(number: int, count: int) -> float:
    """Horizontal shift of a group's marks, so that intervals stand side by side."""
    return (number - (count - 1) / 2) * min(0.25, 0.7 / count)


def _draw_intervals(
    axes: "Axes",
    x: Sequence[float],
    groups: list[dict[str, Any]],
    colour: str,
    marker: str,
    label: str | None = None,
    *,
    rate: Callable[[dict[str, Any]], float] = lambda group: group["success_rate"],
    interval: Callable[[dict[str, Any]], Sequence[float]] = lambda group: group["ci95"],
    line: str = "none",
) -> None:
    rates = np.array([rate(group) for group in groups])
    bounds = np.array([interval(group) for group in groups]).reshape(-1, 2)
    reach = np.clip([rates - bounds[:, 0], bounds[:, 1] - rates], 0, None)  # rounding puts 0 and 1 outside
    looks: dict[str, Any] = {"ms": 3, "lw": 0.9, "elinewidth": 0.8, "capsize": 1.5, "capthick": 0.6}
    axes.errorbar(x, rates, reach, color=colour, marker=marker, ls=line, label=label, **looks)


def _finish_rates(axes: "Axes", title: str, quantity: str) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylabel(quantity)
    axes.set_title(title, loc="left", pad=4 + 9 * _legend_above(axes))


def _legend_above(axes: "Axes") -> int:
    """Draw the legend between panel and title, as wide as the figure; returns its number of lines."""
    handles, labels = axes.get_legend_handles_labels()
    panels = axes.get_subplotspec()
    across = 1 if panels is None else panels.get_gridspec().ncols
    room = axes.figure.get_figwidth() / across - MARGIN_INCHES  # pyright: ignore[reportAttributeAccessIssue]
    labels = [shortened(label, int((room - HANDLE_INCHES) / LETTER_INCHES)) for label in labels]
    entry = HANDLE_INCHES + LETTER_INCHES * max(map(len, labels))
    columns = max(1, min(4, int(room / entry)))
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "borderaxespad": 0.1}
    axes.legend(handles, labels, ncols=columns, columnspacing=1.2, handletextpad=0.4, **place)
    return math.ceil(len(handles) / columns)


def mse_shares(summary: Summary, path: str | Path | None = None) -> "Figure":
    """Share of all trials whose MSE ended below each threshold, with 95 % Wilson intervals.

    Source: the fidelity figure of Zhao, Mopuri & Bilen 2020 (iDLG). Differs: with intervals.

    Args:
        summary: as `summary.summarise` makes it.
        path: of the PNG.

    Raises:
        InputError: no groups, or the PNG cannot be written.
    """
    tasks, looks = groups_by_task(summary), attack_looks(summary)
    with style_context():
        across = min(len(tasks), 2)
        height = 2.0 * math.ceil(len(tasks) / across)
        width = COLUMN_INCHES if across == 1 else PAGE_INCHES[0]
        figure, axes = make_panels(len(tasks), width, height, columns=across)
        for panel, (task, overall) in zip(axes.flat, tasks.items(), strict=False):
            _draw_shares(panel, overall, looks)
            _finish_rates(panel, figure_title(*task, summary), "share of trials (95 % interval)")
        for panel in axes.flat[len(tasks) :]:
            panel.set_visible(False)
        return save_figure(figure, path)


def _draw_shares(axes: "Axes", overall: list[dict[str, Any]], looks: dict[str, tuple[str, str]]) -> None:
    thresholds = sorted({float(t) for group in overall for t in group["mse_below"]}, reverse=True)
    for number, group in enumerate(overall):
        colour, marker = looks[group["attack"]]
        n, shares = group["trials"], {float(t): share for t, share in group["mse_below"].items()}
        points = [{"share": shares[t]} for t in thresholds if t in shares]
        x = [i + _dodge(number, len(overall)) / 2 for i, t in enumerate(thresholds) if t in shares]
        _draw_intervals(
            axes,
            x,
            points,
            colour,
            marker,
            f"{literal_text(group['attack'])} (n = {n})",
            rate=lambda point: point["share"],
            interval=lambda point, n=n: wilson(round(point["share"] * n), n),
            line="-",
        )
    axes.set_xticks(range(len(thresholds)), [f"{t:g}" for t in thresholds])
    axes.set_xlim(-0.4, len(thresholds) - 0.6)
    axes.set_xlabel("MSE below")
