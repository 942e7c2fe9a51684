"""The report of a measurement as tables for the terminal."""

from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Group
from rich.table import Table

from jaxleak.bench.models import Measured
from jaxleak.bench.settings import COSINE, PHASES

TIMES = (*PHASES, "bookkeeping", "engine")


def tables(report: dict[str, Any]) -> Group:
    """Rates, ratios, lane counts and profile, as far as they were measured."""
    parts: list[Any] = [_variants(report), *_failures(report)]
    if report["ratios"]:
        parts.append(_ratios(report))
    if report["lanes"]:
        parts.append(_lanes(report))
    if report["profile"]:
        parts.append(_profile(report))
    return Group(*parts, _machine(report))


def account_table(report: dict[str, Any]) -> Table:
    """What a step costs on a GPU, by groups of kernels."""
    title = f"{report['device']}, {report['model']}, {report['variant']}, {report['lanes']} lanes: one step"
    fits = f"{report['lane_bytes'] / 1e6:.2f} MB a lane, {report['lanes_that_fit']:,} lanes fit"
    rate = f"at most {report['evaluations_per_second']:,.0f} evaluations/s"
    calls = f"{report['library_calls']} of its kernels are a library's, {report['reduced']} below full precision"
    caption = f"Compiled, not run: {rate}. {fits}. {calls}. Least time: by bytes or operations, launches not counted."
    table = Table(title=title, caption=caption)
    for column in ("kernels of", "kernels", "MB", "GFLOP", "least time, us"):
        table.add_column(column, justify="left" if column == "kernels of" else "right")
    for line in (*report["groups"], {"group": "all", **report}):
        numbers = f"{line['bytes'] / 1e6:,.0f}", f"{line['flops'] / 1e9:.2f}", f"{line['seconds'] * 1e6:,.0f}"
        table.add_row(line["group"], str(line["kernels"]), *numbers)
    return table


def _number(value: float | None, form: str = ",.0f", scale: float = 1.0) -> str:
    return "–" if value is None else format(value * scale, form)


def _rate(value: float | None) -> str:
    """Whole numbers from 100 on, one decimal below."""
    return _number(value, ",.0f" if value is None or value >= 100 else ",.1f")


def _variants(report: dict[str, Any]) -> Table:
    settings = report["settings"]
    model = settings["model"] + (f", width {settings['width']}" if settings["width"] is not None else "")
    work = {"lbfgs": f"L-BFGS, history {settings['history']}", "adam": "Adam"}[settings["solver"]]
    work += "; cosine: signed Adam" if any(row["name"] in COSINE for row in report["variants"]) else ""
    table = Table(title=f"{model}, {work}, float32, {report['device']}: medians of the rounds")
    for column in (
        *("variant", "lanes", "evaluations/s", "min to max", "lane-iterations/s", "useful"),
        *("GFLOP/s", "GB/s", "of products", "of copies", "compile s", "MB a lane"),
    ):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=column == "variant")
    for row in report["variants"]:
        spread = row["spread"]
        table.add_row(
            row["name"],
            _number(row["lanes"]),
            _rate(row["evaluations_per_second"]),
            "–" if spread is None else f"{_rate(spread[0])} to {_rate(spread[1])}",
            _rate(row["lane_iterations_per_second"]),
            _number(row["utilisation"], ".0%"),
            _number(row["flops_per_second"], ".1f", 1e-9),
            _number(row["bytes_per_second"], ".1f", 1e-9),
            _number(row["share_of_matrix_product"], ".0%"),
            _number(row["share_of_copy"], ".0%"),
            _number(row["compile_seconds"], ".1f"),
            _number(row["memory_per_lane"], ".1f", 1e-6),
        )
    return table


def _failures(report: dict[str, Any]) -> list[str]:
    return [f"{row['name']}: {row['failed']}" for row in report["variants"] if "failed" in row]


def _ratios(report: dict[str, Any]) -> Table:
    table = Table(title="Times as many evaluations/s (smallest and largest of a round)")
    others = list(dict.fromkeys(other for ratios in report["ratios"].values() for other in ratios))
    table.add_column("")
    for other in others:
        table.add_column(other, justify="right")
    for ours, ratios in report["ratios"].items():
        spreads = report["ratios_spread"][ours]
        cells = {o: f"{ratios[o]:.1f} ({spreads[o][0]:.1f} to {spreads[o][1]:.1f})" for o in ratios}
        table.add_row(ours, *(cells.get(other, "–") for other in others))
    return table


def _lanes(report: dict[str, Any]) -> Table:
    table = Table(title="Evaluations/s by lanes, measured once each")
    rows = report["lanes"]
    counts = list(dict.fromkeys(str(row["asked"]) for row in rows))
    table.add_column("lanes")
    for count in counts:
        table.add_column(count, justify="right")
    for name in dict.fromkeys(row["name"] for row in rows):
        rates = {str(row["asked"]): row["evaluations_per_second"] for row in rows if row["name"] == name}
        table.add_row(name, *(_rate(rates.get(count)) for count in counts))
    return table


def _profile(report: dict[str, Any]) -> Table:
    table = Table(title="Microseconds per lane-step and core")
    table.add_column("")
    for time in TIMES:
        table.add_column(time, justify="right")
    for name, times in report["profile"].items():
        table.add_row(name, *(_number(times.get(time)) for time in TIMES))
    return table


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    work = machine["evaluation"] or {"flops": None, "bytes": None}
    return (
        f"One evaluation and step of DLG needs {_number(work['flops'], '.1f', 1e-6)} MFLOP and "
        f"{_number(work['bytes'], '.1f', 1e-6)} MB of the solver's memory. The machine: "
        f"{_number(machine['flops_per_second'], '.0f', 1e-9)} GFLOP/s in float32 matrix products, "
        f"{_number(machine['bytes_per_second'], '.1f', 1e-9)} GB/s in copies within main memory, "
        f"{_number(machine['cached_bytes_per_second'], '.1f', 1e-9)} GB/s within caches (16 MiB; read and written)."
    )


def models_table(lines: Sequence[Measured]) -> Table:
    """`jaxleak models`: a line for each model."""
    device = jax.devices()[0]
    table = Table(title=f"Models with 100 classes on {len(jax.devices())} x {device.device_kind}", box=None)
    for heading in ("model", "parameters", "input", "MB a lane", "evaluations/s", "compiled in"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for line in lines:
        table.add_row(
            line.model,
            f"{line.parameters:,}",
            "x".join(map(str, line.input)),
            "–" if line.megabytes is None else f"{line.megabytes:,.1f}",
            "–" if line.rate is None else f"{line.rate:,.1f}",
            "–" if line.compile_seconds is None else f"{line.compile_seconds:,.0f} s",
        )
    return table
