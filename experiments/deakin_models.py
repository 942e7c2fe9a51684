"""The Deakin report of 2022 (Figures 7 to 12, Table 2): DLG against LeNet, ResNet-18, DenseNet-121 and Inception v3.

MSE against iterations, ReLU replaced by a sigmoid, inputs normalised by ImageNet's statistics, the embedded photographs
at 32 pixels (LeNet, weights U(-0.5, 0.5)), 224 (ResNet-18, DenseNet-121) and 299 (Inception v3, two images at once; all
three with torch's initialisation and 1,000 classes, BatchNorm in train mode, as torch makes a model). `lenet-plain` has
pixels in [0, 1] as they are. `dlg` is the published attack; `relative` has the label, jaxleak's L-BFGS and an objective
measured tensor by tensor (LeNet's as a whole). The deep networks get few iterations (the table has the number), not the
report's 300: ResNet-18 takes an hour for those. On a GPU: `--iterations 300 --images 4 --seeds 4`.

    python -m experiments.deakin_models
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments import harness, tables
from experiments.harness import DLG, arguments, chosen_runs, results_folder, run_one, write_json
from experiments.sheet import draw_sheet, picture

PAPER = "Deakin report 2022"
CLASSES = 1000  # of ImageNet, as in the models' published sizes
PUBLISHED, PER_ITERATION = 300, 20  # iterations, and evaluations of each


@dataclass(frozen=True)
class Setting:
    """A network: its fields, the side of its images, iterations without `--iterations`, images an update."""

    model: str
    fields: dict[str, Any]
    size: int
    iterations: int = 20
    batch: int = 1
    scale: str = "per-tensor"
    normalise: str = "imagenet"
    network: str = "shared"


DEEP = {"activation": "sigmoid", "weight_init": "torch", "train": True}
SETTINGS = {
    "lenet": Setting("lenet", {}, 32, PUBLISHED, scale="relative"),
    "lenet-plain": Setting("lenet", {}, 32, PUBLISHED, scale="relative", normalise="none", network="per-trial"),
    "resnet18": Setting("resnet18", DEEP | {"stem": "imagenet"}, 224),
    "densenet121": Setting("densenet121", DEEP | {"stem": "imagenet"}, 224),
    "inception3": Setting("inception3", DEEP, 299, 3, batch=2),
}
PAPER_SAYS = {  # as quoted in the comparison papers
    "lenet": "converges in about 100 steps",
    "resnet18": "needs more than 300 steps; MSE an order above LeNet's",
    "densenet121": "converges in about 50 steps; MSE an order above LeNet's",
    "inception3": "does not converge in 300 steps (batch 2)",
}


def main() -> None:
    numbers = {"iterations": None, "images": 1, "seeds": 1}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    folder, results = results_folder("deakin_models"), {}
    for name in chosen_runs(SETTINGS, options):
        setting = SETTINGS[name]
        small = setting.iterations == PUBLISHED  # as much on any machine
        iterations = setting.iterations if small else options.iterations or setting.iterations
        sweep = jaxleak.Sweep(
            victim=victim(setting, 4 if small else options.images),
            attacks=attacks(iterations, setting.scale),
            seeds=4 if small else options.seeds,
            snapshots=(),
        )
        results[name] = run_one("deakin_models", name, sweep, options)
        write_json(folder / f"{name}-table.json", table(name, iterations, results[name]))
        pictures(results[name], folder / f"{name}.png")
    only_lenet = results.keys() <= {"lenet", "lenet-plain"}
    curves(results, folder / f"curves{'-lenet' * only_lenet}.png")


def victim(setting: Setting, updates: int) -> jaxleak.Victim:
    """The first photographs, in as many updates."""
    data = jaxleak.load_dataset("photos", image_size=setting.size)
    data = replace(data, class_names=(*data.class_names, *map(str, range(len(data.class_names), CLASSES))))
    return jaxleak.make_victim(
        setting.model,
        data,
        list(range(updates * setting.batch)),
        fields=setting.fields,
        normalise=setting.normalise,
        network=setting.network,
        batch=setting.batch,
    )


def attacks(iterations: int, scale: str) -> tuple[jaxleak.Attack, ...]:
    """The published attack and ours, with the same budget in evaluations."""
    ours = replace(jaxleak.IDLG, name="relative", label="known", scale=scale, stop_objective=0.0)
    budget = iterations * PER_ITERATION
    return replace(DLG, iterations=iterations), replace(ours, iterations=iterations, max_evaluations=budget)


def table(name: str, iterations: int, result: jaxleak.Result) -> dict[str, Any]:
    """Of each attack: how near its images came, and the network's size."""
    victim, setting = result.run.settings["victim"], SETTINGS[name]
    model = jaxleak.build_model(setting.model, victim["num_classes"], **setting.fields)
    return {
        "model": name,
        "device": result.rows[0]["device"],
        "parameters": jaxleak.parameter_count(model, tuple(victim["image_shape"])),
        "size": setting.size,
        "batch": setting.batch,
        "iterations": iterations,
        "cells": [cell(attack, result) for attack in dict.fromkeys(row["attack"] for row in result.rows)],
    }


