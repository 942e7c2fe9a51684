"""The leak map: which networks, modes, trainings, batches, local steps and defences give CIFAR-100 images away.

A cell is one combination (leak_cells.py); its row in `results/leak_map/cells.jsonl` has the PSNR of each of 40 images,
which are the same in all cells, in 40 / B updates of B images with distinct labels, one start each. One network, drawn
from seed 0, serves all cells of a line, so intervals are about images. "Epoch" is 765 steps of 64 images with Adam,
"trained" four times as many. Local steps are five of SGD with learning rate 0.01, on the whole batch. Defences clip the
whole update to norm 1 and add Gaussian noise to each entry: sigma 0.001 (weak) or 0.01 (strong).

The attack is the strongest known today for the network (`leak_cells.attack_of`). Closed forms evaluate no gradient; the
others have this budget of evaluations for an update, with local steps in brackets: LeNet with sigmoids and ResNet
with softplus 600 (100), LeNet with ReLUs and MLP 250 (100), all else 150 (50). That is what two minutes on a busy core
allow; a longer search finds more, so shares of searches are lower bounds.

Cells are run in the order of their importance; those that have a row are left out, so running again goes on. `--only`
takes patterns, `--minutes N` stops at the first end of a cell after N minutes. With `--risk` the cells that have a row
get what `jaxleak risk` expects of their first update.

    python -m experiments.leak_map --data-dir DIR --minutes 60 --only 'lenet-*-b1-*'
"""

import fnmatch
import json
import sys
import time
from itertools import product
from typing import Any

import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder
from experiments.leak_cells import (
    AXES,
    DEFENCES,
    NETWORKS,
    TRAININGS,
    Cell,
    all_cells,
    attack_of,
    victim_of,
)
from experiments.leak_figure import draw

PAPER = "The leak map"
GOOD = 20.0  # dB


def main() -> None:
    options = arguments(
        __doc__,
        minutes={"type": float, "default": None, "help": "stop at the end of a cell after so many (default: never)"},
        risk={"action": "store_true", "help": "predict the cells that have a row"},
    )
    file, act = ("risk.jsonl", predicted) if options.risk else ("cells.jsonl", measured)
    cells = wanted(options.only, file)
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    began, kept = time.monotonic(), {}
    for number, cell in enumerate(cells):
        if options.minutes is not None and time.monotonic() - began > 60 * options.minutes:
            print(f"leak_map: {options.minutes:g} minutes are over; {len(cells) - number} cells are left.")
            break
        row = act(cell, victim_of(cell, data, kept, options.runs), options)
        with (results_folder("leak_map") / file).open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(f"{cell.name}  {row['seconds']:.0f} s  {'  '.join(told(stored()[cell.name]))}", flush=True)
    draw(stored(), results_folder("leak_map") / "map.png")


def stored() -> dict[str, dict[str, Any]]:
    """The rows there are, by cell; `risk` is what is predicted [dB], None where nothing is."""
    cells, risks = (rows_of(name) for name in ("cells.jsonl", "risk.jsonl"))
    return {name: {**row, "risk": risks.get(name, {}).get("psnr")} for name, row in cells.items()}


def rows_of(file: str) -> dict[str, dict[str, Any]]:
    path = results_folder("leak_map") / file
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["cell"]: row for row in rows}


def wanted(only: list[str] | None, file: str) -> list[Cell]:
    """Cells without a row in the file, the most important first; those that a pattern names, or all.

    Predicted are cells that were attacked.
    """
    cells = all_cells()
    for pattern in only or ():
        if not fnmatch.filter(cells, pattern):
            print(f"`only` must name cells, such as {next(iter(cells))} or lenet-*; got {pattern}.", file=sys.stderr)
            raise SystemExit(2)
    named = [name for name in cells if not only or any(fnmatch.fnmatch(name, pattern) for pattern in only)]
    done, attacked = rows_of(file), rows_of("cells.jsonl")
    return [cells[name] for name in named if name not in done and (file == "cells.jsonl" or name in attacked)]


