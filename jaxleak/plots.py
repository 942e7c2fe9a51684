"""Figures for a paper's column: recoveries over iterations, convergence, success per image, MSE shares.

Each function draws one figure with matplotlib's objects (no pyplot, no display), writes it as a PNG when it is
given a path, and returns it.
"""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxleak.errors import InputError
from jaxleak.paths import is_local, place, reachable
from jaxleak.stats import Criteria, Row, expected_trials, summarise, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxleak.store import Run

Summary = dict[str, Any]
Key = tuple[str, str, str]  # attack, model, data set

COLUMN_INCHES, PAGE_INCHES = 3.3, (6.9, 9.0)  # width of a column; width and height of a page
DPI = 200
MOST_BYTES = 300_000  # of a file; only grids of pictures above 64 pixels go beyond it

# Source: Okabe & Ito 2008, colours that are told apart with any colour vision. Outcomes have two of them to themselves.
ATTACK_COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
SOLVED, FAILED = "#009E73", "#D55E00"
MARKERS = "osD^vP"

# A start is noise, which PNG cannot shrink: these keep the grid on a page and its file below 300 kB.
GRID_IMAGES, GRID_LINES = 3, 12  # at most, unless images are chosen
GRID_COLUMNS, GRID_PICTURES = 8, 84  # snapshots per line, candidates in all, at most unless `columns` is given
FAILED_LINES = 30  # single failed trials drawn at most

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.unicode_minus": True,
    "text.usetex": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


# --- common -----------------------------------------------------------------------------------------------


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _panels(
    count: int, width: float, height: float, *, columns: int = 1, share_x: bool = False
) -> tuple["Figure", np.ndarray]:
    """A figure of `count` axes, and the axes as [rows, columns]; the size is that of the whole figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    rows = math.ceil(count / columns)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=share_x)


def _save(figure: "Figure", path: str | Path | None) -> "Figure":
    if path is not None:
        try:
            place(path).write_bytes(_png(figure))
        except OSError as error:
            raise InputError(f"`path` {path} cannot be written ({error.strerror}). Give another.") from error
    return figure


def _png(figure: "Figure") -> bytes:
    """The figure as PNG; above `MOST_BYTES`, as a grid full of noise can be, with fewer levels of each colour."""
    from PIL import Image

    full = io.BytesIO()
    figure.savefig(full, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})
    written = full
    for levels in (64, 32, 16):
        if written.getbuffer().nbytes <= MOST_BYTES:
            break
        step = 255 / (levels - 1)
        pixels = np.round(np.round(np.asarray(Image.open(full).convert("RGB")) / step) * step)
        written = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(written, "png", dpi=(DPI, DPI), optimize=True)
    return written.getvalue()


def _key(item: dict[str, Any]) -> Key:
    return item["attack"], item["model"], item["dataset"]


def _names(keys: Iterable[Key]) -> dict[Key, str]:
    """What tells the keys apart: the attack, and the model and the data set where there are several."""
    keys = list(dict.fromkeys(keys))
    several = [True, *(len({key[part] for key in keys}) > 1 for part in (1, 2))]
    return {key: ", ".join(_literal(text) for text, shown in zip(key, several, strict=True) if shown) for key in keys}


def _literal(text: str) -> str:
    """`text` as it is, not as a formula; of a path, its last part."""
    return (Path(text).name or text).replace("$", r"\$")


def _title(model: str, dataset: str, summary: Summary) -> str:
    """What a panel shows, and how much of the run it rests on if that is not all."""
    title = f"{_literal(model)}, {_literal(dataset)}"
    if summary["complete"]:
        return title
    done = sum(group["trials"] for group in summary["groups"] if group["image"] is None)
    return f"{title} (partial: {done} of {summary['trials_expected']} trials)"


def _by_task(summary: Summary) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The overall groups of each (model, data set): one panel each."""
    tasks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for group in summary["groups"]:
        if group["image"] is None:
            tasks.setdefault((group["model"], group["dataset"]), []).append(group)
    if not tasks:
        raise InputError("`summary` has no groups: no trial has finished. Draw when some have.")
    return tasks


def _attack_looks(summary: Summary) -> dict[str, tuple[str, str]]:
    """Colour and marker of each attack, the same in every panel and figure of a run."""
    attacks = dict.fromkeys(group["attack"] for group in summary["groups"])
    looks = zip(ATTACK_COLOURS, MARKERS, strict=True)
    cycle = list(looks)
    return {attack: cycle[i % len(cycle)] for i, attack in enumerate(attacks)}


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the places 0..count-1, evenly spread, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _rate_text(rate: float, interval: Sequence[float]) -> str:
    return f"{rate:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


