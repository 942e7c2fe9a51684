"""Wei et al. 2020 (CPL) and Sirpurkar 2021, figures 5, 6, 7 and 9: where an attack starts.

CPL (label from the head's gradient) from every start, DLG (label optimised too) from four of them, on the same images,
with a fresh network for each trial and jaxleak's default solver, at most 300 iterations. The unpatterned U[0, 1) start
is the control: the papers compare tiles of U[0, 1) pixels with N(0, 1) pixels, whose distribution differs too.

    python -m experiments.cpl_starts --data-dir DIR --images 20 --seeds 10
"""

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder, run_all, write_json

PAPER = "CPL (Wei et al. 2020, Sirpurkar 2021)"
STARTS = (
    *("normal", "uniform", "pattern-16", "pattern-8", "pattern-4", "surrogate"),
    *("black", "white", "red", "green", "blue"),
)
DLG_STARTS = ("normal", "uniform", "pattern-16", "black")
SHOWN = ("normal", "uniform", "pattern-16", "pattern-8", "pattern-4", "surrogate", "black", "white")
SNAPSHOTS = (0, 1, 5, 10, 20, 30, 40, 60, 80)
COLUMNS = (0, 5, 10, 20, 40, 80)
DATASETS = ("lfw", "cifar100")
CURVE = 150  # iterations that are drawn


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 20}, seeds={"type": int, "default": 10})
    attacks = tuple(replace(jaxleak.CPL, name=f"cpl {start}", init=start) for start in STARTS)
    attacks += tuple(replace(jaxleak.DLG, name=f"dlg {start}", init=start) for start in DLG_STARTS)
    sweeps = {}
    for name in DATASETS:
        data = jaxleak.load_dataset(name, split="train", data_dir=options.data_dir)
        victim = jaxleak.make_victim("lenet", data, data.random_indices(options.images, seed=2021))
        sweeps[name] = jaxleak.Sweep(victim=victim, attacks=attacks, seeds=options.seeds, snapshots=SNAPSHOTS)
    folder = results_folder("cpl_starts")
    for name, result in run_all("cpl_starts", sweeps, options).items():
        told = [table(result, attack.name) for attack in attacks]
        write_json(folder / f"{name}-starts.json", {"device": result.rows[0]["device"], "starts": told})
        curves(result, folder / f"{name}-curves.png", name)
        iterations(told, folder / f"{name}-iterations.png", name)
        grid(result, folder / f"{name}-grid.png")


def table(result: jaxleak.Result, attack: str) -> dict:
    """Success, iterations to it (of those solved) and fidelity from one start."""
    rows = [row for row in result.rows if row["attack"] == attack]
    solved = sum(row["success"] for row in rows)
    counts = [row["threshold_iterations"] for row in rows if row["success"]]
    return {
        "attack": attack,
        "trials": len(rows),
        "solved": solved,
        "ci95": jaxleak.wilson(solved, len(rows)),
        "iterations_quartiles": np.percentile(counts, [25, 50, 75]).tolist() if counts else None,
        "iterations_mean": float(np.mean(counts)) if counts else None,
        "labels_right": sum(row["label_correct"] for row in rows),
        "ssim_mean": float(np.nanmean([row["ssim"] for row in rows])),
        "mse_median": float(np.nanmedian([row["mse"] for row in rows])),
    }


def looks(attack: str) -> dict:
    """Line and colour: one colour a start, DLG dashed."""
    label, start = attack.split()
    place = SHOWN.index(start) if start in SHOWN else 0
    return {"color": mpl.colormaps["tab10"](place), "ls": "--" if label == "dlg" else "-", "lw": 1.2, "label": attack}


