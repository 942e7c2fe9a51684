"""`best` beside breaching's presets: the same images, networks, updates, labels, and the same time on one core.

CIFAR-100 images, normalised; eight updates a setting, each from a network of its own, ReLUs, torch's default
initialisation. ConvNet and ResNet20-4 have 8 channels in the first layer, ResNet-18 16. BatchNorm is in evaluation mode
but where `train` stands. `trained`: one network, trained on the 20 coarse classes with the images that are attacked
left out. All attackers know the labels and make one start. jaxleak computes the update; PyTorch's gradient of the true
images must agree, but for a kink.

Every attack gets `--seconds` on one core for an update, compiling and warming up not counted. breaching's attacks run
one update after the other, with the iterations that fit at the rate measured before, on which their schedules depend;
all else of a preset is as it comes. `best` runs all updates of a setting at once in that time for each, with the
evaluations that fit at the rate of a run of a tenth of it.

Each core has a process. Rows that are there are kept; give `--results DIR` for a try with other settings.

    python -m experiments.peers --data-dir DIR --breaching FOLDER [--only "convnet 4" "lenet 1"]
"""

import json
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import wilcoxon

import jaxleak
from experiments import tables
from experiments.harness import HERE, arguments, chosen_runs, results_folder
from experiments.peers_settings import MOST, SETTINGS, victim_of
from experiments.peers_torch import Found, attacked

PAPER = "ReLU networks"
INNER, PILOT = 20, 2  # evaluations of an iteration of `best`; iterations of the first of two runs that measure its rate
RESAMPLES = 2000
ATTACKS = ("best", "invertinggradients", "modern")


def main() -> None:
    options = arguments(
        __doc__,
        breaching={"type": Path, "required": True, "help": "a checkout of breaching"},
        seconds={"type": float, "default": 15.0, "help": "for an update (default: %(default)s)"},
        images={"type": int, "default": 8, "help": f"updates of a setting, at most {MOST} (default: %(default)s)"},
        cores={"type": int, "default": 2, "help": "processes, one a core (default: %(default)s)"},
    )
    if not (options.breaching / "breaching/config/attack").is_dir():
        raise jaxleak.InputError(
            f"`breaching` must be a checkout of breaching, with its presets; got {options.breaching}."
        )
    done = {(row["setting"], row["attack"]) for row in rows()}
    jobs = [job for job in product(chosen_runs(SETTINGS, options), ATTACKS) if job not in done]
    results_folder("peers")
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    trained = [name for name in dict.fromkeys(name for name, _ in jobs) if SETTINGS[name].steps]
    with multiprocessing.get_context("spawn").Pool(len(cores), maxtasksperchild=1) as pool:
        for attacks in (False, True):  # networks are trained before two processes ask for one
            todo = jobs if attacks else [(name, "") for name in trained]
            shares = [(core, todo[place :: len(cores)], options) for place, core in enumerate(cores)]
            pool.starmap(work, shares, chunksize=1)


def work(core: int, jobs: list[tuple[str, str]], options: Any) -> None:
    """Run these on one core; without an attack only train the network."""
    os.sched_setaffinity(0, {core})
    jaxleak.use_all_cores()
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    made = {"budget": options.seconds, "device": f"1x cpu ({platform.machine()})", **revision()}
    for name, attack in jobs:
        victim = victim_of(SETTINGS[name], data, options.images, options.runs / "peers" / name.replace(" ", "-"))
        made["accuracy"] = victim.training["accuracy"][0] if victim.training else None
        if attack == "best":
            found = best(victim, options.seconds)
        elif attack:
            found = attacked(victim, options.breaching, attack, options.seconds)
        else:
            print(f"{name}: {made['accuracy']:.0%} of images that were held out", flush=True)
            continue
        lines = [
            {"setting": name, "attack": attack, "update": number, "slot": slot, "psnr": psnr, **told, **made}
            for number, (images, *rest) in enumerate(found)
            for told in [dict(zip(Found._fields[1:], rest, strict=True))]
            for slot, psnr in enumerate(decibels(images, victim.images[number * victim.batch :][: victim.batch]))
        ]
        with (options.results / "peers" / "images.jsonl").open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        psnr, spent = (np.median([line[key] for line in lines]) for key in ("psnr", "seconds"))
        print(f"{name}, {attack}: {psnr:.1f} dB of {len(lines)} images, {spent:.1f} s an update", flush=True)


