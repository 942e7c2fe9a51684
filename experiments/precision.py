"""Where float32 stops, and what float64 buys: iDLG with `lbfgs` on LeNet, MNIST, CIFAR-100 and LFW.

Each image has a network of its own, drawn once and the same in both precisions; the images of a data set share their
start. Three runs of each trial, none with a
stop on the objective but 1e-12: float32 until it stalls; float64 from the same N(0, 1) start; and float64 from where
float32 stalled ("finish"). At most 12,000 evaluations each. The client's gradient is computed in the precision of the
run, so a finish knows it to float64's digits; a gradient sent in float32 would not let it go below some 1e-12.

    python -m experiments.precision --data-dir DIR
"""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder, write_json

PAPER = "Solvers"
DATASETS = {"mnist": "test", "cifar100": "train", "lfw": "train"}
STAGES = ("float32", "float64", "finish")
ATTACK = replace(jaxleak.IDLG, stop_objective=1e-12, iterations=600)
COLUMNS = ["stage", "dataset", "image", "status", "objective", "relative_objective", "mse", "psnr", "relative_error"]
COLUMNS += ["evaluations", "seconds", "dtype", "device", "git_revision"]


def main() -> None:
    options = arguments(__doc__, n={"type": int, "default": 10})
    rows, rates = [], {}
    stalled: list[np.ndarray] = []  # candidates, by image
    for name, split in DATASETS.items():
        data = jaxleak.load_dataset(name, split=split, data_dir=options.data_dir)
        victim = own_networks(jaxleak.make_victim("lenet", data, data.random_indices(options.n, seed=2020)))
        starts = np.random.default_rng(0).standard_normal((1, 1, *data.image_shape))
        for stage in STAGES:
            jax.config.update("jax_enable_x64", stage != "float32")
            if stage == "finish":
                results = [
                    run(f"{name}-finish-{index}", one(victim, slot), starts=candidate[None, None], options=options)
                    for slot, (index, candidate) in enumerate(zip(victim.indices, stalled, strict=True))
                ]
            else:
                results = [run(f"{name}-{stage}", victim, starts=starts, options=options)]
                rates[f"{name}-{stage}"] = results[0].summary["engine"]["evaluations_per_second"]
            if stage == "float32":
                found = results[0].reconstructions()
                stalled = [found["candidate"][i].astype(np.float64) for i in np.argsort(found["trial"])]
            rows += [{"stage": stage, **row} for result in results for row in result.rows]
    folder = results_folder("precision")
    parquet.write_table(arrow.Table.from_pylist(rows).select(COLUMNS), folder / "rows.parquet")
    environment = results[0].run.environment
    write_json(folder / "summary.json", {"n": len(rows), **summary(rows, rates), "environment": environment})
    draw(rows, folder / "precision.png")


def own_networks(victim: jaxleak.Victim) -> jaxleak.Victim:
    """A network for each image, drawn in float32 whatever jax is set to."""
    keys = jax.random.split(jax.random.key(0), len(victim.indices))
    draw = jax.jit(victim.model.init)
    drawn = [draw(key, np.zeros((1, *victim.images.shape[1:])))["params"] for key in keys]
    params = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf, np.float32) for leaf in leaves]), *drawn)
    return replace(victim, network="per-image", params=params)


def one(victim: jaxleak.Victim, slot: int) -> jaxleak.Victim:
    """The victim with one of its images."""
    chosen = slice(slot, slot + 1)
    return replace(
        victim,
        indices=victim.indices[chosen],
        images=victim.images[chosen],
        labels=victim.labels[chosen],
        params=jax.tree.map(lambda leaf: leaf[chosen], victim.params),
    )


def run(name: str, victim: jaxleak.Victim, *, starts: np.ndarray, options) -> jaxleak.Result:
    sweep = jaxleak.Sweep(victim=victim, attacks=(ATTACK,), seeds=1, starts={"image": starts}, snapshots=())
    return jaxleak.run_sweep(sweep, options.runs / "precision" / name, lanes=options.lanes)


def of(rows: list[dict], dataset: str, stage: str) -> list[dict]:
    return [row for row in rows if (row["dataset"], row["stage"]) == (dataset, stage)]


def summary(rows: list[dict], rates: dict[str, float]) -> dict:
    """Medians and extremes of what each stage reaches and costs, and evaluations per second."""
    told: dict = {"evaluations_per_second": rates}
    for dataset in DATASETS:
        for stage in STAGES:
            own = of(rows, dataset, stage)
            told[f"{dataset}-{stage}"] = {
                "trials": len(own),
                "below_1e-10": sum(row["objective"] < 1e-10 for row in own),
                **{
                    key: [float(np.quantile([row[key] for row in own], q)) for q in (0, 0.5, 1)]
                    for key in ("objective", "mse", "psnr", "evaluations")
                },
            }
    return told


def draw(rows: list[dict], path) -> None:
    """MSE against the objective that each trial ended with."""
    figure = Figure(figsize=(7.0, 2.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(DATASETS), sharey=True)
    looks = {"float32": ("#d55e00", "o"), "float64": ("#009e73", "s"), "finish": ("#0072b2", "x")}
    for axes, dataset in zip(panels, DATASETS, strict=True):
        for stage, (colour, marker) in looks.items():
            own = of(rows, dataset, stage)
            label = "float64 from float32's end" if stage == "finish" else stage
            points = [[row[key] for row in own] for key in ("objective", "mse")]
            axes.scatter(*points, s=14, marker=marker, color=colour, label=label, linewidths=1, alpha=0.8)
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"{dataset} (n = {len(own)})", fontsize=8)
        axes.set_xlabel("objective at the end", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("MSE", fontsize=8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    figure.savefig(path)


def results() -> list[tables.Results]:
    """Medians of what each precision reaches and costs."""
    told, rows = tables.stored("precision/summary.json"), []
    for dataset, stage in itertools.product(DATASETS, STAGES):
        cells: list = [tables.NOT_RUN]
        if told:
            one = told[f"{dataset}-{stage}"]
            objective, psnr, count = (one[key][1] for key in ("objective", "psnr", "evaluations"))
            cells = [f"{objective:.0e}", f"{psnr:.0f}", f"{count:,.0f}", one["trials"]]
        rows.append([dataset, stage, *cells])
    return [
        tables.Results(
            "Precision: iDLG with `lbfgs`, medians",
            "precision",
            ("data set", "precision", "objective", "PSNR in dB", "evaluations", "n"),
            rows,
            tables.device(told),
            ("finish: float64 from where float32 ended.",),
            {"figure": "precision/precision.png"},
        )
    ]


if __name__ == "__main__":
    main()
