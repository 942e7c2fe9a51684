"""The leak map as a picture: networks, modes and trainings down, batches, local steps and defences across."""

from itertools import groupby, product
from pathlib import Path
from typing import Any

from experiments.leak_cells import BATCHES, DEFENCES, LOCAL_STEPS, NETWORKS, TRAININGS, Cell

GOOD = 20.0  # dB
WIDE, HIGH = 0.5, 0.2  # of a cell, in inches
LEFT, ABOVE, BELOW = 2.35, 0.95, 0.62
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
    """The share of images above 20 dB of each cell; a dot where `risk` expects more than 20 dB of its first update."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines, columns, found = shares(rows)
    if not found:
        return
    wide, high = LEFT + WIDE * len(columns) + 0.1, ABOVE + HIGH * len(lines) + BELOW
    figure = Figure(figsize=(wide, high), dpi=200)
    axes = figure.add_axes((LEFT / wide, BELOW / high, WIDE * len(columns) / wide, HIGH * len(lines) / high))
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(lines), 0)
    axes.axis("off")
    colours = mpl.colormaps["cividis"]
    for (y, line), (x, column) in product(enumerate(lines), enumerate(columns)):
        row = found.get((line, column))
        if row is None:
            axes.add_patch(mpl.patches.Rectangle((x, y), 1, 1, facecolor="white", edgecolor="#dddddd", linewidth=0.4))
            axes.text(x + 0.5, y + 0.5, "not run", ha="center", va="center", fontsize=4, color="#b0b0b0")
            continue
        good, count = sum(psnr > GOOD for psnr in row["psnr"]), len(row["psnr"])
        ink = "white" if good < 0.55 * count else "black"
        shade = colours(good / count)
        axes.add_patch(mpl.patches.Rectangle((x, y), 1, 1, facecolor=shade, edgecolor="white", linewidth=0.6))
        axes.text(x + 0.5, y + 0.53, f"{good}/{count}", ha="center", va="center", fontsize=6.5, color=ink)
        if (row["risk"] or 0) > GOOD:
            axes.plot(x + 0.9, y + 0.2, "o", markersize=1.7, color=ink, markeredgewidth=0)
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
        (-1.25, lambda column: column[:2], lambda key: f"{key[1]} local steps" if key[1] else "gradient"),
        (-2.6, lambda column: column[0], lambda key: {"none": "no defence"}.get(key, f"{key} noise")),
    ):
        place = 0
        for name, group in groupby(columns, key=key):
            size = len(list(group))
            axes.plot(
                [place + 0.08, place + size - 0.08], [level + 0.1] * 2, color="#555555", linewidth=0.6, clip_on=False
            )
            axes.text(place + size / 2, level, words(name), ha="center", va="bottom", fontsize=6.5)
            place += size


def _legend(figure: Any, colours: Any, wide: float, high: float, count: int) -> None:
    import matplotlib as mpl

    bar = figure.add_axes((LEFT / wide, 0.36 / high, 1.6 / wide, 0.1 / high))
    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), colours)
    figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=[0, 0.5, 1]).ax.tick_params(labelsize=6, length=2)
    text = (
        "share of images that come back above 20 dB PSNR (CIFAR-100, one start); 95 % Wilson intervals of\n"
        f"20/40: 0.35 to 0.65, of 0/40: 0 to 0.09. Dot: `jaxleak risk` expects above 20 dB. {count} cells."
    )
    figure.text((LEFT + 1.75) / wide, 0.42 / high, text, fontsize=6, va="center")
