"""What Geiping et al. 2020 (Inverting Gradients) vary: width, depth, padding, local epochs, dense layers, and steps.

CIFAR-100 train images, normalised, an untrained network of its own for each update, one start; signed Adam on
1 - cosine with a total variation of 0.01, the label read from the update. Networks have ReLUs; those with BatchNorm
have torch's initialisation and are in evaluation mode. All but `full` are narrow: twenty images fit on two cores.

`width`: ResNet-18. `depth`: ResNets of width 8. `padding`: six convolutions (`ig_studies_settings.Padded`); the head
reads the whole last map, or the mean of each channel, and then nothing but the padding says where a thing is. Every
PSNR is also taken at the circular shift of the candidate that fits best. `averaging`: LeNet (sigmoids, U(-0.5, 0.5)),
so many images x local epochs, two images a step; the client shares the weight difference, the attacker has the labels
and repeats the steps. `dense`: a stack of three dense layers, by the closed form and by the published attack.
`steps`: the paper's ConvNet and ResNet20-4 with 8 channels in the first layer, and the paper's budgets; `full`: the
same with the paper's 64 channels.

    python -m experiments.ig_studies --data-dir DIR [--only "width 4" "padding zero, mean"]
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder
from experiments.ig_studies_figure import draw
from experiments.ig_studies_settings import STUDIES, Setting
from experiments.sheet import draw_sheet

PAPER = "Inverting Gradients (Geiping et al. 2020)"
PICTURES = 8
Row = dict[str, Any]


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": 20, "help": "at most (default: %(default)s)"})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    names = chosen_runs([f"{study} {name}" for study, settings in STUDIES.items() for name in settings], options)
    folder = results_folder("ig_studies")
    for study, settings in STUDIES.items():
        kept: dict[str, Any] = {name: [row for row in stored(study) if row["setting"] == name] for name in settings}
        shown: dict[str, Any] = {}
        for name, setting in settings.items():
            if f"{study} {name}" in names:
                result = run(setting, data, options, options.runs / "ig_studies" / study / name.replace(" ", "-"))
                kept[name], shown[name] = zip(*measured(result, name, setting, data), strict=True)
                psnr = [row["psnr"] for row in kept[name]]
                print(f"{study} {name}: {np.mean(psnr):.1f} dB of {len(psnr)}", flush=True)
                lines = [json.dumps(row) for name in settings for row in kept[name]]
                (folder / f"{study}.jsonl").write_text("\n".join(lines) + "\n")
        if shown:
            pictures(data, kept, shown, folder / f"{study}.png")
    draw({study: stored(study) for study in STUDIES}, folder / "studies.png")


def run(setting: Setting, data: jaxleak.Dataset, options, path) -> jaxleak.Result:
    """A start for each update."""
    images = min(setting.images, options.images)
    more: dict[str, Any] = {"fields": setting.fields} if setting.fields else {}
    more |= {"client": jaxleak.Client(**setting.client)} if setting.client else {}
    victim = jaxleak.make_victim(
        setting.model,
        data,
        data.random_indices(images - images % setting.batch, seed=2020),
        network="per-image",
        normalise="cifar100",
        batch=setting.batch,
        **more,
    )
    sweep = jaxleak.Sweep(victim=victim, attacks=(setting.attack,), seeds=1, snapshots=())
    return jaxleak.run_sweep(sweep, path, lanes=options.lanes)


def measured(
    result: jaxleak.Result, name: str, setting: Setting, data: jaxleak.Dataset
) -> Iterator[tuple[Row, np.ndarray]]:
    """A row for each image, and what the attack found; `objective` and `labels_right` are its update's."""
    indices = result.run.settings["victim"]["images"]
    kept = ("evaluations", "objective", "labels_right", "device", "git_revision", "git_dirty")
    for own in sorted(result.rows, key=lambda row: indices.index(row["image"])):
        place = indices.index(own["image"])
        images, _ = data.images(indices[place : place + setting.batch])
        found = result.reconstructions([own["trial"]])["candidate"][0].reshape(images.shape)
        for slot, (image, candidate) in enumerate(zip(images, np.clip(found, 0, 1), strict=True)):
            psnr, shift = shifted(candidate, image)
            row = {"setting": name, "image": indices[place + slot], "update": own["image"]}
            row |= {"psnr": decibels(np.mean((candidate - image) ** 2)), "psnr_shifted": psnr, "shift": shift}
            yield row | {key: own[key] for key in kept}, candidate


