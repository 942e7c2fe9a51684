"""A grid of pictures: recoveries over the iterations."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxleak.errors import InputError
from jaxleak.results.figures.style import (
    DPI,
    PAGE_INCHES,
    Key,
    evenly_spread,
    save_figure,
    style_context,
    task_key,
    task_names,
)
from jaxleak.results.store.columns import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# A start is noise, which PNG cannot shrink: these keep the grid on a page and its file below 300 kB.
GRID_IMAGES, GRID_LINES = 3, 12  # at most, unless images are chosen
GRID_COLUMNS, GRID_PICTURES = 8, 84  # snapshots per line, candidates in all, at most unless `columns` is given


class Block(NamedTuple):
    """Part of the grid: the trials of one attack on one image, each with its rank."""

    image: int
    key: Key
    lines: list[tuple[str, Row]]


def choose_trials(
    rows: Sequence[Row], truth: dict[str, np.ndarray], images: Sequence[int] | None = None
) -> list[Block]:
    """The trials that `recovery_grid` shows: best, median and worst objective per image and attack.

    A trial that ended non-finite has no rank; one is shown only where there is no other.

    Args:
        rows: result rows.
        truth: `image` [I] gives the order of the images.
        images: indices; if not given, the first that have a finished trial, `GRID_IMAGES` of them or as many
            as `GRID_LINES` hold.

    Raises:
        InputError: no rows, or an image without a finished trial.
    """
    if not rows:
        raise InputError("`rows` is empty: no trial has finished. Draw when some have.")
    keys = list(dict.fromkeys(task_key(row) for row in rows))
    finished = {row["image"] for row in rows}
    known = [int(image) for image in truth["image"] if int(image) in finished]
    fitting = max(1, min(GRID_IMAGES, GRID_LINES // (3 * len(keys))))
    chosen = known[:fitting] if images is None else [int(image) for image in images]
    absent = [image for image in chosen if image not in known]
    if absent or not chosen:
        shown = ", ".join(map(str, known[:8])) + (", …" if len(known) > 8 else "")
        raise InputError(f"`images` must be images with a finished trial ({shown}); got {absent or chosen}.")
    groups = {(image, key): [] for image in chosen for key in keys}
    for row in rows:
        if row["image"] in chosen:
            groups[row["image"], task_key(row)].append(row)
    return [Block(image, key, _ranked(members)) for (image, key), members in groups.items() if members]


def _ranked(rows: list[Row]) -> list[tuple[str, Row]]:
    finite = [row for row in rows if math.isfinite(row["objective"]) and row["status"] != "non-finite"]
    finite.sort(key=lambda row: (row["objective"], row["trial"]))
    if not finite:
        return [("no finite trial", min(rows, key=lambda row: row["trial"]))]
    if len(finite) == 1:
        return [("only trial" if len(rows) == 1 else "only finite", finite[0])]
    median = [("median", finite[(len(finite) - 1) // 2])] if len(finite) > 2 else []
    return [("best", finite[0]), *median, ("worst", finite[-1])]


class Geometry(NamedTuple):
    """The grid in pixels, so that every picture's pixel becomes a whole number of the figure's."""

    cell: tuple[int, int]  # height and width of a picture
    gap: int
    label: int  # width of the lines' labels
    text: int  # height of a line of text
    columns: int  # pictures after the label

    @property
    def width(self) -> int:
        return 3 * self.gap + self.cell[1] + self.label + self.columns * (self.cell[1] + self.gap)

    @property
    def pitch(self) -> int:
        return max(self.cell[0] + self.gap, 3 * self.text)

    def left(self, column: int) -> int:
        """Left edge of a picture; column -1 is the true image, before the label."""
        first = 3 * self.gap + self.cell[1] + self.label
        return self.gap if column < 0 else first + column * (self.cell[1] + self.gap)


def _geometry(shape: tuple[int, int], columns: int, blocks: list[Block]) -> Geometry:
    """Pictures as large as the page and 0.9 inches allow, but at least 0.3 inches on a page that is too full."""
    gap, label, text = round(0.03 * DPI), round(0.85 * DPI), round(0.115 * DPI)
    across = (round(PAGE_INCHES[0] * DPI) - label - 3 * gap) // (columns + 1) - gap
    down = (round(PAGE_INCHES[1] * DPI) - 2 * text * (2 + len(blocks))) // sum(len(b.lines) for b in blocks) - gap
    room = max(round(0.3 * DPI), min(across, down, round(0.9 * DPI)))
    larger = max(shape)
    scale = room // larger if larger <= room else room / larger
    return Geometry((max(1, round(scale * shape[0])), max(1, round(scale * shape[1]))), gap, label, text, columns)


def recovery_grid(
    rows: Sequence[Row],
    arrays: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    snapshots: Sequence[int],
    path: str | Path | None = None,
    *,
    images: Sequence[int] | None = None,
    columns: int | None = None,
    snapshot_seeds: int | None = None,
) -> "Figure":
    """The papers' grid: for each image and attack the true image, then candidates over the iterations.

    One line each for the best, the median and the worst trial by the objective, with its status, iterations
    and PSNR. A trial that has ended leaves the later places empty; its last picture is the candidate.

    Args:
        rows: result rows.
        arrays: `trial` [n], `candidate` [n, h, w, c] and, for the snapshots, `snapshots` uint8 [n, s, h, w, c],
            of at least the trials of `choose_trials`.
        truth: `image` [I] and `pixels` [I, h, w, c] in [0, 1].
        snapshots: the iterations [s] of the snapshots; empty for final candidates only.
        path: of the PNG.
        images: see `choose_trials`.
        columns: snapshots shown at most, spread over those there are; if not given, `GRID_COLUMNS` or as many
            as `GRID_PICTURES` allow.
        snapshot_seeds: of how many seeds there are snapshots; None: of all. The others show the last candidate only.

    Raises:
        InputError: see `choose_trials`; or the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    blocks = choose_trials(rows, truth, images)
    place = {int(trial): i for i, trial in enumerate(arrays["trial"])}
    shown = _shown_snapshots(blocks, snapshots if "snapshots" in arrays else (), columns)
    grid = _geometry(truth["pixels"].shape[1:3], len(shown) + 1, blocks)
    height = 2 * grid.gap + 3 * grid.text + sum(_block_height(grid, block) for block in blocks)
    names = task_names(block.key for block in blocks)
    with style_context():
        figure = Figure(figsize=(grid.width / DPI, height / DPI), dpi=DPI)
        draw = _Canvas(figure, grid.width, height)
        draw.text(grid.gap, grid.gap + grid.text / 2, _caption(rows, blocks), va="center", size=6)
        top = grid.gap + 2 * grid.text
        _column_heads(draw, grid, top, [snapshots[s] for s in shown])
        top += grid.text
        for block in blocks:
            heading = f"{names[block.key]}, image {block.image}"
            draw.text(grid.gap, top + grid.text, heading, weight="bold", va="center")
            pixels = truth["pixels"][np.flatnonzero(truth["image"] == block.image)[0]]
            line_top = top + round(1.6 * grid.text)
            draw.picture(grid.left(-1), line_top, grid.cell, pixels, "true")
            for rank, row in block.lines:
                _draw_line(draw, grid, line_top, rank, row)
                i = place[row["trial"]]
                for column, s in enumerate(shown):
                    kept = snapshot_seeds is None or row["seed"] < snapshot_seeds
                    if kept and snapshots[s] <= row["iterations"]:
                        picture = arrays["snapshots"][i, s].astype(np.float32) / 255
                        label = f"{row['trial']}@{snapshots[s]}"
                        draw.picture(grid.left(column), line_top, grid.cell, picture, label)
                final = arrays["candidate"][i]
                draw.picture(grid.left(len(shown)), line_top, grid.cell, final, f"{row['trial']}@final")
                line_top += grid.pitch
            top += _block_height(grid, block)
        return save_figure(figure, path)


