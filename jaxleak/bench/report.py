"""Results of a measurement: medians and spreads, ratios, shares of what the machine can do, tables."""

import statistics
from collections.abc import Sequence
from operator import truediv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxleak.bench.settings import COSINE, DESCRIPTIONS, OURS, PHASES
from jaxleak.bench.workers import Entry
from jaxleak.results.store.environment import git_state, version_of

if TYPE_CHECKING:
    from jaxleak.bench.runner import Bench

PACKAGES = ("jaxleak", "jax", "jaxlib", "flax", "optax", "jaxopt", "numpy")
FIELDS = (
    "evaluations_per_second", "spread", "rounds", "lanes", "lane_iterations_per_second", "utilisation",
    "flops_per_second", "bytes_per_second", "share_of_matrix_product", "share_of_copy", "start_seconds",
    "compile_seconds", "memory_per_lane", "memory_measure", "peak_bytes",
)  # fmt: skip


def report(bench: "Bench") -> dict[str, Any]:
    """All results of a measurement, as JSON has them."""
    settings, machine = bench.settings, {"cores": bench.cores, **machine_rates(bench.machine)}
    chosen = {entry.name: entry for entry in bench.variants}
    variants = []
    for name in settings.only:
        entry = chosen.get(name) or Entry(name)
        variants.append({**row(entry, machine, entry.rounds), "description": DESCRIPTIONS[name]})
    versions = {name: version_of(name) for name in PACKAGES}
    for entry in bench.variants:
        versions |= entry.ready.get("versions", {})
    ratios, spreads = ratios_of(variants)
    revision, dirty = git_state(Path(__file__).parent.parent)
    return {
        "variants": variants,
        "ratios": ratios,
        "ratios_spread": spreads,
        "lanes": [{**row(entry, machine, entry.trial), "asked": entry.lanes} for entry in bench.tried],
        "profile": profile(bench.phases, variants),
        "machine": machine,
        "device": bench.device,
        "versions": versions,
        "git_revision": revision,
        "git_dirty": dirty,
        "settings": settings.plain(),
        "setup_seconds": bench.setup_seconds,
        "measured_seconds": bench.measured_seconds,
        "interrupted": bench.interrupted,
    }


def machine_rates(entry: Entry) -> dict[str, Any]:
    """Median rates of the machine, and what one evaluation asks of it."""
    rates: dict[str, Any] = {"evaluation": entry.ready.get("evaluation")}
    for kind in ("flops_per_second", "bytes_per_second", "cached_bytes_per_second"):
        values = [measured[kind] for measured in entry.rounds]
        rates[kind] = statistics.median(values) if values else None
        rates[f"{kind}_spread"] = [min(values), max(values)] if values else None
    return rates | {key: entry.ready.get(key) for key in ("matrix_size", "copied_bytes")}


def blank() -> dict[str, Any]:
    """A row without numbers."""
    return dict.fromkeys(FIELDS)


def row(entry: Entry, machine: dict[str, Any], rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One variant: medians over the rounds."""
    if not rounds:
        return {"name": entry.name, **blank(), **_looked_at(entry)}
    ready = entry.ready
    rates = [measured["evaluations_per_second"] for measured in rounds]
    iterations = [measured["lane_iterations_per_second"] for measured in rounds]
    rate = statistics.median(rates)
    peak = max(measured["peak_bytes"] for measured in rounds)
    compiled = ready.get("memory_per_lane")
    columns = {
        "evaluations_per_second": rate,
        "spread": [min(rates), max(rates)],
        "rounds": rates,
        "lanes": ready["lanes"],
        "lane_iterations_per_second": statistics.median(iterations),
        "utilisation": statistics.median(map(truediv, rates, iterations)) if entry.name in OURS else None,
        "start_seconds": ready.get("start_seconds"),
        "compile_seconds": ready["compile_seconds"],
        "memory_per_lane": (peak - ready["held_bytes"]) / ready["lanes"] if compiled is None else compiled,
        "memory_measure": "resident" if compiled is None else "compiled",
        "peak_bytes": peak,
        **({} if entry.name in COSINE else shares(rate, machine)),  # the work that is known is DLG's
    }
    return {"name": entry.name, **blank(), **columns, **({"failed": entry.failed} if entry.failed else {})}


def _looked_at(entry: Entry) -> dict[str, Any]:
    """Columns of a variant without a round: its first look if it was interrupted after that, else its failure."""
    if entry.failed or not entry.trial:
        return {"failed": entry.failed or "interrupted"}
    rate = entry.trial[-1]["evaluations_per_second"]
    look = {"evaluations_per_second": rate, "lanes": entry.ready["lanes"]}
    return {**look, "failed": "interrupted before its first round; the number is its first look's"}


def shares(rate: float, machine: dict[str, Any]) -> dict[str, Any]:
    """Operations and bytes per second that `rate` evaluations need, and their share of the machine's own rates."""
    work = machine["evaluation"]
    if work is None:
        return {}
    figures: dict[str, Any] = {"flops_per_second": rate * work["flops"], "bytes_per_second": rate * work["bytes"]}
    if machine["flops_per_second"]:
        figures["share_of_matrix_product"] = figures["flops_per_second"] / machine["flops_per_second"]
        figures["share_of_copy"] = figures["bytes_per_second"] / machine["bytes_per_second"]
    return figures


def ratios_of(variants: Sequence[dict[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Evaluations per second of jaxleak's variants over those of the others that run the same attack.

    Returns:
        `{ours: {other: ratio of the medians}}`, and the same with [smallest, largest] ratio within one round.
    """
    measured = {variant["name"]: variant for variant in variants if variant["rounds"]}
    ratios: dict[str, dict[str, float]] = {}
    spreads: dict[str, dict[str, list[float]]] = {}
    for ours in (name for name in OURS if name in measured):
        for other in (name for name in measured if name not in OURS and (name in COSINE) == (ours in COSINE)):
            mine, theirs = measured[ours], measured[other]
            ratio = mine["evaluations_per_second"] / theirs["evaluations_per_second"]
            ratios.setdefault(ours, {})[other] = ratio
            by_round = [a / b for a, b in zip(mine["rounds"], theirs["rounds"], strict=False) if b]
            spreads.setdefault(ours, {})[other] = [min(by_round), max(by_round)]
    return ratios, spreads


def profile(phases: Sequence[Entry], variants: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Microseconds per lane-step and core: each phase, and `bookkeeping`, what of a step no phase explains.

    `engine` is the variant itself, per useful evaluation: finished lanes, refills and the host included.
    """
    microseconds: dict[str, dict[str, float]] = {}
    for entry in phases:
        if entry.rounds:
            rate = statistics.median(measured["lane_iterations_per_second"] for measured in entry.rounds)
            microseconds.setdefault(entry.name, {})[entry.phase] = 1e6 * entry.ready["devices"] / rate
            if entry.phase == PHASES[-1]:
                whole = next(variant for variant in variants if variant["name"] == entry.name)
                microseconds[entry.name]["engine"] = 1e6 * entry.ready["devices"] / whole["evaluations_per_second"]
    for times in microseconds.values():
        if set(PHASES) <= times.keys():
            times["bookkeeping"] = times["step"] - times["objective-and-gradient"] - times["solver"]
    return microseconds
