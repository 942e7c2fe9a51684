"""The result of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jaxleak.data.texts import readable
from jaxleak.errors import InputError
from jaxleak.results.matching import unmosaic
from jaxleak.results.store.run import Run


def _rate_text(group: dict[str, Any]) -> str:
    low, high = group["ci95"]
    rate = f"{group['successes']}/{group['trials']}, {group['success_rate']:.0%} ({low:.0%} to {high:.0%})"
    return f"{group['attack']} {rate}"


@dataclass(eq=False)
class Result:
    """The result of a sweep: rows, rates and pictures. The run directory holds the same.

    Attributes:
        run: the run directory, open for reading.
        summary: as `summary.json`.

    Example:
        >>> import jaxleak
        >>> victim = jaxleak.make_victim("mlp", jaxleak.load_dataset("photos"), images=[6])
        >>> result = jaxleak.attack(victim, "analytic", seeds=1, quiet=True)
        >>> result
        Result: 1 of 1 trials, in a temporary directory
        solved: analytic 1/1, 100% (21% to 100%)
        rows, frame(), success_rate(), reconstructions(), table(), plot(), report()
        >>> result.reconstructions()["candidate"].shape
        (1, 32, 32, 3)
    """

    run: Run
    summary: dict[str, Any]
    _keep: Any = None  # a temporary directory lives as long as the result

    @property
    def _where(self) -> str:
        return "in a temporary directory" if self._keep else str(self.run.path)

    def __repr__(self) -> str:
        groups = [group for group in self.summary["groups"] if group["image"] is None]
        done, wanted = sum(group["trials"] for group in groups), self.summary["trials_expected"]
        return (
            f"Result: {done} of {wanted} trials, {self._where}\n"
            f"solved: {', '.join(map(_rate_text, groups))}\n"
            "rows, frame(), success_rate(), reconstructions(), table(), plot(), report()"
        )

    def _repr_html_(self) -> str:
        """The rates as a table, for notebooks."""
        lines = [
            f"<tr><td>{escape(group['attack'])}</td><td>{escape(group['model'])}</td><td>{escape(group['dataset'])}</td>"
            f"<td>{group['successes']}/{group['trials']}</td><td>{group['success_rate']:.0%}</td>"
            f"<td>{group['ci95'][0]:.0%} to {group['ci95'][1]:.0%}</td></tr>"
            for group in self.summary["groups"]
            if group["image"] is None
        ]
        heads = "".join(f"<th>{name}</th>" for name in ("attack", "model", "data set", "solved", "rate", "95 %"))
        return f"<table><caption>{escape(self._where)}</caption><tr>{heads}</tr>{''.join(lines)}</table>"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict per trial."""
        return self.run.rows()

    def frame(self):
        """All rows as a pandas DataFrame; `run.table()` is the same as an Arrow table. See `Run.frame`."""
        return self.run.frame()

    def success_rate(self, attack: str | None = None) -> tuple[float, tuple[float, float], int]:
        """Success rate over all images, its 95 % Wilson interval and the number of trials.

        Raises:
            InputError: several attacks were run and `attack` names none of them.
        """
        groups = {group["attack"]: group for group in self.summary["groups"] if group["image"] is None}
        if attack is None and len(groups) == 1:
            attack = next(iter(groups))
        if attack not in groups:
            raise InputError(f"`attack` must be one of {', '.join(groups)}; got {attack!r}.")
        group = groups[attack]
        return group["success_rate"], tuple(group["ci95"]), group["trials"]

    def reconstructions(self, trials: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """`{"trial": [n], "candidate": [n, h, w, c]}` of the given trials, or of all.

        Of batches, `candidate` is [n, b, h, w, c], in the order of the truth. Of text it is [n, b, t].
        """
        arrays = self.run.arrays(keys=["trial", "candidate"], trials=trials)
        batch = self.run.settings["victim"]["batch"]
        return (
            arrays
            if batch == 1 or self.run.modality != "image"
            else {**arrays, "candidate": unmosaic(arrays["candidate"], batch)}
        )

    def texts(self, trials: Sequence[int] | None = None) -> dict[int, list[str]]:
        """The texts that the given trials found, or all, by trial; of batches in the order of the truth."""
        found, vocabulary = self.reconstructions(trials), self.run.truth()["class_names"]
        return {
            int(trial): [readable(text, vocabulary) for text in texts]
            for trial, texts in zip(found["trial"], found["candidate"], strict=True)
        }

    def table(self):
        """A rich table of the rates; `rich.print` shows it."""
        from jaxleak.results.tables import summary_table

        return summary_table([self.summary])

    def plot(self, path: str | Path | None = None) -> list[Path]:
        """Draw every figure into `path` (default: `figures` in the run directory); returns the files."""
        from jaxleak.results.figures import draw_all

        return draw_all(self.run, path)

    def report(self, path: str | Path | None = None, *, trials: int = 2) -> Path:
        """Write one self-contained page (default: `report.html` in the run directory); see `page.write_page`."""
        from jaxleak.results.page import write_page

        return write_page([self.run.path], path, trials=trials)