def cell(attack: str, result: jaxleak.Result) -> dict[str, Any]:
    """Of one attack."""
    rows = [row for row in result.rows if row["attack"] == attack]
    back, shape = (sum(row[key] < 0.2 for row in rows) for key in ("relative_error", "affine_error"))
    medians = ("mse_clipped", "psnr", "affine_error", "evaluations", "relative_objective")
    told = {"attack": attack, "trials": len(rows), "recovered": back, "ci95": jaxleak.wilson(back, len(rows))}
    told["recovered_but_affine"] = shape
    return told | {f"{key}_median": float(np.nanmedian([row[key] for row in rows])) for key in medians}


def pictures(result: jaxleak.Result, path: Path) -> None:
    """Each image, and seed 0 of each attack; the images of a batch as one picture."""
    truth, rows = result.run.truth(), sorted(result.rows, key=lambda row: row["trial"])
    lines = [("truth", [(pixels, "") for pixels in truth["pixels"]])]
    for attack in dict.fromkeys(row["attack"] for row in rows):
        first = [row for row in rows if row["attack"] == attack and row["seed"] == 0]
        lines.append((attack, [(picture(result, row), f"{row['psnr']:.1f} dB") for row in first]))
    draw_sheet(lines, path)


def curves(results: dict[str, jaxleak.Result], path: Path) -> None:
    """MSE against iterations, a line for each trial, a panel for each attack."""
    names = list(dict.fromkeys(row["attack"] for result in results.values() for row in result.rows))
    figure = Figure(figsize=(3.3 * len(names), 2.7), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, attack in zip(panels, names, strict=True):
        for place, (name, result) in enumerate(results.items()):
            trials = [row["trial"] for row in result.rows if row["attack"] == attack]
            for number, trace in enumerate(result.run.arrays(keys=["mse_trace"], trials=trials)["mse_trace"]):
                shown = np.where(trace < 30, trace, np.nan)  # a trial that diverges leaves the figure
                steps = np.arange(1, len(shown) + 1)
                axes.loglog(steps, shown, color=mpl.colormaps["tab10"](place), lw=1, label="" if number else name)
        axes.set_title(attack, fontsize=8)
        axes.set_xlabel("iterations of at most 20 evaluations", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("MSE", fontsize=8)
    panels[-1].legend(fontsize=7, frameon=False)
    figure.savefig(path)


def results() -> list[tables.Results]:
    """A row each network and attack."""
    rows, told = [], {name: tables.stored(f"deakin_models/{name}-table.json") for name in SETTINGS}
    for name, one in told.items():
        setting = [f"`{name}`", PAPER_SAYS[name.removesuffix("-plain")]]
        if not one:
            rows.append([*setting, tables.NOT_RUN])
            continue
        setting += [one["iterations"], one["size"], one["batch"], f"{one['parameters']:,}"]
        for cell in one["cells"]:
            found = [
                *tables.share(cell, "recovered"),
                cell["recovered_but_affine"],
                f"{cell['mse_clipped_median']:.2g}",
            ]
            rows.append([*setting, cell["attack"], *found])
    ours = ("attack", "recovered", "95 %", "but for contrast and brightness", "MSE (pixels cut), median")
    return [
        tables.Results(
            "DLG on networks with sigmoids",
            "deakin_models",
            ("run", "report (quoted)", "iterations", "pixels", "batch", "parameters", *ours),
            rows,
            tables.device(*told.values()),
            (
                "`--only NAME --iterations N` runs one. `relative`: ours, with the label known.",
                "It is relative to the gradient, of the deep networks to each tensor.",
                "`lenet`: 1,000 classes, images normalised by ImageNet's statistics, one network for all 16 trials.",
                "`lenet-plain`: the same photographs, not normalised; a fresh network for each trial.",
                tables.AFFINE,
            ),
            {
                name: f"deakin_models/{name}.png"
                for name in ("curves", "curves-lenet", *SETTINGS)
                if (harness.RESULTS / f"deakin_models/{name}.png").exists()
            },
        )
    ]


if __name__ == "__main__":
    main()
