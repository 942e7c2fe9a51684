"""Sirpurkar 2021, figures 3, 4 and 8: objective and MSE over the iterations of DLG, of CPL, and of CPL on a batch.

The network of CPL's code (four convolutions, `lenet-cpl`), a fresh one for each trial, LFW at 32 pixels, torch's
L-BFGS, 300 iterations, no stop at a small objective. `dlg` starts from N(0, 1) and optimises the label. `cpl` starts
from a 16x16 tile and reads the label. In `batch-8` and `batch-10` all images have one label, and a single dummy stands
for them, as in CPL's code. Its notebooks print objectives of one trial each, which stand beside ours.

    python -m experiments.cpl_figures --data-dir DIR --images 20 --seeds 2
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments import harness, tables
from experiments.harness import DLG, arguments, results_folder, run_all

PAPER = "CPL (Wei et al. 2020, Sirpurkar 2021)"
CPL = replace(jaxleak.CPL, solver=DLG.solver, stop_objective=0.0)
RUNS = {
    "dlg": (1, replace(DLG, stop_objective=0.0)),
    "cpl": (1, CPL),
    "batch-8": (8, replace(CPL, dummies=1)),
    "batch-10": (10, replace(CPL, dummies=1)),
}
FIGURES = {"dlg": "figure 3, DLG", "cpl": "figure 4, CPL", "batch-8": "batch of 8", "batch-10": "figure 8, batch of 10"}
AT = (1, 6, 11, 16, 100, 295)
# Objectives that the notebooks of CPL's code print; floors stand for what lies behind them.
NOTEBOOKS = {
    "dlg": {1: 29.3, 6: 2.72, 11: 0.896, 100: 3.0e-4, 295: 3.4e-6},
    "cpl": {1: 1.162, 6: 0.0204, 11: 0.00403, 16: 0.00134, 295: 1.3e-6},
    "batch-8": {1: 1.359, 295: 1.66e-3},
    "batch-10": {},
}


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 20}, seeds={"type": int, "default": 2})
    data = jaxleak.load_dataset("lfw", split="train", data_dir=options.data_dir)
    sweeps = {}
    for name, (batch, attack) in RUNS.items():
        if batch == 1:
            images = data.random_indices(options.images, seed=2021)
        else:
            images = data.random_batches(options.images, batch, seed=2021, labels="same")
        victim = jaxleak.make_victim("lenet-cpl", data, images, batch=batch)
        sweeps[name] = jaxleak.Sweep(victim=victim, attacks=(attack,), seeds=options.seeds, snapshots=())
    results, folder = run_all("cpl_figures", sweeps, options), results_folder("cpl_figures")
    for name, result in results.items():
        lines = "".join(json.dumps(line) + "\n" for line in points(result))
        (folder / f"{name}-points.jsonl").write_text(lines)
    draw(results, folder / "curves.png")


def traces(result: jaxleak.Result, key: str) -> np.ndarray:
    """After each iteration [trial, iteration]; a trial that has ended stays where it ended."""
    trials = [row["trial"] for row in result.rows]
    return jaxleak.hold_last(result.run.arrays([key], trials=trials)[key])


def points(result: jaxleak.Result) -> list[dict[str, Any]]:
    """A line each trial: objective and MSE at some of the iterations."""
    objective, mse = (traces(result, key) for key in ("objective_trace", "mse_trace"))
    lines = []
    for row, values, errors in zip(result.rows, objective, mse, strict=True):
        values, errors = ({step: float(kept[step]) for step in AT} for kept in (values, errors))
        device = {"device": row["device"], "git_revision": row["git_revision"], "git_dirty": row["git_dirty"]}
        lines.append({"trial": row["trial"], "objective": values, "mse": errors, **device})
    return lines


def draw(results: dict[str, jaxleak.Result], path: Path) -> None:
    """A column each run: all trials in grey, their median, and what the notebooks print."""
    figure = Figure(figsize=(2.2 * len(results) + 0.6, 4.0), dpi=140, layout="constrained")
    panels = figure.subplots(2, len(results), sharex=True, sharey="row", squeeze=False)
    for column, (name, result) in zip(panels.T, results.items(), strict=True):
        for axes, key in zip(column, ("objective_trace", "mse_trace"), strict=True):
            kept = traces(result, key)[:, 1:]
            steps = np.arange(1, kept.shape[1] + 1)
            axes.loglog(steps, kept.T, color="0.8", lw=0.5)
            axes.loglog(steps, np.nanmedian(kept, axis=0), color="tab:blue", lw=1.5, label="median")
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        printed = NOTEBOOKS[name]
        column[0].plot([*printed.keys()], [*printed.values()], "x", color="tab:red", ms=5)
        column[0].set_title(f"{FIGURES[name]}, n = {len(result.rows)}", fontsize=8)
        column[1].set_xlabel("iteration", fontsize=8)
    for axes, label, limits in zip(panels[:, 0], ("objective", "MSE"), ((1e-7, 1e3), (1e-6, 10)), strict=True):
        axes.set_ylabel(label, fontsize=8)
        axes.set_ylim(limits)  # trials that diverge leave it
    panels[0, 0].plot([], [], color="0.8", lw=1, label="each trial")
    panels[0, 0].plot([], [], "x", color="tab:red", ms=5, label="notebook of CPL's code")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7)
    figure.savefig(path)


def stored_points(name: str) -> list[dict[str, Any]]:
    """What `points` wrote; empty if the run was not made."""
    path = harness.RESULTS / f"cpl_figures/{name}-points.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results() -> list[tables.Results]:
    """A row each run and iteration."""
    rows, devices = [], []
    for name in RUNS:
        lines = stored_points(name)
        devices += lines[:1]
        for step in AT if lines else ():
            told = NOTEBOOKS[name].get(step)
            values, errors = ([line[key][str(step)] for line in lines] for key in ("objective", "mse"))
            low, middle, high = (f"{value:.2g}" for value in np.nanpercentile(values, (25, 50, 75)))
            cells = [middle, f"{low} to {high}", f"{np.nanmedian(errors):.2g}", len(lines)]
            rows.append([f"`{name}`", step, f"{told:.2g}" if told else tables.NONE, *cells])
        if not lines:
            rows.append([f"`{name}`", tables.NONE, tables.NONE, tables.NOT_RUN])
    ours = ("objective, median", "quartiles", "MSE, median", "n")
    return [
        tables.Results(
            "Figures 3, 4 and 8: objective and MSE over the iterations",
            "cpl_figures",
            ("run", "iteration", "notebook: objective", *ours),
            rows,
            tables.device(*devices),
            (
                "Figure 3: `dlg`. Figure 4: `cpl`. Figure 8: `batch-10`. A notebook has a batch of eight, `batch-8`.",
                "Notebook: one trial of CPL's code. It lies at its floor from iteration 105 on in `cpl`.",
                "MSE of a batch: the mean over its images, each beside the one dummy. Pixels as found, not cut.",
            ),
            {"curves": "cpl_figures/curves.png"} if devices else {},
        )
    ]


if __name__ == "__main__":
    main()
