"""Batches of 1, 2, 4 and 8 CIFAR-100 images with labels all different: one dummy per image, recovered or not.

LeNet, a fresh network for each trial, labels read from the update (`counts`), start U[0, 1), jaxleak's own solver, with
and without total variation. An image counts as recovered when its relative error is below 0.2 after slots are matched
to the truth; a trial succeeds when all of its images are. Zhu, Liu & Han 2019 (DLG) report 270, 602, 1,173 and 2,711
iterations for these batches, on another network. `published-2` to `published-8`: their attack (torch's L-BFGS from
N(0, 1), labels optimised too) with so many iterations, rounded up. All images move in every step; the paper moves one
image at a time.

    python -m experiments.batches --data-dir DIR --batches 10 --seeds 2
"""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

import jaxleak
from experiments import tables
from experiments.harness import DLG, arguments, chosen_runs, results_folder, run_all, write_json

PAPER = "DLG (Zhu et al. 2019)"
SIZES = (1, 2, 4, 8)
BASE = replace(jaxleak.IDLG, label="counts", init="uniform", stop_objective=0.0)
ATTACKS = (replace(BASE, name="L2"), replace(BASE, name="L2 + TV", tv=4e-3))
PICTURES = 8
PAPER_SAYS = {1: 270, 2: 602, 4: 1173, 8: 2711}  # iterations
PUBLISHED = {2: 700, 4: 1200, 8: 2800}  # as many, rounded up


def main() -> None:
    numbers = {"batches": 10, "seeds": 2}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    sweeps = {}
    names = [*(f"batch-{size}" for size in SIZES), *(f"published-{size}" for size in PUBLISHED)]
    for name in chosen_runs(names, options):
        size = int(name.rpartition("-")[2])
        victim = jaxleak.make_victim(
            "lenet", data, data.random_batches(options.batches, size, seed=2023, labels="distinct"), batch=size
        )
        sweeps[name] = jaxleak.Sweep(victim=victim, attacks=attacks(name), seeds=options.seeds, snapshots=())
    folder = results_folder("batches")
    for name, result in run_all("batches", sweeps, options).items():
        told = [cell(result, attack.name) for attack in attacks(name)]
        write_json(folder / f"{name}-table.json", {"device": result.rows[0]["device"], "attacks": told})
        draw(result, folder / f"{name}.png")


def attacks(name: str) -> tuple[jaxleak.Attack, ...]:
    """Of the run with this name."""
    kind, _, size = name.rpartition("-")
    return ATTACKS if kind == "batch" else (replace(DLG, iterations=PUBLISHED[int(size)]),)


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
        "diverged": sum(row["status"] == "diverged" for row in rows),
        "psnr_median": float(np.nanmedian([row["psnr"] for row in rows])),
        "ssim_mean": float(np.nanmean([row["ssim"] for row in rows])),
        "iterations_median": float(np.median([row["iterations"] for row in rows])),
        "evaluations_median": float(np.median([row["evaluations"] for row in rows])),
    }


def draw(result: jaxleak.Result, path) -> None:
    """For each attack, the trials with the best and the median PSNR: truth above, recovery below."""
    lines = []
    for attack in dict.fromkeys(row["attack"] for row in result.rows):
        rows = sorted((row for row in result.rows if row["attack"] == attack), key=lambda row: -row["psnr"])
        rows = [row for row in rows if np.isfinite(row["psnr"])]
        lines += [(f"{attack}, {rank}", row) for rank, row in (("best", rows[0]), ("median", rows[len(rows) // 2]))]
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


def published() -> tables.Results:
    """The published attack with the published number of iterations."""
    rows, told = [], {size: tables.stored(f"batches/published-{size}-table.json") for size in PUBLISHED}
    for size, one in told.items():
        rows.append([f"`published-{size}`", f"{PAPER_SAYS[size]:,}", f"{PUBLISHED[size]:,}"])
        for cell in one["attacks"] if one else []:
            counts = [f"{cell[key]}/{cell['images']}" for key in ("images_recovered", "labels_right")]
            ended = f"{cell['diverged']}/{cell['trials']}"
            rows[-1] += [*tables.share(cell), *counts, f"{cell['psnr_median']:.1f}", ended]
        rows[-1] += [] if one else [tables.NOT_RUN]
    ours = ("all images", "95 %", "images", "labels", "PSNR in dB, median", "diverged")
    return tables.Results(
        "The same batches by DLG as published",
        "batches --only published-2 published-4 published-8",
        ("run", "paper (recalled): iterations", "ours, at most", *ours),
        rows,
        tables.device(*told.values()),
        ("Labels are optimised beside the images, and all images move in a step. The paper moves one at a time.",),
        {f"published-{size}": f"batches/published-{size}.png" for size, one in told.items() if one},
    )


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
        ),
        published(),
    ]


if __name__ == "__main__":
    main()
