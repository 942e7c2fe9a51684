"""The report of an audit: `report.json`, and what the terminal says."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxleak.data.paths import write_atomically
from jaxleak.results.store.parts import json_bytes
from jaxleak.runs.audit.determinacy import HIDDEN

MEANS = {
    "recovered": "the update gives the private data away",
    "ambiguous": "the update does not determine the data",
    "unfinished": "the attack was ended too early to say",
    "unexplained": "nothing that was assumed explains the update",
}


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write `report.json`."""
    write_atomically(folder / "report.json", json_bytes(finite(report)))


def finite(content: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """The verdict, its reasons and the hints, a line each."""
    verdict = report["verdict"]
    reasons = "; ".join(report["reasons"])
    yield f"verdict: {verdict} ({MEANS[verdict]}): {reasons}."
    found = report["determined"]
    if found is not None and verdict != "unexplained":
        hidden = found["hiding_noise"]
        noise = "no noise hides it" if hidden is None else f"noise of {hidden:.2g} on every entry would hide it (20 dB)"
        noise = "it is hidden without noise" if found["error_per_pixel"] >= HIDDEN else noise
        at_most = "" if found["exact"] else "at most "
        yield f"determined: {at_most}to {found['psnr']:.0f} dB by the update alone; {noise}."
    if report["truth"] is not None:
        truth = report["truth"]
        decibels = "exact" if truth["psnr"] is None else f"{truth['psnr']:.1f} dB"
        yield f"truth: {decibels}, {'the same image' if truth['right'] else 'another image'}."
    for hint in report["hints"]:
        yield f"hint: {hint['code']}: {hint['text']}."
