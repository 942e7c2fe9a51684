"""Why trials of `lbfgs` still fail on LeNet: the failures of two experiments, run again to their end, and looked at.

The failed trials of `kan2022_table1` (run lbfgs; relative error not below 0.2) and of `idlg_fidelity` (runs *-lbfgs,
the first 200 images; MSE not below 0.001) are run twice, with the same networks and starts: to the published stop on
the objective, and until the solver stalls or 6,000 evaluations are spent; right then is what would not have been a
failure. Drawn: truth, image at the stop, image at the end. And iDLG with tanh in place of sigmoids, where its rule for
the label does not hold, beside the label read from the head's bias.

    python -m experiments.failures --data-dir DIR
"""

from dataclasses import replace

import flax.linen as nn
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import RESULTS, arguments, chosen_runs, results_folder, write_json

PAPER = "Solvers"
SOURCES = {
    "table1": ("kan2022_table1/lbfgs", "cifar100", "train", 1e-4),
    "mnist": ("idlg_fidelity/mnist-lbfgs", "mnist", "test", 1e-6),
    "lfw": ("idlg_fidelity/lfw-lbfgs", "lfw", "train", 1e-6),
}
DATASETS = {"mnist": "test", "cifar100": "train", "lfw": "train"}
MSE, FIRST = 1e-3, 200
RULES = {"idlg": "iDLG's", "bias": "head's bias"}


def main() -> None:
    options = arguments(__doc__, n={"type": int, "default": 40})
    failed = {name: failures(name) for name in SOURCES}
    sweeps = {f"{name}-{image}": again(name, image, rows, options) for name, image, rows in by_image(failed)}
    for name, split in DATASETS.items():
        data = jaxleak.load_dataset(name, split=split, data_dir=options.data_dir)
        victim = jaxleak.make_victim("lenet", data, data.random_indices(options.n, seed=2020), network="per-trial")
        model = jaxleak.build_model("lenet", victim.num_classes, activation=nn.tanh, weight_init="torch")
        attacks = (jaxleak.IDLG, replace(jaxleak.IDLG, name="bias", label="bias"))
        sweeps[f"tanh-{name}"] = jaxleak.Sweep(victim=replace(victim, model=model), attacks=attacks, seeds=1)
    results = {
        name: jaxleak.run_sweep(sweeps[name], options.runs / "failures" / name, lanes=options.lanes)
        for name in chosen_runs(sweeps, options)
    }
    if len(results) < len(sweeps):
        return
    rows = [{"run": name, **row} for name, result in results.items() for row in result.rows]
    folder = results_folder("failures")
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "rows.parquet")
    told, pictures = [], []
    for name, image, own in by_image(failed):
        result = results[f"{name}-{image}"]
        for row in own:
            told.append({"source": name, "right": right(name, pair(result, row)[1]), **compare(result, row)})
            pictures.append(images(result, row))
    labels = {name: label_rules(results[f"tanh-{name}"].rows) for name in DATASETS}
    summary = {"n": len(rows), "again": told, "tanh": labels, "environment": result.run.environment}
    write_json(folder / "summary.json", summary)
    draw(told, pictures, folder / "failures.png")


def failures(name: str) -> list[dict]:
    """The stored rows of the trials that failed, of the first images."""
    rows = parquet.read_table(RESULTS / f"{SOURCES[name][0]}.parquet").to_pylist()
    images = list(dict.fromkeys(row["image"] for row in sorted(rows, key=lambda row: row["trial"])))[:FIRST]
    return [row for row in rows if row["image"] in images and not right(name, row)]


def right(name: str, row: dict) -> bool:
    """By the source's own criterion."""
    return row["success"] if name == "table1" else row["mse"] < MSE


def by_image(failed: dict[str, list[dict]]):
    """Source, image and its failed trials."""
    for name, rows in failed.items():
        for image in dict.fromkeys(row["image"] for row in rows):
            yield name, image, [row for row in rows if row["image"] == image]


def again(name: str, image: int, rows: list[dict], options) -> jaxleak.Sweep:
    """The image's trials to the published stop and to the end, with the seeds up to the last that failed."""
    _, dataset, split, stop = SOURCES[name]
    data = jaxleak.load_dataset(dataset, split=split, data_dir=options.data_dir)
    attacks = []
    for attack in dict.fromkeys(row["attack"] for row in rows):
        preset = replace(jaxleak.ATTACKS[attack], stop_objective=stop)
        attacks += [preset, replace(preset, name=f"{attack}-to-the-end", stop_objective=0.0)]
    return jaxleak.Sweep(
        victim=jaxleak.make_victim("lenet", data, [image], network="per-trial"),
        attacks=tuple(attacks),
        seeds=1 + max(row["seed"] for row in rows),
        snapshots=(),
    )