# --- the grid of recoveries -------------------------------------------------------------------------------


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
    keys = list(dict.fromkeys(_key(row) for row in rows))
    finished = {row["image"] for row in rows}
    known = [int(image) for image in truth["image"] if int(image) in finished]
    fitting = max(1, min(GRID_IMAGES, GRID_LINES // (3 * len(keys))))
    chosen = known[:fitting] if images is None else [int(image) for image in images]
    absent = [image for image in chosen if image not in known]
    if absent or not chosen:
        shown = ", ".join(map(str, known[:8])) + (", …" if len(known) > 8 else "")
        raise InputError(f"`images` must be images with a finished trial ({shown}); got {absent or chosen}.")
    own = {(image, key): [] for image in chosen for key in keys}
    for row in rows:
        if row["image"] in chosen:
            own[row["image"], _key(row)].append(row)
    return [Block(image, key, _ranked(members)) for (image, key), members in own.items() if members]


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
    down = (round(PAGE_INCHES[1] * DPI) - 2 * text * (1 + len(blocks))) // sum(len(b.lines) for b in blocks) - gap
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
    height = 2 * grid.gap + grid.text + sum(_block_height(grid, block) for block in blocks)
    names = _names(block.key for block in blocks)
    with _style():
        figure = Figure(figsize=(grid.width / DPI, height / DPI), dpi=DPI)
        draw = _Canvas(figure, grid.width, height)
        _column_heads(draw, grid, [snapshots[s] for s in shown])
        top = grid.gap + grid.text
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
        return _save(figure, path)


def _shown_snapshots(blocks: list[Block], snapshots: Sequence[int], most: int | None) -> list[int]:
    """Places of the snapshots taken before the last of the shown trials ended."""
    if most is None:
        most = max(2, min(GRID_COLUMNS, GRID_PICTURES // sum(len(block.lines) for block in blocks) - 1))
    end = max(row["iterations"] for block in blocks for _, row in block.lines)
    before = [s for s, iteration in enumerate(snapshots) if iteration < end]
    return [before[i] for i in _spread(len(before), most)] if before else []


def _block_height(grid: Geometry, block: Block) -> int:
    return round(2 * grid.text) + len(block.lines) * grid.pitch


def _column_heads(draw: "_Canvas", grid: Geometry, iterations: Sequence[int]) -> None:
    middle, y = grid.cell[1] / 2, grid.gap + grid.text / 2
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


# --- convergence ------------------------------------------------------------------------------------------


def hold_last(traces: Float[np.ndarray, "n t"]) -> Float[np.ndarray, "n t"]:
    """Traces whose gaps and ends are filled with the last finite value before them."""
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
) -> "Figure":
    """Objective and MSE against iterations: the spread over the solved trials, and the failed ones singly.

    The line is the median over the solved trials, the band holds the middle 80 % of them; a solved trial that
    has ended counts with its last value. At most `FAILED_LINES` failed trials are drawn, thin, each to where it
    ended; where one rises above all starts, it leaves the picture.

    Args:
        rows: result rows.
        arrays: `trial` [n], `objective_trace` and `mse_trace` [n, t], NaN after a trial's end.
        path: of the PNG.
        threshold: the objective's, marked by a line.

    Raises:
        InputError: no rows, or the PNG cannot be written.
    """
    if not rows:
        raise InputError("`rows` is empty: no trial has finished. Draw when some have.")
    place = {int(trial): i for i, trial in enumerate(arrays["trial"])}
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row)
    names, across = _names(groups), min(len(groups), 3)
    down = math.ceil(len(groups) / across)
    with _style():
        width = COLUMN_INCHES if across == 1 else PAGE_INCHES[0]
        figure, axes = _panels(2 * down * across, width, 0.5 + 2.7 * down, columns=across, share_x=True)
        for number, (key, own) in enumerate(groups.items()):
            block, column = divmod(number, across)
            objective, mse = axes[2 * block, column], axes[2 * block + 1, column]
            order = [place[row["trial"]] for row in sorted(own, key=lambda row: row["trial"])]
            solved = np.array([row["success"] for row in sorted(own, key=lambda row: row["trial"])], bool)
            _draw_traces(objective, arrays["objective_trace"][order], solved)
            _draw_traces(mse, arrays["mse_trace"][order], solved)
            objective.axhline(threshold, color="black", lw=0.7, ls=(0, (4, 2)), label="threshold")
            objective.set_title(f"{names[key]}: {solved.sum()} of {len(own)} solved")
        _share_limits(axes[0::2], threshold)
        _share_limits(axes[1::2])
        for column in range(len(groups) - across * (down - 1), across):
            axes[-2, column].set_visible(False)
            axes[-1, column].set_visible(False)
            axes[-3, column].tick_params(labelbottom=True)
        for row, panels in enumerate(axes):
            panels[0].set_ylabel("MSE" if row % 2 else "objective")
        figure.supxlabel("iteration (trials that ended keep their last value)", size=7)
        most = max(sum(not row["success"] for row in own) for own in groups.values())
        failed = "failed, one line each" if most <= FAILED_LINES else f"failed, {FAILED_LINES} of them at most"
        _legend_of_traces(figure, failed, np.format_float_scientific(threshold, trim="-", exp_digits=1))
        return _save(figure, path)


def _draw_traces(axes: "Axes", traces: np.ndarray, solved: np.ndarray) -> None:
    traces = _positive(traces)
    end = 1 + max((int(i) for i in np.flatnonzero(np.isfinite(traces).any(axis=0))), default=0)
    traces, iterations = traces[:, :end], np.arange(end)
    failed = traces[~solved]
    for trace in failed[_spread(len(failed), FAILED_LINES)] if len(failed) else ():
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
    if lows:
        for panel in axes.flat:
            panel.set_autoscaley_on(False)  # it would first look for limits, and warn where all values are equal
            panel.set_ylim(min(lows) / 2, max(highs) * 4)


def _legend_of_traces(figure: "Figure", failed: str, threshold: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=SOLVED, lw=1.4, label="solved: median"),
        Patch(color=SOLVED, alpha=0.25, lw=0, label="solved: 10–90 %"),
        Line2D([], [], color=FAILED, lw=0.7, alpha=0.7, label=failed),
        Line2D([], [], color="black", lw=0.7, ls=(0, (4, 2)), label=f"threshold {threshold}"),
    ]
    narrow = figure.get_figwidth() < PAGE_INCHES[0]
    figure.legend(handles=handles, loc="outside upper center", ncols=2 if narrow else 4)


# --- rates ------------------------------------------------------------------------------------------------


def success_by_image(summary: Summary, path: str | Path | None = None) -> "Figure":
    """Success rate of each image with its 95 % Wilson interval; dashed and shaded, the rate over all images.

    Args:
        summary: as `stats.summarise` makes it.
        path: of the PNG.

    Raises:
        InputError: no groups, or the PNG cannot be written.
    """
    tasks, looks = _by_task(summary), _attack_looks(summary)
    marks = max(sum(g["image"] is not None and _key(g)[1:] == task for g in summary["groups"]) for task in tasks)
    with _style():
        width = COLUMN_INCHES if marks <= 20 else PAGE_INCHES[0]
        figure, axes = _panels(len(tasks), width, 2.1 * len(tasks))
        for panel, (task, overall) in zip(axes.flat, tasks.items(), strict=True):
            _draw_rates(panel, summary, overall, looks)
            _finish_rates(panel, _title(*task, summary), "success rate (95 % interval)")
        return _save(figure, path)


def _draw_rates(
    axes: "Axes", summary: Summary, overall: list[dict[str, Any]], looks: dict[str, tuple[str, str]]
) -> None:
    task = _key(overall[0])[1:]
    of_task = [group for group in summary["groups"] if group["image"] is not None and _key(group)[1:] == task]
    images = sorted({group["image"] for group in of_task})
    for number, total in enumerate(overall):
        colour, marker = looks[total["attack"]]
        own = [group for group in of_task if group["attack"] == total["attack"]]
        x = [images.index(group["image"]) + _dodge(number, len(overall)) for group in own]
        label = f"{_literal(total['attack'])}, all: {_rate_text(total['success_rate'], total['ci95'])}"
        axes.axhline(total["success_rate"], color=colour, lw=0.8, ls=(0, (4, 2)), zorder=1)
        axes.axhspan(*total["ci95"], color=colour, alpha=0.15, lw=0, zorder=0)
        _draw_intervals(axes, x, own, colour, marker, label)
    axes.set_xticks(range(len(images)), [str(image) for image in images])
    crowded = len(images) * max(len(str(image)) for image in images) > 14 * axes.figure.get_figwidth()  # pyright: ignore[reportAttributeAccessIssue]
    axes.tick_params(axis="x", rotation=90 if crowded else 0)
    axes.set_xlim(-0.6, len(images) - 0.4)
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
    label: str,
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
    """Draw the legend between panel and title; returns its number of lines."""
    handles, labels = axes.get_legend_handles_labels()
    across = 2 if axes.figure.get_figwidth() < PAGE_INCHES[0] else 4  # pyright: ignore[reportAttributeAccessIssue]
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "borderaxespad": 0.1}
    axes.legend(handles, labels, ncols=across, columnspacing=1.2, handletextpad=0.4, **place)
    return math.ceil(len(handles) / across)