def measured(cell: Cell, victim: jaxleak.Victim, options) -> dict[str, Any]:
    """The row of a cell."""
    began, attack = time.perf_counter(), attack_of(cell)
    sweep = jaxleak.Sweep(victim=victim, attacks=(attack,), seeds=1, snapshots=())
    result = jaxleak.run_sweep(sweep, options.runs / "leak_map" / cell.name, lanes=options.lanes, quiet=True)
    rows = sorted(result.rows, key=lambda row: victim.indices.index(row["image"]))
    found = [result.reconstructions([row["trial"]])["candidate"] for row in rows]
    shape = victim.images[: cell.batch].shape
    return {
        "cell": cell.name,
        **cell._asdict(),
        "mode": NETWORKS[cell.network].mode,
        "defences": DEFENCES[cell.defence],
        "trained_steps": TRAININGS[cell.training],
        "accuracy": victim.training["accuracy"][0] if victim.training else None,
        "attack": attack.name,
        "settings": attack.settings(),
        "psnr": decibels(np.concatenate([np.reshape(images, shape) for images in found]), victim.images),
        "evaluations": [row["evaluations"] for row in rows],
        "labels_right": sum(row["labels_right"] for row in rows),
        "seconds": round(time.perf_counter() - began, 1),
        **{name: rows[0][name] for name in ("device", "jaxleak_version", "git_revision", "git_dirty")},
    }


def decibels(candidates: np.ndarray, images: np.ndarray) -> list[float]:
    """PSNR of each image, of pixels cut to [0, 1]; 0 where it is no number."""
    apart = np.mean(np.square(np.clip(candidates, 0, 1) - images), axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.round(np.clip(np.nan_to_num(-10 * np.log10(apart), nan=0.0), 0, 200), 2).tolist()


def predicted(cell: Cell, victim: jaxleak.Victim, options) -> dict[str, Any]:
    """What `jaxleak risk` says of the cell's first update; the reason where it says nothing."""
    del options
    began, row = time.perf_counter(), {"cell": cell.name, "psnr": None, "reason": None}
    try:
        lines = {line.defence: line.psnr for line in jaxleak.risk(victim, ()).lines}
        row["psnr"] = round(lines[victim.defence_name if victim.defences else "none"], 2)
    except jaxleak.InputError as error:
        row["reason"] = str(error)
    return {**row, "seconds": round(time.perf_counter() - began, 1)}


def told(row: dict[str, Any]) -> list[str]:
    """Share above 20 dB with its interval, median PSNR, evaluations, labels and what `risk` says."""
    good, count = sum(psnr > GOOD for psnr in row["psnr"]), len(row["psnr"])
    risk = tables.NONE if row["risk"] is None else f"{row['risk']:.1f}"
    used = f"{np.median(row['evaluations']):,.0f}"
    share = [f"{good}/{count}", tables.interval(jaxleak.wilson(good, count))]
    return [*share, f"{np.median(row['psnr']):.1f}", used, str(row["labels_right"]), risk]


def results() -> list[tables.Results]:
    """A line a cell that was run."""
    rows, lines = stored(), []
    for cell in map(Cell._make, product(*AXES)):
        if cell.name in rows:
            network = NETWORKS[cell.network]
            setting = [network.what, network.mode, cell.training, cell.batch, cell.steps, cell.defence]
            lines.append([*setting, rows[cell.name]["attack"], *told(rows[cell.name])])
    columns = ("network", "BatchNorm", "training", "batch", "local steps", "defence", "attack", "above 20 dB", "95 %")
    columns += ("PSNR in dB", "evaluations", "labels right", "risk in dB")
    accuracies = {
        f"{NETWORKS[row['network']].what} {row['accuracy']:.0%}": None
        for row in rows.values()
        if row["training"] == "trained"
    }
    notes = [
        f"{len(rows)} of {len(all_cells()):,} cells were run. PSNR and evaluations: medians.",
        "Attacks: `L2` and `cosine` are L-BFGS on pixels kept in [0, 1]; the others are closed forms.",
        "Weak and strong: the update clipped to norm 1, noise of 0.001 and 0.01 on each entry.",
        "Risk: the PSNR that `jaxleak risk` expects of the first update; – where it was not computed.",
    ]
    if accuracies:
        notes.append(f"Trained: four epochs; accuracies on held-out images: {', '.join(accuracies)}.")
    return [
        tables.Results(
            "What leaks: CIFAR-100 images above 20 dB, one start",
            "leak_map",
            columns,
            lines or [[tables.NOT_RUN]],
            tables.device(*rows.values()),
            notes,
            {"map": "leak_map/map.png"} if rows else {},
        )
    ]


if __name__ == "__main__":
    main()