def pair(result: jaxleak.Result, row: dict) -> list[dict]:
    """The trial's rows: to the stop, and to the end."""
    own = {one["attack"]: one for one in result.rows if one["seed"] == row["seed"]}
    return [own[row["attack"]], own[f"{row['attack']}-to-the-end"]]


def compare(result: jaxleak.Result, row: dict) -> dict:
    """What the failed trial came to."""
    stopped, ended = pair(result, row)
    norm2 = stopped["objective"] / stopped["relative_objective"]
    told = {"attack": row["attack"], "image": row["image"], "seed": row["seed"], "update_norm2": norm2}
    columns = ("status", "objective", "relative_objective", "relative_error", "mse", "evaluations", "label_correct")
    return told | {name: {c: one[c] for c in columns} for name, one in (("stopped", stopped), ("ended", ended))}


def images(result: jaxleak.Result, row: dict) -> list[np.ndarray]:
    """Truth, image at the stop, image at the end."""
    found = [result.reconstructions([one["trial"]])["candidate"][0] for one in pair(result, row)]
    return [np.asarray(result.run.truth()["pixels"][0]), *found]


def label_rules(rows: list[dict]) -> dict:
    """For iDLG's rule and for the bias: right labels, and trials with MSE below 0.001."""
    told = {}
    for attack in ("idlg", "bias"):
        own = [row for row in rows if row["attack"] == attack]
        right, solved = sum(row["label_correct"] for row in own), sum(row["mse"] < MSE for row in own)
        told[attack] = {"trials": len(own), "labels_right": right, "solved": solved}
    return told


def draw(told: list[dict], pictures: list[list[np.ndarray]], path) -> None:
    """One column for each trial, those with the smallest gradients first; DLG's only."""
    order = sorted((i for i, one in enumerate(told) if one["attack"] == "dlg"), key=lambda i: told[i]["update_norm2"])
    figure = Figure(figsize=(7.2, 2.3), dpi=200)
    panels = figure.subplots(3, len(order), squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    figure.subplots_adjust(left=0.075, right=0.995, top=0.87, bottom=0.01, wspace=0.08, hspace=0.35)
    for column, i in enumerate(order):
        errors = ["", *(f"{told[i][name]['relative_error']:.2f}" for name in ("stopped", "ended"))]
        for axes, image, error in zip(panels[:, column], pictures[i], errors, strict=True):
            axes.imshow(np.clip(image, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(error, fontsize=6, pad=2)
        panels[0, column].set_title(f"{float(format(told[i]['update_norm2'], '.2g')):g}", fontsize=6, pad=2)
    for axes, name in zip(panels[:, 0], ("truth", "at the stop", "at the end"), strict=True):
        axes.set_ylabel(name, fontsize=6)
    figure.text(
        0.5, 0.95, "squared norm of the shared gradient; below, relative error of the image", fontsize=7, ha="center"
    )
    figure.savefig(path)


def results() -> list[tables.Results]:
    """The failed trials run to their end, and iDLG's rule behind tanh."""
    told = tables.stored("failures/summary.json")
    ended, rules = [[tables.NOT_RUN]], [[rule, tables.NOT_RUN] for rule in RULES]
    if told:
        again = told["again"]
        errors = {name: [one[name]["relative_error"] for one in again] for name in ("stopped", "ended")}
        stop = f"{min(errors['stopped']):.2f} to {max(errors['stopped']):.2f}"
        right = sum(one["right"] for one in again)
        ended = [[len(again), right, stop, f"{max(errors['ended']):.2f}"]]
        keys = ("labels_right", "solved", "trials")
        sums = {rule: [sum(one[rule][key] for one in told["tanh"].values()) for key in keys] for rule in RULES}
        rules = [[RULES[rule], *sums[rule]] for rule in RULES]
    heads = ("failed trials", "right at the end", "relative error at the stop", "at the end, at most")
    figure = {"pictures": "failures/failures.png"}
    where = tables.device(told)
    return [
        tables.Results("Failed trials of `lbfgs`, run to their end", "failures", heads, ended, where, (), figure),
        tables.Results(
            "iDLG behind tanh: where the label is read",
            "failures",
            ("rule", "label right", "MSE < .001", "n"),
            rules,
            where,
        ),
    ]


if __name__ == "__main__":
    main()
