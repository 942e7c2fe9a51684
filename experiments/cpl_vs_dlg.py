"""Sirpurkar 2021 and Wei et al. 2020: CPL and DLG side by side on the same images with the same budget; CPL's alpha.

LeNet, a fresh network for each trial, at most 300 iterations. DLG from N(0, 1) as published, CPL from a 16x16 tile with
the weight of its label term, alpha, at 0 (as in the authors' code), 0.01 and 1, and two controls: CPL from N(0, 1), and
DLG from U[0, 1), so that start and label each differ alone. `torch`: the same with torch's solver, as published.

    python -m experiments.cpl_vs_dlg --data-dir DIR --images 20 --seeds 10
"""

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_all, write_json

PAPER = "CPL (Wei et al. 2020, Sirpurkar 2021)"
ALPHAS = (0.0, 0.01, 1.0)
ATTACKS = (
    replace(jaxleak.DLG, name="dlg, normal"),
    replace(jaxleak.DLG, name="dlg, uniform", init="uniform"),
    replace(jaxleak.CPL, name="cpl, normal", init="normal"),
    *(replace(jaxleak.CPL, name=f"cpl, alpha {alpha:g}", label_term=alpha) for alpha in ALPHAS),
)
DATASETS = ("lfw", "cifar100")
SOLVERS = {"": jaxleak.LBFGS(), "-torch": jaxleak.TorchLBFGS()}
MOST = 6000  # evaluations that are drawn


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 20}, seeds={"type": int, "default": 10})
    sweeps = {}
    for name in chosen_runs([data + suffix for data in DATASETS for suffix in SOLVERS], options):
        dataset, _, solver = name.partition("-")
        data = jaxleak.load_dataset(dataset, split="train", data_dir=options.data_dir)
        attacks = tuple(replace(attack, solver=SOLVERS[f"-{solver}" if solver else ""]) for attack in ATTACKS)
        victim = jaxleak.make_victim("lenet", data, data.random_indices(options.images, seed=2021))
        sweeps[name] = jaxleak.Sweep(victim=victim, attacks=attacks, seeds=options.seeds, snapshots=())
    folder = results_folder("cpl_vs_dlg")
    for name, result in run_all("cpl_vs_dlg", sweeps, options).items():
        told = [line(result.rows, attack.name) for attack in ATTACKS]
        write_json(folder / f"{name}-table.json", {"device": result.rows[0]["device"], "attacks": told})
        draw(result.rows, folder / f"{name}.png", name)


def line(rows: list[dict], attack: str) -> dict:
    """What one attack comes to: means over all trials that are finite, iterations over those solved."""
    own = [row for row in rows if row["attack"] == attack]
    solved = [row for row in own if row["success"]]
    told = {"attack": attack, "trials": len(own), "solved": len(solved)}
    told["ci95"] = jaxleak.wilson(len(solved), len(own))
    for column in ("threshold_iterations", "threshold_evaluations"):
        told[f"{column}_median"] = float(np.median([row[column] for row in solved])) if solved else None
    for column in ("ssim", "mse", "psnr", "evaluations", "seconds"):
        values = np.array([row[column] for row in own], float)
        values = values[np.isfinite(values)]
        told[column] = {"n": len(values), "mean": values.mean(), "median": float(np.median(values))}
    return told


def draw(rows: list[dict], path: Path, name: str) -> None:
    """Share of trials solved within a budget, and the fidelity they end with."""
    figure = Figure(figsize=(7.0, 3.0), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, attack in enumerate(ATTACKS):
        own = [row for row in rows if row["attack"] == attack.name]
        counts = np.sort([row["threshold_evaluations"] for row in own if row["success"]])
        share = np.arange(len(counts) + 1) / len(own)
        colour = {"color": mpl.colormaps["tab10"](place), "lw": 1.3}
        left.step([0, *counts, MOST], [*share, share[-1]], where="post", label=attack.name, **colour)
        errors = np.sort([row["mse"] for row in own if np.isfinite(row["mse"])])
        right.step(errors, np.arange(1, len(errors) + 1) / len(own), where="post", **colour)
    left.set(xlim=(0, MOST), ylim=(0, 1.02))
    left.set_xlabel("evaluations", fontsize=8)
    left.set_ylabel(f"share of trials solved, {name}", fontsize=8)
    right.set(xscale="log", ylim=(0, 1.02), xlim=(1e-7, 10))
    right.set_xlabel("MSE", fontsize=8)
    right.set_ylabel("share of trials that end below it", fontsize=8)
    for axes in (left, right):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    figure.savefig(path)


def results() -> list[tables.Results]:
    """A row each attack on each data set."""
    rows, summaries, names = [], [], [data + suffix for data in DATASETS for suffix in SOLVERS]
    for name in names:
        told = tables.stored(f"cpl_vs_dlg/{name}-table.json")
        summaries.append(told)
        for one in told["attacks"] if told else []:
            median = one["threshold_iterations_median"]
            rows.append([f"`{name}`", one["attack"], *tables.share(one), f"{median:.0f}" if median else tables.NONE])
            rows[-1] += [f"{one['ssim']['mean']:.3f}", f"{one['mse']['median']:.0e}"]
        if not told:
            rows.append([f"`{name}`", tables.NONE, tables.NOT_RUN])
    return [
        tables.Results(
            "CPL and DLG on the same images",
            "cpl_vs_dlg --seeds 5",
            ("run", "attack", "solved", "95 %", "iterations, median", "SSIM, mean", "MSE, median"),
            rows,
            tables.device(*summaries),
            (
                "Paper: CPL succeeds more often and sooner than DLG (Wei et al. 2020). MSE: pixels as found, not cut.",
                "`--only NAME` runs one. Those that end in `-torch` have `torch-lbfgs`; alpha weighs CPL's label term.",
            ),
            {name: f"cpl_vs_dlg/{name}.png" for name, told in zip(names, summaries, strict=True) if told},
        )
    ]


if __name__ == "__main__":
    main()
