"""Sizes, colours, type and file format of all figures."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxleak.data.paths import place, write_atomically, writing
from jaxleak.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Summary = dict[str, Any]
Key = tuple[str, str, str]  # attack, model, data set

COLUMN_INCHES, PAGE_INCHES = 3.3, (6.9, 9.0)  # width of a column; width and height of a page
DPI = 200
MOST_BYTES = 300_000  # of a file; only grids of pictures above 64 pixels go beyond it

# Source: Okabe & Ito 2008, colours that are told apart with any colour vision. Outcomes have two of them to themselves.
ATTACK_COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
SOLVED, FAILED = "#009E73", "#D55E00"
MARKERS = "osD^vP"


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


def style_context() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def make_panels(
    count: int, width: float, height: float, *, columns: int = 1, share_x: bool = False
) -> tuple["Figure", np.ndarray]:
    """A figure of `count` axes, and the axes as [rows, columns]; the size is that of the whole figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    rows = math.ceil(count / columns)
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=share_x)


def save_figure(figure: "Figure", path: str | Path | None) -> "Figure":
    if path is not None:
        with writing("path", path):
            write_atomically(place(path), png_bytes(figure))
    return figure


def png_bytes(figure: "Figure") -> bytes:
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


def task_key(item: dict[str, Any]) -> Key:
    return item["attack"], item["model"], item["dataset"]


def task_names(keys: Iterable[Key]) -> dict[Key, str]:
    """A name for each key: the attack, with the model and the data set where there are several."""
    keys = list(dict.fromkeys(keys))
    several = [True, *(len({key[part] for key in keys}) > 1 for part in (1, 2))]
    return {
        key: ", ".join(literal_text(text) for text, shown in zip(key, several, strict=True) if shown) for key in keys
    }


def literal_text(text: str) -> str:
    """`text` as it is, not as a formula; of a path, its last part."""
    name = (Path(text).name or text).encode(errors="replace").decode()  # a file's name may be no text
    return name.replace("$", r"\$")


def figure_title(model: str, dataset: str, summary: Summary) -> str:
    """Title of a panel: model and data set, with the number of trials if the run is partial."""
    title = f"{literal_text(model)}, {literal_text(dataset)}"
    if summary["complete"]:
        return title
    done = sum(group["trials"] for group in summary["groups"] if group["image"] is None)
    return f"{title} (partial: {done} of {summary['trials_expected']} trials)"


def groups_by_task(summary: Summary) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The overall groups of each (model, data set): one panel each."""
    tasks: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for group in summary["groups"]:
        if group["image"] is None:
            tasks.setdefault((group["model"], group["dataset"]), []).append(group)
    if not tasks:
        raise InputError("`summary` has no groups: no trial has finished. Draw when some have.")
    return tasks


def attack_looks(summary: Summary) -> dict[str, tuple[str, str]]:
    """Colour and marker of each attack, the same in every panel and figure of a run."""
    attacks = dict.fromkeys(group["attack"] for group in summary["groups"])
    looks = zip(ATTACK_COLOURS, MARKERS, strict=True)
    cycle = list(looks)
    return {attack: cycle[i % len(cycle)] for i, attack in enumerate(attacks)}


def evenly_spread(count: int, most: int) -> list[int]:
    """At most `most` of the places 0..count-1, evenly spread, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def shortened(text: str, most: int) -> str:
    """The text, or of a long one its beginning and end."""
    if len(text) <= most:
        return text
    half = max(1, (most - 1) // 2)
    return f"{text[:half]}…{text[-half:]}"


def rate_text(rate: float, interval: Sequence[float]) -> str:
    return f"{rate:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
