"""A contact sheet: a line of pictures for the truth and one for each attack or setting."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxleak

Cell = tuple[np.ndarray, str]  # a picture [h, w, c], and what stands below it


def picture(result: jaxleak.Result, row: dict[str, Any]) -> np.ndarray:
    """The reconstruction of a row; the images of a batch beside each other."""
    found = result.reconstructions([row["trial"]])["candidate"][0]
    return found if found.ndim == 3 else np.concatenate(list(found), axis=1)


def draw_sheet(lines: Sequence[tuple[str, Sequence[Cell]]], path: Path, *, margin: float = 0.9) -> None:
    """Write the sheet; the `margin` in inches left of it holds the lines' names."""
    columns = max(len(cells) for _, cells in lines)
    wide, high = 0.8 * columns + margin, 0.93 * len(lines)
    figure = Figure(figsize=(wide, high), dpi=100)
    panels = figure.subplots(len(lines), columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    figure.subplots_adjust(left=margin / wide, right=0.995, top=1 - 0.03 / high, bottom=0.15 / high, hspace=0.2)
    figure.subplots_adjust(wspace=0.05)
    for row, (name, cells) in zip(panels, lines, strict=True):
        row[0].set_ylabel(name, fontsize=7, rotation=0, ha="right", va="center")
        for axes, (picture, text) in zip(row, cells, strict=False):
            shown = np.clip(np.nan_to_num(picture), 0, 1)
            axes.imshow(shown, interpolation="nearest", cmap=mpl.colormaps["gray"], vmin=0, vmax=1)
            axes.set_xlabel(text, fontsize=6, labelpad=1)
        for axes in row[len(cells) :]:
            axes.set_visible(False)
    figure.savefig(path)