def decibels(error: Any) -> float:
    """PSNR of a mean squared error."""
    return float(-10 * np.log10(error))


def shifted(candidate: np.ndarray, image: np.ndarray) -> tuple[float, list[int]]:
    """PSNR at the circular shift of the candidate that fits best, and the shift in pixels, down and to the right."""
    h, w, _ = image.shape
    errors = {
        (down, right): np.mean((np.roll(candidate, (down, right), (0, 1)) - image) ** 2)
        for down in range(-h // 2, h // 2)
        for right in range(-w // 2, w // 2)
    }
    best = min(errors, key=errors.__getitem__)
    return decibels(errors[best]), list(best)


def pictures(data: jaxleak.Dataset, rows: dict[str, Any], shown: dict[str, Any], path: Path) -> None:
    """The first images and what the attack makes of them in each setting."""
    indices = [row["image"] for row in max((rows[name] for name in shown), key=len)][:PICTURES]
    lines = [("truth", [(image, "") for image in data.images(indices)[0]])]
    for name, found in shown.items():
        texts = [f"{row['psnr']:.1f} dB" for row in rows[name]]
        lines.append(
            (f"{path.stem} {name}" if name.isdigit() else name, list(zip(found, texts, strict=True))[:PICTURES])
        )
    draw_sheet(lines, path, margin=1.1)


def stored(study: str) -> list[Row]:
    """What is done."""
    path = results_folder("ig_studies") / f"{study}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def line(rows: list[Row], *more: Any) -> list[Any]:
    """PSNR over images, and what is left of the objective."""
    if not rows:
        return [tables.NOT_RUN]
    psnr = np.array([row["psnr"] for row in rows])
    left = f"{np.median([row['objective'] for row in rows]):.0e}"
    steps = f"{np.median([row['evaluations'] for row in rows]):,.0f}"
    mean = f"{psnr.mean():.1f} ± {psnr.std(ddof=1):.1f}"
    return [mean, f"{psnr.min():.1f} to {psnr.max():.1f}", len(rows), steps, left, *more]


TITLES = {
    "width": ("Widths of ResNet-18", "channels"),
    "depth": ("Depths, width 8", "ResNet"),
    "padding": ("Padding: what says where a thing is", "padding, head reads"),
    "averaging": ("Local averaging, LeNet", "images x epochs"),
    "dense": ("A stack of dense layers", "attack"),
    "steps": ("The paper's networks and budgets, width 8", "network, steps"),
    "full": ("The paper's networks and budgets, width 64", "network, steps"),
}
NOTES = {
    "padding": ("At its best shift: the candidate, moved in a circle. Moved: images that then gain over 1 dB.",),
    "averaging": ("Two images a step; labels known.",),
    "steps": (BUDGETS := "Paper (recalled): 4,800 and 24,000 steps, ConvNet with 64 channels and ResNet20-4 with 64.",),
    "full": (BUDGETS,),
}


def results() -> list[tables.Results]:
    """A table each study."""
    found = []
    for study, settings in STUDIES.items():
        rows, lines = stored(study), []
        for name in settings:
            own = [row for row in rows if row["setting"] == name]
            more = []
            if own and study == "padding":
                best = np.array([row["psnr_shifted"] for row in own])
                moved = sum(row["psnr_shifted"] - row["psnr"] > 1 for row in own)
                interval = tables.interval([100 * bound for bound in jaxleak.wilson(moved, len(own))], 0)
                more = [f"{best.mean():.1f} ± {best.std(ddof=1):.1f}", f"{moved}/{len(own)}", interval]
            lines.append([f"`{name}`", *line(own, *more)])
        title, head = TITLES[study]
        extra = ("at its best shift", "moved", "95 %") if study == "padding" else ()
        files = {"pictures": f"ig_studies/{study}.png", "figure": "ig_studies/studies.png"}
        found.append(
            tables.Results(
                title,
                "ig_studies",
                (head, "PSNR in dB", "range", "n", "evaluations", "1 - cosine", *extra),
                lines,
                ", ".join(dict.fromkeys(row["device"] for row in rows)),
                ("Mean ± standard deviation over images. 1 - cosine: median.", *NOTES.get(study, ())),
                files if rows else {},
            )
        )
    return found


if __name__ == "__main__":
    main()
