"""Batches of 1, 2, 4 and 8 CIFAR-100 images with labels all different: one dummy per image, recovered or not.

LeNet, a fresh network for each trial, labels read from the update (`counts`), start U[0, 1), jaxleak's own solver, with
and without total variation. An image counts as recovered when its relative error is below 0.2 after slots are matched
to the truth; a trial succeeds when all of its images are. Zhu, Liu & Han 2019 (DLG) report 270, 602, 1,173 and 2,711
iterations for these batches, on another network.

    python -m experiments.batches --data-dir DIR --batches 10 --seeds 2
"""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, run_all, write_json

PAPER = "DLG (Zhu et al. 2019)"
SIZES = (1, 2, 4, 8)
BASE = replace(jaxleak.IDLG, label="counts", init="uniform", stop_objective=0.0)
ATTACKS = (replace(BASE, name="L2"), replace(BASE, name="L2 + TV", tv=4e-3))
PICTURES = 8
PAPER_SAYS = {1: 270, 2: 602, 4: 1173, 8: 2711}  # iterations


def main() -> None:
    numbers = {"batches": 10, "seeds": 2}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    sweeps = {}
    for name in chosen_runs([f"batch-{size}" for size in SIZES], options):
        size = int(name.removeprefix("batch-"))
        victim = jaxleak.make_victim(
            "lenet", data, data.random_batches(options.batches, size, seed=2023, labels="distinct"), batch=size
        )
        sweeps[name] = jaxleak.Sweep(victim=victim, attacks=ATTACKS, seeds=options.seeds, snapshots=())
    folder = results_folder("batches")
    for name, result in run_all("batches", sweeps, options).items():
        told = [cell(result, attack.name) for attack in ATTACKS]
        write_json(folder / f"{name}-table.json", {"device": result.rows[0]["device"], "attacks": told})
        draw(result, folder / f"{name}.png")


def cell(result: jaxleak.Result, attack: str) -> dict:
    """Trials with every image recovered, images recovered, labels, and fidelity."""
    rows = [row for row in result.rows if row["attack"] == attack]
    images = sum(row["batch"] for row in rows)
    whole, back = sum(row["success"] for row in rows), sum(row["images_recovered"] for row in rows)
    return {
        "attack": attack,
        "batch": rows[0]["batch"],
        "trials": len(rows),
        "solved": whole,
        "ci95": jaxleak.wilson(whole, len(rows)),
        "images": images,
        "images_recovered": back,
        # Images of one trial are not independent: the interval of their share is over trials.
        "images_recovered_sd": float(np.std([row["images_recovered"] / row["batch"] for row in rows], ddof=1)),
        "labels_right": sum(row["labels_right"] for row in rows),
        "whole_labels": sum(row["label_correct"] for row in rows),
        "psnr_median": float(np.nanmedian([row["psnr"] for row in rows])),
        "ssim_mean": float(np.nanmean([row["ssim"] for row in rows])),
        "iterations_median": float(np.median([row["iterations"] for row in rows])),
        "evaluations_median": float(np.median([row["evaluations"] for row in rows])),
    }


def draw(result: jaxleak.Result, path) -> None:
    """For each attack, the trials with the best and the median PSNR: truth above, recovery below."""
    lines = []
    for attack in ATTACKS:
        rows = sorted((row for row in result.rows if row["attack"] == attack.name), key=lambda row: -row["psnr"])
        rows = [row for row in rows if np.isfinite(row["psnr"])]
        lines += [
            (f"{attack.name}, {rank}", row) for rank, row in (("best", rows[0]), ("median", rows[len(rows) // 2]))
        ]
    batch = lines[0][1]["batch"]
    shown = min(batch, PICTURES)
    width = 0.45 * shown + 1.1
    figure = Figure(figsize=(width, 3.6), dpi=130)
    panels = figure.subplots(2 * len(lines), shown, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    figure.subplots_adjust(left=1.05 / width, right=0.995, top=0.99, bottom=0.01, wspace=0.05, hspace=0.08)
    truth = result.run.truth()
    for number, (name, row) in enumerate(lines):
        place = truth["image"].tolist().index(row["image"])
        found = result.reconstructions([row["trial"]])["candidate"]
        pictures = {
            f"truth ({row['image']})": jaxleak.unmosaic(truth["pixels"][place], batch),
            f"{name}\n{row['psnr']:.1f} dB": found[0] if batch > 1 else found,
        }
        for panel, (title, images) in zip(panels[2 * number : 2 * number + 2], pictures.items(), strict=True):
            panel[0].set_ylabel(title, fontsize=6, rotation=0, ha="right", va="center")
            for axes, image in zip(panel, images[:shown], strict=True):
                axes.imshow(np.clip(image, 0, 1), interpolation="nearest", cmap=mpl.colormaps["gray"])
    figure.savefig(path)


def results() -> list[tables.Results]:
    """Trials, images and labels of each batch size."""
    rows, told = [], {size: tables.stored(f"batches/batch-{size}-table.json") for size in SIZES}
    for size, one in told.items():
        setting = [f"`batch-{size}`", f"{PAPER_SAYS[size]:,}"]
        for cell in one["attacks"] if one else []:
            counts = [f"{cell[key]}/{cell['images']}" for key in ("images_recovered", "labels_right")]
            rows.append([*setting, cell["attack"], *tables.share(cell), *counts, f"{cell['psnr_median']:.1f}"])
        if not one:
            rows.append([*setting, tables.NONE, tables.NOT_RUN])
    return [
        tables.Results(
            "Batches of CIFAR-100 images with distinct labels, LeNet, 300 iterations",
            "batches",
            (
                "run",
                "paper (recalled): iterations",
                "attack",
                "all images",
                "95 %",
                "images",
                "labels",
                "PSNR in dB, median",
            ),
            rows,
            tables.device(*told.values()),
            (
                "`--only NAME` runs one. The paper recovers these batches in so many iterations, on another network.",
                "All images: trials in which every image comes back. TV: total variation.",
            ),
            {f"batch-{size}": f"batches/batch-{size}.png" for size in SIZES},
        )
    ]


if __name__ == "__main__":
    main()
