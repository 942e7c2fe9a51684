"""What an experiment says of its results: small tables, one row a setting, read from its stored files."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as parquet

from experiments import harness

NONE, NOT_RUN = "–", "not run"
AFFINE = "But for contrast and brightness: the best of both leave an error below 0.2 of the image less its mean."


@dataclass(frozen=True)
class Results:
    """A table of an experiment.

    Attributes:
        title: what was measured.
        command: what stands behind `python -m experiments.`.
        columns: the heads. The first ones name the setting.
        rows: a setting each. A shorter row is filled with "–".
        device: on what ours was measured.
        notes: lines below the table. They explain its words, or quote a paper.
        figures: what to call a figure, and where it lies below `results/`.
    """

    title: str
    command: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    device: str = ""
    notes: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=dict)

    def row(self, *names: str) -> dict[str, str]:
        """The cells of the row that begins with these, by their columns; what is not there was not run."""
        rows = (one for one in self.filled() if one[: len(names)] == [*names])
        return defaultdict(lambda: NOT_RUN, zip(self.columns, next(rows, []), strict=False))

    def filled(self) -> list[list[str]]:
        """The rows as text, each with a cell for every column."""
        return [[*map(str, row), *[NONE] * (len(self.columns) - len(row))] for row in self.rows]

    def markdown(self) -> str:
        """Title, command, table, notes and links."""
        where = f" ({self.device})" if self.device else ""
        links = ", ".join(f"[{name}](results/{path})" for name, path in self.figures.items())
        below = "\n".join(f"- {line}" for line in (*self.notes, *([f"Figures: {links}."] if links else [])))
        parts = [f"### {self.title}\n", f"`python -m experiments.{self.command}`{where}\n"]
        return "\n".join([*parts, table(self.columns, self.filled()), *([f"{below}\n"] if below else [])])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars within cells are escaped."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    first, *others = [f"| {' | '.join(line)} |\n" for line in lines]
    return "".join([first, "|" + "---|" * len(header) + "\n", *others])


def stored(name: str) -> Any:
    """What an experiment wrote below `results/`; None if it was not run. A summary's device is that of all its rows."""
    path = harness.RESULTS / name
    told = json.loads(path.read_text()) if path.exists() else None
    rows = path.with_suffix(".parquet")
    if rows.exists() and isinstance(told, dict) and "environment" in told:
        devices = parquet.read_table(rows, columns=["device"])["device"].unique().to_pylist()
        told["environment"]["device"] = ", ".join(devices)
    return told


def device(*summaries: dict | None) -> str:
    """On what these were computed."""
    told = [one.get("device") or one["environment"]["device"] for one in summaries if one]
    return ", ".join(dict.fromkeys(", ".join(told).split(", ")))


def interval(bounds: Sequence[float], digits: int = 2) -> str:
    """A 95 % interval."""
    low, high = bounds
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def share(cell: dict, key: str = "solved") -> tuple[str, str]:
    """How many of how many, and the interval of that rate."""
    return f"{cell[key]}/{cell['trials']}", interval(cell["ci95"])


def rate(group: dict) -> tuple[str, str, int]:
    """A success rate, its interval, and n."""
    return f"{group['success_rate']:.3f}", interval(group["ci95"], 3), group["trials"]


def overall(summary: dict, attack: str) -> dict:
    """The group of all trials of an attack."""
    return next(group for group in summary["groups"] if group["attack"] == attack and group["image"] is None)
