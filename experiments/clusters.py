"""How large a cluster a sweep can use: the real scheduler on a simulated clock, 1 to 1,000 workers.

A worker has 256 lanes, a trial takes a median of 30 s in its lane (log-normal, 0.6), a worker that joins compiles for
40 s; what the driver needs to judge and write a trial is measured here first. `same sweep`: a million trials, however
many workers. `grows`: 10,000 trials for each worker, up to 100. Each quiet, with a failure of every worker every two
hours (back after a minute), with a tenth of the workers three times slower, and with both. Efficiency is the share of
all lanes' seconds that ended in a result.

    python -m experiments.clusters
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments import tables
from experiments.harness import results_folder, write_json
from jaxleak.bench.cluster import KINDS, Cluster, measure_driver, simulate

PAPER = "Speed"
SWEEPS = {"same sweep": ((1, 10, 100, 300, 1000), 1_000_000, 0), "grows": ((1, 10, 100), 0, 10_000)}


def main() -> None:
    lines, driver = [], measure_driver()
    print(f"driver: {1000 * driver:.2f} ms a trial", flush=True)
    for sweep, (counts, total, each) in SWEEPS.items():
        for count in counts:
            for kind, changes in KINDS.items():
                told = simulate(replace(Cluster(count, driver_seconds=driver), **changes), total + each * count)
                lines.append({"sweep": sweep, "cluster": kind, **told})
                print(f"{sweep}, {count} workers, {kind}: efficiency {told['efficiency']:.3f}", flush=True)
    folder = results_folder("clusters")
    write_json(folder / "simulation.json", {"settings": vars(Cluster(1, driver_seconds=driver)), "lines": lines})
    draw(lines, folder / "clusters.png")


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Efficiency against workers, a panel for each sweep."""
    figure = Figure(figsize=(7.2, 2.7), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(SWEEPS), sharey=True)
    titles = {"same sweep": "a million trials in all", "grows": "10,000 trials for each worker"}
    for axes, sweep in zip(panels, SWEEPS, strict=True):
        for place, kind in enumerate(KINDS):
            own = [line for line in lines if line["sweep"] == sweep and line["cluster"] == kind]
            x, y = [line["workers"] for line in own], [line["efficiency"] for line in own]
            color = mpl.colormaps["tab10"](place)
            axes.semilogx(x, y, marker="os^D"[place], ms=4, lw=1, color=color, label=kind)
        axes.set_title(titles[sweep], fontsize=9)
        axes.set_xlabel("workers", fontsize=8)
        axes.set_ylim(0, 1.02)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("efficiency", fontsize=8)
    panels[0].legend(fontsize=7, frameon=False, loc="lower left")
    figure.savefig(path)


def results() -> list[tables.Results]:
    """A row each simulated cluster."""
    told = tables.stored("clusters/simulation.json")
    rows = []
    for one in told["lines"] if told else []:
        cells = [f"{one['seconds'] / 3600:.2f}", f"{one['efficiency']:.3f}", f"{one['driver_share']:.2f}"]
        rows.append([one["sweep"], f"{one['workers']:,}", one["cluster"], *cells])
        rows[-1] += [f"{one[key]:,}" for key in ("repeated", "lost")]
    return [
        tables.Results(
            "Simulated clusters",
            "clusters",
            ("sweep", "workers", "cluster", "hours", "efficiency", "driver busy", "trials begun again", "lost"),
            rows or [["all", tables.NOT_RUN]],
            "",
            ("Efficiency: the share of all lanes' seconds that ended in a result.",),
            {"figure": "clusters/clusters.png"},
        )
    ]


if __name__ == "__main__":
    main()