def mse_shares(summary: Summary, path: str | Path | None = None) -> "Figure":
    """Share of all trials whose MSE ended below each threshold, with 95 % Wilson intervals.

    Source: the fidelity figure of Zhao, Mopuri & Bilen 2020 (iDLG). Differs: with intervals.

    Args:
        summary: as `stats.summarise` makes it.
        path: of the PNG.

    Raises:
        InputError: no groups, or the PNG cannot be written.
    """
    tasks, looks = _by_task(summary), _attack_looks(summary)
    with _style():
        across = min(len(tasks), 2)
        height = 2.0 * math.ceil(len(tasks) / across)
        width = COLUMN_INCHES if across == 1 else PAGE_INCHES[0]
        figure, axes = _panels(len(tasks), width, height, columns=across)
        for panel, (task, overall) in zip(axes.flat, tasks.items(), strict=False):
            _draw_shares(panel, overall, looks)
            _finish_rates(panel, _title(*task, summary), "share of trials (95 % interval)")
        for panel in axes.flat[len(tasks) :]:
            panel.set_visible(False)
        return _save(figure, path)


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
            f"{_literal(group['attack'])} (n = {n})",
            rate=lambda point: point["share"],
            interval=lambda point, n=n: wilson(round(point["share"] * n), n),
            line="-",
        )
    axes.set_xticks(range(len(thresholds)), [f"{t:g}" for t in thresholds])
    axes.set_xlim(-0.4, len(thresholds) - 0.6)
    axes.set_xlabel("MSE below")