def revision() -> dict[str, Any]:
    """The checkout's revision, and whether its code differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", HERE.parent, *words], capture_output=True, text=True, check=True).stdout

    changed = git("status", "--porcelain", "jaxleak", "experiments/*.py")
    return {"git_revision": git("rev-parse", "HEAD").strip(), "git_dirty": bool(changed)}


def best(victim: jaxleak.Victim, seconds: float) -> Iterator[Found]:
    """`best` on all updates at once, each a lane; seconds are an update's share of the run."""
    iterations, warming, engine = PILOT, 0.0, {}
    for share in (0.1, 1.0, 0.0):  # of the time, for the run that follows
        attack = replace(jaxleak.ATTACKS["best"], label="known", iterations=iterations)
        sweep = jaxleak.Sweep(victim=victim, attacks=(attack,), seeds=1, snapshots=())
        result = jaxleak.run_sweep(sweep, lanes=victim.updates, quiet=True)
        engine = result.summary["engine"]
        warming += engine["compile_seconds"] + bool(share) * engine["seconds"]
        iterations = max(1, round(share * seconds * engine["evaluations"] / engine["seconds"] / INNER))
    for row in sorted(result.rows, key=lambda row: victim.indices.index(row["image"])):
        images = result.reconstructions([row["trial"]])["candidate"].reshape(-1, *victim.images.shape[1:])
        yield Found(images, row["evaluations"], engine["seconds"] / victim.updates, warming)


def decibels(found: np.ndarray, images: np.ndarray) -> list[float]:
    """PSNR of each image: of pixels cut to [0, 1], images matched so that squared errors are least in all."""
    apart = np.mean(np.square(images[:, None] - np.clip(np.nan_to_num(found), 0, 1)[None]), axis=(2, 3, 4))
    return (-10 * np.log10(np.maximum(apart[linear_sum_assignment(apart)], 1e-20))).tolist()


def rows() -> list[dict[str, Any]]:
    """What is done."""
    path = results_folder("peers") / "images.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def psnr_of(made: list[dict[str, Any]], setting: str, attack: str) -> np.ndarray:
    """PSNR [updates, images of one]; empty where it was not run."""
    own = [row["psnr"] for row in made if (row["setting"], row["attack"]) == (setting, attack)]
    return np.array(own).reshape(-1, SETTINGS[setting].batch)


def results() -> list[tables.Results]:
    """A row each setting and attack."""
    made, lines = rows(), []
    for setting, attack in product(SETTINGS, ATTACKS):
        own = [row for row in made if (row["setting"], row["attack"]) == (setting, attack)]
        if not own:
            lines.append([setting, f"`{attack}`", tables.NOT_RUN])
            continue
        psnr = psnr_of(made, setting, attack)
        low, middle, high = np.percentile(psnr, (25, 50, 75))
        evaluations, seconds = (np.median([row[key] for row in own]) for key in ("evaluations", "seconds"))
        line = [setting, f"`{attack}`", f"{evaluations:,.0f}", f"{seconds:.1f}"]
        line += [f"{middle:.1f} ({low:.1f} to {high:.1f})", str(psnr.size)]
        peers = [peer for peer in (psnr_of(made, setting, name) for name in ATTACKS[1:]) if peer.size]
        lines.append([*line, *(compared(psnr, max(peers, key=np.median)) if attack == "best" and peers else [])])
    accuracy = {row["setting"]: row["accuracy"] for row in made if row["accuracy"] is not None}
    notes = [
        "Evaluations and seconds: of an update, medians. PSNR: median (quartiles) over images, whose number is n.",
        "Ahead: the median of `best` less that of the better preset; the interval resamples updates. Wilcoxon's "
        "signed-rank test is on the updates' mean PSNR.",
    ]
    if accuracy:
        told = ", ".join(f"{name} {share:.0%}" for name, share in accuracy.items())
        notes.append(f"Accuracy on held-out images, 20 classes: {told}.")
    columns = ("setting", "attack", "evaluations", "seconds", "PSNR in dB", "n", "ahead in dB", "95 %", "Wilcoxon p")
    device = ", ".join(dict.fromkeys(row["device"] for row in made))
    return [
        tables.Results(
            "The attack best beside breaching's presets", "peers --breaching FOLDER", columns, lines, device, notes
        )
    ]


def compared(ours: np.ndarray, theirs: np.ndarray) -> list[str]:
    """The difference of the medians, its bootstrap interval over updates, and Wilcoxon's p."""
    drawn = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    resampled = [np.median(ours[own]) - np.median(theirs[own]) for own in drawn]
    p = wilcoxon(ours.mean(axis=1), theirs.mean(axis=1)).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    ahead = f"{np.median(ours) - np.median(theirs):.1f}"
    return [ahead, tables.interval(np.percentile(resampled, (2.5, 97.5)).tolist(), 1), f"{p:.3f}"]


if __name__ == "__main__":
    main()