def _shown_snapshots(blocks: list[Block], snapshots: Sequence[int], most: int | None) -> list[int]:
    """Places of the snapshots taken before the last of the shown trials ended."""
    if most is None:
        most = max(2, min(GRID_COLUMNS, GRID_PICTURES // sum(len(block.lines) for block in blocks) - 1))
    end = max(row["iterations"] for block in blocks for _, row in block.lines)
    before = [s for s, iteration in enumerate(snapshots) if iteration < end]
    return [before[i] for i in evenly_spread(len(before), most)] if before else []


def _block_height(grid: Geometry, block: Block) -> int:
    return round(2 * grid.text) + len(block.lines) * grid.pitch


def _caption(rows: Sequence[Row], blocks: list[Block]) -> str:
    """What is shown, and of what: the best by the objective need not be the one with the most dB."""
    images, shown = len({row["image"] for row in rows}), len({block.image for block in blocks})
    ranked = any(rank in ("best", "worst") for block in blocks for rank, _ in block.lines)
    parts = ["Best, median and worst by the objective, which is all an attacker sees"] if ranked else []
    parts += [f"{shown} of {images} images"] if shown < images else []
    return "; ".join(parts)


def _column_heads(draw: "_Canvas", grid: Geometry, top: int, iterations: Sequence[int]) -> None:
    middle, y = grid.cell[1] / 2, top + grid.text / 2
    draw.text(grid.left(-1) + middle, y, "true", ha="center", va="center")
    if iterations:
        draw.text(grid.left(0) - 3 * grid.gap, y, "iteration", ha="right", va="center")
    for column, head in enumerate([*map(str, iterations), "final"]):
        draw.text(grid.left(column) + middle, y, head, ha="center", va="center")


def _draw_line(draw: "_Canvas", grid: Geometry, top: int, rank: str, row: Row) -> None:
    """The label of a line: rank, status, iterations and PSNR."""
    psnr = f"{row['psnr']:.1f} dB" if math.isfinite(row["psnr"]) else "no PSNR"
    text = f"{rank}\n{row['status']}\n{row['iterations']} it., {psnr}"
    x, y = grid.left(-1) + grid.cell[1] + 2 * grid.gap, top + grid.cell[0] / 2
    draw.text(x, y, text, va="center", size=6, linespacing=1.15)


class _Canvas(NamedTuple):
    """A figure addressed in pixels from its upper left corner."""

    figure: "Figure"
    width: int
    height: int

    def text(self, x: float, y: float, text: str, **looks: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, text, **looks)

    def picture(self, x: int, y: int, cell: tuple[int, int], pixels: np.ndarray, label: str) -> None:
        bottom = self.height - y - cell[0]
        box = (x / self.width, bottom / self.height, cell[1] / self.width, cell[0] / self.height)
        axes = self.figure.add_axes(box, label=label)
        axes.set_axis_off()
        smaller = pixels.shape[0] <= cell[0]
        axes.imshow(_displayed(pixels), aspect="auto", interpolation="nearest" if smaller else "antialiased")


def _displayed(pixels: Float[np.ndarray, "h w c"]) -> np.ndarray:
    """Pixels in [0, 1] as uint8 RGB: clipped, grey as three equal channels, NaN as middle grey."""
    finite = np.nan_to_num(np.asarray(pixels, np.float64), nan=0.5, posinf=1.0, neginf=0.0)
    colour = np.repeat(finite, 3, axis=-1) if finite.shape[-1] == 1 else finite[..., :3]
    return np.round(255 * np.clip(colour, 0, 1)).astype(np.uint8)
