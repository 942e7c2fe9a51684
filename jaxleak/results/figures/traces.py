"""Objective and image error over the iterations."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxleak.errors import InputError
from jaxleak.results.figures.style import (
    COLUMN_INCHES,
    FAILED,
    PAGE_INCHES,
    SOLVED,
    Key,
    evenly_spread,
    make_panels,
    save_figure,
    style_context,
    task_key,
    task_names,
)
from jaxleak.results.store.columns import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FAILED_LINES = 30  # single failed trials drawn at most
RISES = 10.0  # times the highest start, up to which failed trials are shown whole


def hold_last(traces: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "n t"]:
    """Traces whose gaps and ends are filled with the last finite value before them.

    Example:
        >>> import numpy as np
        >>> import jaxleak
        >>> jaxleak.hold_last(np.array([[3.0, np.nan, 1.0, np.nan]]))
        array([[3., 3., 1., 1.]])
    """
    finite = np.isfinite(traces)
    last = np.maximum.accumulate(np.where(finite, np.arange(traces.shape[1]), -1), axis=1)
    held = np.take_along_axis(traces, np.maximum(last, 0), axis=1)
    return np.where(last < 0, np.nan, held)


def trace_quantiles(
    traces: Float[np.ndarray, "n t"], levels: Sequence[float] = (0.1, 0.5, 0.9)
) -> Float[np.ndarray, "q t"]:
    """Quantiles over trials at each iteration; a trial that has ended counts with its last finite value.

    Without that the curves would describe, late on, only the slow trials.
    """
    held = hold_last(np.asarray(traces, np.float64))
    known = np.isfinite(held).any(axis=0)
    quantiles = np.full((len(levels), traces.shape[1]), np.nan)
    if len(traces) and known.any():
        quantiles[:, known] = np.nanquantile(held[:, known], levels, axis=0)
    return quantiles


def convergence(
    rows: Sequence[Row],
    arrays: dict[str, np.ndarray],
    path: str | Path | None = None,
    *,
    threshold: float = 1e-4,
    error: str = "MSE",
) -> "Figure":
    """Objective and MSE against iterations: the spread over the solved trials, and the failed ones singly.

    The line is the median over the solved trials, the band holds the middle 80 % of them; a solved trial that
    has ended counts with its last value. At most `FAILED_LINES` failed trials are drawn, thin, each to where it
    ended. Those that rise far above all starts leave the picture, which is told.

    Args:
        rows: result rows.
        arrays: `trial` [n], `objective_trace` and `mse_trace` [n, t], NaN after a trial's end.
        path: of the PNG.
        threshold: the objective's, marked by a line.
        error: what `mse_trace` is called.

    Raises:
        InputError: no rows, or the PNG cannot be written.
    """
    if not rows:
        raise InputError("`rows` is empty: no trial has finished. Draw when some have.")
    place = {int(trial): i for i, trial in enumerate(arrays["trial"])}
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(task_key(row), []).append(row)
    names, across = task_names(groups), min(len(groups), 3)
    down = math.ceil(len(groups) / across)
    with style_context():
        width = COLUMN_INCHES if across == 1 else PAGE_INCHES[0]
        figure, axes = make_panels(2 * down * across, width, 0.5 + 2.7 * down, columns=across, share_x=True)
        for number, (key, members) in enumerate(groups.items()):
            block, column = divmod(number, across)
            objective, mse = axes[2 * block, column], axes[2 * block + 1, column]
            order = [place[row["trial"]] for row in sorted(members, key=lambda row: row["trial"])]
            solved = np.array([row["success"] for row in sorted(members, key=lambda row: row["trial"])], bool)
            _draw_traces(objective, arrays["objective_trace"][order], solved)
            _draw_traces(mse, arrays["mse_trace"][order], solved)
            objective.axhline(threshold, color="black", lw=0.7, ls=(0, (4, 2)), label="threshold")
            objective.set_title(f"{names[key]}: {solved.sum()} of {len(members)} solved")
        _share_limits(axes[0::2], threshold)
        _share_limits(axes[1::2])
        for column in range(len(groups) - across * (down - 1), across):
            axes[-2, column].set_visible(False)
            axes[-1, column].set_visible(False)
            axes[-3, column].tick_params(labelbottom=True)
        for row, panels in enumerate(axes):
            panels[0].set_ylabel(error if row % 2 else "objective")
        figure.supxlabel("iteration (trials that ended keep their last value)", size=7)
        most = max(sum(not row["success"] for row in members) for members in groups.values())
        failed = "failed, one line each" if most <= FAILED_LINES else f"failed, {FAILED_LINES} of them at most"
        there = {label for panel in axes.flat for label in panel.get_legend_handles_labels()[1]}
        _legend_of_traces(figure, there, failed, np.format_float_scientific(threshold, trim="-", exp_digits=1))
        return save_figure(figure, path)


def _draw_traces(axes: "Axes", traces: np.ndarray, solved: np.ndarray) -> None:
    traces = _positive(traces)
    end = 1 + max((int(i) for i in np.flatnonzero(np.isfinite(traces).any(axis=0))), default=0)
    traces, iterations = traces[:, :end], np.arange(end)
    failed = traces[~solved]
    for trace in failed[evenly_spread(len(failed), FAILED_LINES)] if len(failed) else ():
        axes.plot(iterations, trace, color=FAILED, lw=0.5, alpha=0.4, label="failed")
    if solved.any():
        low, median, high = trace_quantiles(traces[solved])
        axes.fill_between(iterations, low, high, color=SOLVED, alpha=0.25, lw=0, label="spread")
        axes.plot(iterations, median, color=SOLVED, lw=1.4, label="median")
    axes.set_yscale("log")


def _positive(traces: np.ndarray) -> np.ndarray:
    """Traces for a logarithmic axis: what is not finite is NaN, and zero the smallest positive value."""
    traces = np.where(np.isfinite(traces), np.asarray(traces, np.float64), np.nan)
    above = traces[traces > 0]
    return np.where(traces <= 0, above.min() if len(above) else 1.0, traces)


def _share_limits(axes: np.ndarray, *also: float) -> None:
    """One vertical range for all panels of a quantity: from the lowest value to the highest start or spread."""
    lines = [line for panel in axes.flat for line in panel.lines if line.get_label() in ("median", "failed")]
    values = [np.asarray(line.get_ydata(), float) for line in lines]
    values = [value[np.isfinite(value)] for value in values]
    bands = [path.vertices[:, 1] for panel in axes.flat for band in panel.collections for path in band.get_paths()]
    lows = [*also, *(v.min() for v in (*values, *bands) if len(v))]
    highs = [*also, *(v[0] for v in values if len(v)), *(v.max() for v in bands if len(v))]
    if not lows:
        return
    top = max(highs)
    # What rises somewhat is shown whole; a trial that diverges would flatten the others.
    top = max([top, *(v.max() for v in values if len(v) and v.max() < RISES * top)]) * 2
    for panel in axes.flat:
        panel.set_autoscaley_on(False)  # it would first look for limits, and warn where all values are equal
        panel.set_ylim(min(lows) / 2, top)
        over = sum(np.nanmax(np.append(np.asarray(line.get_ydata(), float), 0)) > top for line in panel.lines)
        if over:
            said = f"{over} failed beyond the top" if over > 1 else "1 failed beyond the top"
            place = {"transform": panel.transAxes, "ha": "right", "va": "top", "size": 6}
            panel.text(0.99, 0.985, f"{said} ↑", color=FAILED, bbox={"fc": "white", "ec": "none", "pad": 0.6}, **place)


def _legend_of_traces(figure: "Figure", there: set[str], failed: str, threshold: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {
        "median": Line2D([], [], color=SOLVED, lw=1.4, label="solved: median"),
        "spread": Patch(color=SOLVED, alpha=0.25, lw=0, label="solved: 10–90 %"),
        "failed": Line2D([], [], color=FAILED, lw=0.7, alpha=0.7, label=failed),
        "threshold": Line2D([], [], color="black", lw=0.7, ls=(0, (4, 2)), label=f"threshold {threshold}"),
    }
    handles = [handle for kind, handle in kinds.items() if kind in there]
    narrow = figure.get_figwidth() < PAGE_INCHES[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if narrow else 4)