# --- a whole run ------------------------------------------------------------------------------------------


def draw_all(run: "Run", path: str | Path | None = None, *, images: Sequence[int] | None = None) -> list[Path]:
    """Draw every figure of a run as far as it has got.

    Args:
        run: an open run; it may be unfinished.
        path: the directory, made if need be; the run's `figures` if not given.
        images: those of the grid; see `choose_trials`.

    Returns:
        The files: recovery.png, convergence.png, success_by_image.png and mse_shares.png.

    Raises:
        InputError: no trial has finished, an image that the run does not have, or a directory that cannot be
            written.
    """
    rows = run.rows()
    if not rows:
        raise InputError(f"{run.path} has no finished trial yet. Draw when `jaxleak run` has finished some.")
    directory = run.figures if path is None else _directory(path)
    files = [directory / f"{name}.png" for name in ("recovery", "convergence", "success_by_image", "mse_shares")]
    criteria = Criteria(**run.settings.get("criteria", {}))
    snapshots = run.settings.get("snapshots") or []
    truth = run.truth()
    shown = [row["trial"] for block in choose_trials(rows, truth, images) for _, row in block.lines]
    keys = ["trial", "candidate", *(["snapshots"] if snapshots else [])]
    arrays, kept = run.arrays(keys, trials=shown), run.settings.get("snapshot_seeds")
    recovery_grid(rows, arrays, truth, snapshots, files[0], images=images, snapshot_seeds=kept)
    traces = run.arrays(["trial", "objective_trace", "mse_trace"])
    convergence(rows, traces, files[1], threshold=criteria.objective)
    summary = summarise(rows, criteria, expected=_expected(run, len(rows)))
    success_by_image(summary, files[2])
    mse_shares(summary, files[3])
    return files


def _directory(path: str | Path) -> Path:
    directory = reachable(path)
    try:
        if is_local(directory):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`path` {path} cannot be made ({error.strerror}). Give another.") from error
    return directory


def _expected(run: "Run", done: int) -> int:
    """Trials of the complete run, attacks x images x seeds; those there are, where the settings do not say."""
    try:
        return expected_trials(run.settings)
    except (KeyError, TypeError):
        return done
