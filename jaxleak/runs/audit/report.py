"""The report of an audit: `report.json`, and what the terminal says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxleak.data.paths import write_atomically
from jaxleak.results.store.parts import json_bytes

MEANS = {
    "recovered": "the update gives the private data away",
    "ambiguous": "the update does not determine the data",
    "unfinished": "the attack was ended too early to say",
    "unexplained": "nothing that was assumed explains the update",
}


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write `report.json`."""
    write_atomically(folder / "report.json", json_bytes(report))


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """The verdict, its reasons and the hints, a line each."""
    verdict = report["verdict"]
    reasons = "; ".join(report["reasons"])
    yield f"verdict: {verdict} ({MEANS[verdict]}): {reasons}."
    found = report["determined"]
    if found is not None:
        hidden = found["hiding_noise"]
        noise = "no noise hides it" if hidden is None else f"noise of {hidden:.2g} on every entry would hide it (20 dB)"
        yield f"determined: to {found['psnr']:.0f} dB by the update alone; {noise}."
    if report["truth"] is not None:
        truth = report["truth"]
        yield f"truth: {truth['psnr']:.1f} dB, {'the same image' if truth['right'] else 'another image'}."
    for hint in report["hints"]:
        yield f"hint: {hint['code']}: {hint['text']}."