def curves(result: jaxleak.Result, path: Path, name: str) -> None:
    """Median over trials of objective and MSE against iterations; a trial that has ended stays where it ended."""
    figure = Figure(figsize=(7.0, 3.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2)
    kinds = [f"cpl {start}" for start in SHOWN] + ["dlg normal", "dlg uniform", "dlg pattern-16"]
    for axes, key in zip(panels, ("objective_trace", "mse_trace"), strict=True):
        for kind in kinds:
            trials = [row["trial"] for row in result.rows if row["attack"] == kind]
            traces = jaxleak.hold_last(result.run.arrays([key], trials=trials)[key])[:, : CURVE + 1]
            axes.semilogy(np.nanmedian(traces, axis=0), **looks(kind))
        axes.set_xlabel("iteration", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"median objective, {name}", fontsize=8)
    panels[1].set_ylabel("median MSE", fontsize=8)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    figure.savefig(path)


def iterations(told: list[dict], path: Path, name: str) -> None:
    """Iterations to an objective below 1e-4 (median and quartiles of the solved trials), and the share solved."""
    figure = Figure(figsize=(7.0, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, one in enumerate(reversed(told)):
        colour = looks(one["attack"])["color"] if one["attack"].split()[1] in SHOWN else "grey"
        marker = "o" if one["attack"].startswith("cpl") else "s"
        if one["iterations_quartiles"]:
            low, middle, high = one["iterations_quartiles"]
            left.plot([low, high], [place, place], color=colour, lw=1.2)
            left.plot(middle, place, marker, color=colour, ms=4)
        right.plot(one["ci95"], [place, place], color=colour, lw=1.2)
        right.plot(one["solved"] / one["trials"], place, marker, color=colour, ms=4)
    left.set_yticks(range(len(told)), [one["attack"] for one in reversed(told)], fontsize=7)
    left.set_xlabel(f"iterations to 1e-4, {name}", fontsize=8)
    left.set_xlim(left=0)
    right.set_xlabel(f"share solved, 95 % interval, n = {told[0]['trials']}", fontsize=8)
    right.set_xlim(min(0.8, *(one["ci95"][0] for one in told)), 1.005)
    for axes in (left, right):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def grid(result: jaxleak.Result, path: Path) -> None:
    """One image from each start, at chosen iterations: the trial with seed 0."""
    image = result.rows[0]["image"]
    shown = [f"cpl {start}" for start in STARTS] + [f"dlg {start}" for start in DLG_STARTS]
    rows = {row["attack"]: row for row in result.rows if row["image"] == image and row["seed"] == 0}
    figure = Figure(figsize=(4.2, 0.52 * len(shown) + 0.3), dpi=80)
    panels = figure.subplots(len(shown), len(COLUMNS), subplot_kw={"xticks": [], "yticks": []})
    figure.subplots_adjust(left=0.22, right=0.995, top=0.965, bottom=0.005, wspace=0.05, hspace=0.05)
    for line, kind in zip(panels, shown, strict=True):
        pictures = result.run.arrays(["snapshots"], trials=[rows[kind]["trial"]])["snapshots"][0]
        for axes, iteration in zip(line, COLUMNS, strict=True):
            picture = pictures[SNAPSHOTS.index(iteration)]
            axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if kind == shown[0]:
                axes.set_title(iteration, fontsize=7, pad=2)
        line[0].set_ylabel(kind, fontsize=6, rotation=0, ha="right", va="center")
    figure.savefig(path)


def results() -> list[tables.Results]:
    """A table a data set: a row each start."""
    return [results_on(name) for name in DATASETS]


def results_on(dataset: str) -> tables.Results:
    told = tables.stored(f"cpl_starts/{dataset}-starts.json")
    rows = [[tables.NOT_RUN]]
    if told:
        rows = [[one["attack"], *tables.share(one)] for one in told["starts"]]
        for row, one in zip(rows, told["starts"], strict=True):
            row += [f"{one['iterations_quartiles'][1]:.0f}"] if one["iterations_quartiles"] else []
    return tables.Results(
        f"Figures 5, 6, 7 and 9: starts on {dataset}",
        f"cpl_starts --only {dataset}",
        ("attack, start", "solved", "95 %", "iterations to 1e-4, median"),
        rows,
        tables.device(told),
        (
            "Paper: a 16x16 tile needs fewer iterations than N(0, 1) pixels (Wei et al. 2020; curves, no rates).",
            "`pattern-16`: the paper's level 1, a 16x16 tile 2x2 times. `pattern-8`: level 2, 8x8, 4x4 times.",
        ),
        {kind: f"cpl_starts/{dataset}-{kind}.png" for kind in ("iterations", "curves", "grid")},
    )


if __name__ == "__main__":
    main()
