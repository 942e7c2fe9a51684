"""Dimitrov et al. 2024 (SPEAR): whole batches of CIFAR-100 and MNIST, exactly, from a dense layer with a ReLU.

A network of dense layers with ReLUs, torch's initialisation, drawn anew for each batch; images normalised by their data
set's mean and deviation; float64. A batch counts as exact when the relative error of each of its images is below 1e-3,
in whatever order they come. Labels are read from the update (`counts`). The paper has widths of 200 and 2,000; its
figures for these data sets are not quoted here, since we could not read them.

    python -m experiments.spear --data-dir DIR --batches 40
"""

import jax
import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_one, write_json

PAPER = "SPEAR (Dimitrov et al. 2024)"
SPLITS = {"mnist": "test", "cifar100": "train"}
SIZES = (8, 16)
WIDTHS = (200, 2000)
EXACT = 1e-3
RUNS = {f"{name}-{size}-{width}": (name, size, width) for name in SPLITS for width in WIDTHS for size in SIZES}


def main() -> None:
    options = arguments(__doc__, batches={"type": int, "default": 40})
    jax.config.update("jax_enable_x64", True)
    for run in chosen_runs(RUNS, options):
        name, size, width = RUNS[run]
        data = jaxleak.load_dataset(name, split=SPLITS[name], data_dir=options.data_dir)
        images = data.random_batches(options.batches, size, seed=2024, labels="any")
        fields = {"hidden": (width, width), "activation": "relu", "weight_init": "torch"}
        victim = jaxleak.make_victim("mlp", data, images, batch=size, fields=fields, normalise=name)
        sweep = jaxleak.Sweep(victim=victim, attacks=(jaxleak.ATTACKS["spear"],), seeds=1, snapshots=())
        result = run_one("spear", run, sweep, options)
        write_json(results_folder("spear") / f"{run}-table.json", cell(result.rows))


def cell(rows: list[dict]) -> dict:
    """Exact batches, those with their labels, errors and seconds."""
    exact = sum(row["relative_error"] < EXACT for row in rows)
    return {
        "batches": len(rows),
        "exact": exact,
        "ci95": jaxleak.wilson(exact, len(rows)),
        "labels": sum(row["label_correct"] for row in rows),
        "error_median": float(np.median([row["relative_error"] for row in rows])),
        "seconds_median": float(np.median([row["seconds"] for row in rows])),
        "device": rows[0]["device"],
    }


def results() -> list[tables.Results]:
    """Exact batches of each size, data set and width."""
    lines, told = [], {run: tables.stored(f"spear/{run}-table.json") for run in RUNS}
    for run, (name, size, width) in RUNS.items():
        line, one = [f"`{run}`", name, size, f"{width:,}"], told[run]
        if one:
            share = tables.interval([100 * bound for bound in one["ci95"]], 0)
            line += [f"{one['exact']}/{one['batches']}", share, f"{one['error_median']:.0e}", one["labels"]]
        lines.append(line if one else [*line, tables.NOT_RUN])
    return [
        tables.Results(
            "Whole batches from a dense layer with a ReLU, in closed form",
            "spear",
            ("run", "data set", "batch", "width", "exact", "95 %", "error, median", "labels right"),
            lines,
            tables.device(*told.values()),
            (
                "Exact: every image's relative error is below 0.001. Labels right: batches with all labels right.",
                "The paper's abstract: ImageNet batches up to about 25, exactly. Its tables could not be read here.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
