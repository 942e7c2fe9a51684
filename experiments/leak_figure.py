"""The leak map as a picture: networks, modes and trainings down, batches, local steps and defences across."""

from itertools import groupby, product
from pathlib import Path
from typing import Any

import jaxleak
from experiments.leak_cells import BATCHES, DEFENCES, LOCAL_STEPS, NETWORKS, TRAININGS, Cell

GOOD = 20.0  # dB
WIDE, HIGH = 0.5, 0.2  # of a cell, in inches
LEFT, ABOVE, BELOW = 2.35, 0.8, 0.62
Places = list[tuple[Any, ...]]


def shares(rows: dict[str, dict[str, Any]]) -> tuple[Places, Places, dict[tuple[Any, ...], dict[str, Any]]]:
    """Lines (network, training) and columns (defence, local steps, batch) in which a cell was run, and rows by both."""
    lines, columns = list(product(NETWORKS, TRAININGS)), list(product(DEFENCES, LOCAL_STEPS, BATCHES))
    found = {}
    for line, column in product(lines, columns):
        row = rows.get(Cell(*line, column[2], column[1], column[0]).name)
        if row:
            found[line, column] = row
    return (
        [line for line in lines if any(place[0] == line for place in found)],
        [column for column in columns if any(place[1] == column for place in found)],
        found,
    )


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """The share of images above 20 dB of each cell; a dot where `risk` expects more of its first update, a ring where
    it expects less."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    lines, columns, found = shares(rows)
    if not found:
        return
    wide, high = LEFT + WIDE * len(columns) + 0.1, ABOVE + HIGH * len(lines) + BELOW
    figure = Figure(figsize=(wide, high), dpi=170)
    axes = figure.add_axes((LEFT / wide, BELOW / high, WIDE * len(columns) / wide, HIGH * len(lines) / high))
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(lines), 0)
    axes.axis("off")
    colours = colormaps["cividis"]
    for (y, line), (x, column) in product(enumerate(lines), enumerate(columns)):
        row = found.get((line, column))
        if row is None:
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor="white", edgecolor="#dddddd", linewidth=0.4))
            axes.text(x + 0.5, y + 0.5, "not run", ha="center", va="center", fontsize=4, color="#999999")
            continue
        good, count = sum(psnr > GOOD for psnr in row["psnr"]), len(row["psnr"])
        ink = "white" if good < 0.55 * count else "black"
        shade = colours(good / count)
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=shade, edgecolor="white", linewidth=0.6))
        weight = "bold" if row["attack"] in jaxleak.ATTACKS else "normal"
        axes.text(x + 0.5, y + 0.53, f"{good}/{count}", ha="center", va="center", size=6.5, color=ink, weight=weight)
        if row["risk"] is not None:
            inside = ink if row["risk"] > GOOD else "none"
            axes.plot(x + 0.9, y + 0.22, "o", markersize=2, markerfacecolor=inside, markeredgecolor=ink, mew=0.4)
    _name_lines(axes, lines)
    _name_columns(axes, columns)
    _legend(figure, colours, wide, high, len(found))
    figure.savefig(path)


def _name_lines(axes: Any, lines: Places) -> None:
    place = 0
    for name, group in groupby(lines, key=lambda line: line[0]):
        network, members = NETWORKS[name], list(group)
        mode = "" if network.mode == "–" else f", BN {network.mode}"
        middle = place + len(members) / 2
        axes.text(-1.5, middle, f"{network.what}{mode}", ha="right", va="center", fontsize=6.5)
        for offset, (_, training) in enumerate(members):
            text = {"epoch": "1 epoch", "trained": "4 epochs"}.get(training, training)
            axes.text(-0.1, place + offset + 0.5, text, ha="right", va="center", fontsize=6, color="#444444")
        place += len(members)
        axes.plot([-4.6, axes.get_xlim()[1]], [place, place], color="#555555", linewidth=0.5, clip_on=False)


def _name_columns(axes: Any, columns: Places) -> None:
    for x, (_, _, batch) in enumerate(columns):
        axes.text(x + 0.5, -0.15, f"{batch}", ha="center", va="bottom", fontsize=6.5)
    axes.text(-0.1, -0.15, "images of an update", ha="right", va="bottom", fontsize=6.5)
    for level, key, words in (
        (-1.2, lambda column: column[:2], lambda key: f"{key[1]} steps" if key[1] else "gradient"),
        (-2.35, lambda column: column[0], lambda key: {"none": "no defence"}.get(key, f"{key} noise")),
    ):
        place = 0
        for name, group in groupby(columns, key=key):
            end = place + len(list(group))
            axes.plot([place + 0.08, end - 0.08], [level + 0.12] * 2, color="#555555", linewidth=0.6, clip_on=False)
            text = words(name).replace(" ", "\n" if end - place == 1 else " ")
            axes.text((place + end) / 2, level, text, ha="center", va="bottom", fontsize=6.5, linespacing=0.9)
            place = end


def _legend(figure: Any, colours: Any, wide: float, high: float, count: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.add_axes((0.1 / wide, 0.33 / high, 1.5 / wide, 0.1 / high))
    scale = ScalarMappable(Normalize(0, 1), colours)
    figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=[0, 0.5, 1]).ax.tick_params(labelsize=6, length=2)
    bounds = (
        f"{good}/40 is {100 * low:.0f} to {100 * high:.0f} %"
        for good in (0, 20, 40)
        for low, high in [jaxleak.wilson(good, 40)]
    )
    text = (
        "Images above 20 dB of 40 (CIFAR-100, one start). Bold: closed forms; else searches of at most 600\n"
        f"evaluations, a lower bound. {count} cells.\n"
        f"95 % intervals: {', '.join(bounds)}.\n"
        "Dot: jaxleak risk expects more than 20 dB; ring: less."
    )
    figure.text(1.8 / wide, 0.3 / high, text, fontsize=6, va="center")
