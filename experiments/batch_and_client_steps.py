"""Sirpurkar 2021, table 1: batch size x client iterations, SSIM and MSE with intervals.

`cpl` is the paper's setting: all images of a batch have one label, a single dummy stands for them, and the client has
trained on that batch with Adam for so many iterations before it shares a gradient; the network is drawn anew for every
trial. The one dummy is compared with the image it comes nearest to. `scaled` is the same for a single image, with the
objective measured relative to the shared gradient and no absolute stop. `joint` has one dummy per image, labels read
from the update, and a client that shares the weight difference after so many steps of SGD (0: the gradient), which the
attacker repeats; its objective is measured relative to the update, since that shrinks with the learning rate.

What of the paper's table is not repeated here: its client's weights and Adam state went on from cell to cell and began
trained, so that its rows are not comparable; its column 50 had 33 steps; each cell was one run, here several images and
seeds with intervals; its pictures of DLG were fed as 0 to 255; some of its MSEs are of the red channel alone; its SSIM
had a data range of 0, here 1.

A joint evaluation costs batch x steps gradients, so the evaluations of a trial are limited (`--evaluations`).

    python -m experiments.batch_and_client_steps --data-dir DIR --updates 3 --seeds 2 --evaluations 1500
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_all, write_json

PAPER = "CPL (Wei et al. 2020, Sirpurkar 2021)"
BATCHES = (1, 2, 5, 10, 15, 20)
STEPS = (0, 1, 2, 5, 10, 15, 20, 50, 100)
TABLED = tuple(itertools.product(STEPS[1:], (1, 5, 10, 15, 20)))  # steps and batches
JOINT = replace(
    jaxleak.IDLG, name="joint", label="counts", init="uniform", scale="relative", tv=6e-6, stop_objective=0.0
)
LR = {"cpl": 1e-3, "scaled": 1e-3, "joint": 1e-2}
CPL = {
    "cpl": replace(jaxleak.CPL, dummies=1),
    "scaled": replace(jaxleak.CPL, dummies=1, scale="relative", stop_objective=0.0, max_evaluations=2000),
}
# SSIM / MSE by client iterations, in batches of 1, 5, 10 and 20.
PAPER_SAYS = {
    (steps, batch): cell
    for steps, cells in {
        1: (".5954/.005", ".1218/.0486", ".0813/.0666", ".0384/.0855"),
        2: (".315/.0144", ".0547/.0964", ".0401/.1178", ".0264/.3639"),
        5: (".1535/.0357", ".0421/.161", ".0297/.2115", ".0188/.3751"),
        10: (".1227/.0458", ".0411/.0897", ".0233/.0886", ".0192/.0973"),
        20: (".1206/.0452", ".0504/.0663", ".0467/.0709", ".0289/.1004"),
        50: (".1039/.0495", ".0226/.1288", ".0135/.1724", ".0084/.2812"),
    }.items()
    for batch, cell in zip((1, 5, 10, 20), cells, strict=True)
}


def main() -> None:
    numbers = {"updates": 3, "seeds": 2, "evaluations": 1500}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    data = jaxleak.load_dataset("lfw", split="train", data_dir=options.data_dir)
    folder = results_folder("batch_and_client_steps")
    batches = {kind: (1,) if kind == "scaled" else BATCHES for kind in LR}
    names = [f"{kind}-{batch}-{steps}" for kind in LR for batch in batches[kind] for steps in STEPS]
    for name in chosen_runs(names, options):
        cell = sweep(name, data, options)
        (result,) = run_all(
            "batch_and_client_steps", {name: cell}, type(options)(**{**vars(options), "only": None})
        ).values()
        write_json(folder / f"{name}-cell.json", summary(name, result))
    draw(folder)


def sweep(name: str, data: jaxleak.Dataset, options) -> jaxleak.Sweep:
    """One cell of the table."""
    kind, batch, steps = name.split("-")
    size, count = int(batch), int(steps)
    labels = "same" if kind in CPL else "any"
    images = data.random_batches(options.updates, size, seed=2024, labels=labels)
    if kind in CPL:
        later = {"trained_steps": count, "trained_on": "own", "train_lr": LR[kind]}
        victim = jaxleak.make_victim("lenet", data, images, batch=size, **later)
        attack = CPL[kind]
    else:
        client = jaxleak.Client(steps=count, lr=LR[kind])
        victim = jaxleak.make_victim("lenet", data, images, batch=size, client=client)
        attack = replace(JOINT, max_evaluations=options.evaluations)
    return jaxleak.Sweep(victim=victim, attacks=(attack,), seeds=options.seeds, snapshots=())


def summary(name: str, result: jaxleak.Result) -> dict:
    """Mean SSIM and MSE with 95 % intervals over trials (Student's t), images recovered."""
    kind, batch, steps = name.split("-")
    rows = result.rows
    told = {"kind": kind, "batch": int(batch), "steps": int(steps), "trials": len(rows), "device": rows[0]["device"]}
    for column in ("ssim", "mse_clipped"):
        values = np.array([row[column] for row in rows], float)
        values = values[np.isfinite(values)]
        error = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
        told[column] = {"n": len(values), "mean": float(values.mean()) if len(values) else None, "half_width": error}
    told["images_recovered"] = sum(row["images_recovered"] for row in rows)
    told["victim_loss"] = float(np.median([row["victim_loss"] for row in rows]))
    return told


def draw(folder: Path) -> None:
    """SSIM and MSE against client iterations, one line per batch size."""
    import json

    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*-cell.json"))]
    kinds = [kind for kind in LR if any(cell["kind"] == kind for cell in cells)]
    figure = Figure(figsize=(7.0, 2.3 * len(kinds) + 0.3), dpi=120, layout="constrained")
    panels = figure.subplots(len(kinds), 2, sharex=True, sharey="col", squeeze=False)
    for line, kind in zip(panels, kinds, strict=True):
        for axes, column in zip(line, ("ssim", "mse_clipped"), strict=True):
            for number, batch in enumerate(BATCHES):
                own = sorted((c for c in cells if (c["kind"], c["batch"]) == (kind, batch)), key=lambda c: c["steps"])
                own = [cell for cell in own if cell[column]["mean"] is not None]
                places = [STEPS.index(cell["steps"]) + 0.06 * (number - 2.5) for cell in own]
                errors = [cell[column]["half_width"] or 0 for cell in own]
                means = [cell[column]["mean"] for cell in own]
                axes.errorbar(places, means, errors, marker="o", ms=3, lw=1, capsize=2, label=f"batch {batch}")
            axes.set_xticks(range(len(STEPS)), STEPS)
            axes.set_ylabel(f"{kind}: {column.replace('_clipped', '').upper()}", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("client iterations", fontsize=8)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=7)
    figure.savefig(folder / "table1.png")


def results() -> list[tables.Results]:
    """A row each kind, number of client iterations and batch."""
    rows, summaries = [], []
    for kind in LR:
        own = []
        for steps, batch in TABLED:
            published = PAPER_SAYS.get((steps, batch), f"{tables.NONE}/{tables.NONE}")
            if told := tables.stored(f"batch_and_client_steps/{kind}-{batch}-{steps}-cell.json"):
                both = [f"{one['mean']:.3f} ± {one['half_width']:.3f}" for one in (told["ssim"], told["mse_clipped"])]
                own.append([f"`{kind}`", steps, batch, *published.split("/"), *both, told["trials"]])
                summaries.append(told)
        if len(own) < len(TABLED):
            own.append([f"`{kind}`", "others" if own else "all", *[tables.NONE] * 3, tables.NOT_RUN])
        rows += own
    return [
        tables.Results(
            "Table 1: batch size and client iterations",
            "batch_and_client_steps",
            ("setting", "client iterations", "batch", "paper: SSIM", "paper: MSE", "SSIM", "MSE", "n"),
            rows,
            tables.device(*summaries),
            (
                "`cpl`: one dummy stands for the batch, as in the paper. `scaled`: relative objective, no stop.",
                "`joint` (`--seeds 1`): one dummy an image; the client shares a weight difference.",
                "`joint`: batches of 2, and no local step, were run as well and are in the text.",
                "The paper's table has no batch of 15, and neither 15 nor 100 iterations.",
                "± is half of the mean's 95 % interval by Student's t. MSE: pixels cut to [0, 1].",
            ),
            {"figure": "batch_and_client_steps/table1.png"},
        )
    ]


if __name__ == "__main__":
    main()
