"""The attack `best`, and what each of its options buys: narrow networks, one image and batches of four.

CIFAR-100 images, a network of its own for each update, torch's default initialisation (`lenet-sigmoid`: U(-0.5, 0.5)),
BatchNorm in evaluation mode, one start, the same number of evaluations for each attack of a setting. ConvNet and
ResNet20-4 have 8 channels in the first layer. Labels are read from the update. `adam` is signed Adam within bounds and
`lbfgs` L-BFGS on variables of which the pixels are sines, both on the cosine distance: `-0.03` is the weight of the
total variation, `-falling` is 10 beside the distance's logarithm. `l2` is L-BFGS on the relative squared distance,
`-box` within bounds, `-tv` with a total variation of 1e-4. `refined` goes on from `rgap` with `lbfgs-0.03`.
`consensus` spends a fifth of the evaluations on each of four starts, and the last from the mean of the better two;
`mean-of-4`, signed Adam as `best` is there, a quarter on each of four starts, and ends with their mean, whose own
objective at each step is not counted.

    python -m experiments.best --data-dir DIR [--only "convnet 4" "lenet-relu 1"]
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder

PAPER = "ReLU networks"
IMAGES, GOOD = 20, 20  # of each setting; dB
RELU = {"activation": "relu", "weight_init": "torch"}
NARROW = {"width": 8, "train": False}
FALLING: dict[str, Any] = {"logarithm": True, "tv": 10.0}
MEAN: dict[str, Any] = {"group": 4, "group_mean": True}
COSINE = replace(jaxleak.IDLG, objective="cosine", box=True, stop_objective=0.0)
L2 = replace(jaxleak.IDLG, scale="relative", stop_objective=0.0, stop_relative=1e-8)


@dataclass(frozen=True)
class Setting:
    """A network, and what it is attacked with."""

    model: str
    fields: dict[str, Any]
    evaluations: int
    attacks: tuple[str, ...]


SEARCHES = ("best", "adam-0.03", "lbfgs-0.03")
SETTINGS = {
    ("resnet20-4", 1): Setting("resnet20-4", NARROW, 300, SEARCHES),
    ("convnet", 1): Setting("convnet", NARROW, 300, SEARCHES),
    ("lenet-sigmoid", 1): Setting("lenet", {}, 1000, ("best", "lbfgs-0.03", "idlg", "l2", "l2-box", "l2-box-tv")),
    ("lenet-sigmoid", 4): Setting("lenet", {}, 1000, ("best", "lbfgs-0.03", "idlg", "l2", "l2-box")),
    ("lenet-relu", 4): Setting("lenet", RELU, 1000, (*SEARCHES, "lbfgs-falling", "idlg", "consensus")),
    ("resnet20-4", 4): Setting("resnet20-4", NARROW, 300, SEARCHES),
    ("convnet", 4): Setting("convnet", NARROW, 300, SEARCHES),
    ("resnet20-4-long", 1): Setting("resnet20-4", NARROW, 4800, ("best", "mean-of-4")),
    ("convnet-long", 1): Setting("convnet", NARROW, 4800, ("best", "mean-of-4")),
    ("lenet-relu", 1): Setting(
        "lenet", RELU, 1000, ("adam-falling", "adam-0.03", "lbfgs-0.03", "idlg", "best", "refined")
    ),
}


def attack_of(name: str, evaluations: int, batch: int) -> jaxleak.Attack:
    """The attack called `name` with this budget."""
    label = {"label": "bias" if batch == 1 else "counts"}
    found = {
        "best": replace(jaxleak.ATTACKS["best"], iterations=evaluations // 20),
        "adam-0.03": replace(jaxleak.IG, tv=0.03, iterations=evaluations, **label),
        "adam-falling": replace(jaxleak.IG, **FALLING, iterations=evaluations, **label),
        "mean-of-4": replace(jaxleak.IG, **FALLING, **MEAN, iterations=evaluations // 4, **label),
        "lbfgs-0.03": replace(COSINE, tv=0.03, iterations=evaluations // 20, **label),
        "lbfgs-falling": replace(COSINE, **FALLING, iterations=evaluations // 20, **label),
        "idlg": replace(jaxleak.IDLG, iterations=evaluations // 20),
        "l2": replace(L2, **label),
        "l2-box": replace(L2, box=True, **label),
        "l2-box-tv": replace(L2, box=True, tv=1e-4, **label),
    }[name]
    return replace(found, name=name, max_evaluations=None if name == "best" else evaluations)


def main() -> None:
    options = arguments(__doc__, images={"type": int, "default": IMAGES})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    path, done = (
        results_folder("best") / "images.jsonl",
        {(row["setting"], row["batch"], row["attack"]) for row in rows()},
    )
    names = chosen_runs([f"{model} {batch}" for model, batch in SETTINGS], options)
    for (model, batch), setting in SETTINGS.items():
        chosen = [int(index) for index in data.random_indices(options.images, seed=2026)]
        for name in setting.attacks:
            if f"{model} {batch}" not in names or (model, batch, name) in done:
                continue

            def victim(images: list[int], setting=setting, batch=batch) -> jaxleak.Victim:
                return jaxleak.make_victim(
                    setting.model, data, images, fields=setting.fields, network="per-image", batch=batch
                )

            found = [
                row for result in runs(name, setting, batch, victim, chosen) for row in measured(result, batch, data)
            ]
            with path.open("a") as file:
                for row in found:
                    file.write(json.dumps({"setting": model, "batch": batch, "attack": name, **row}) + "\n")
            psnr = np.median([row["psnr"] for row in found])
            print(f"{model} x {batch}, {name}: {psnr:.1f} dB of {len(found)} images", flush=True)


def runs(name: str, setting: Setting, batch: int, victim: Any, chosen: list[int]) -> Iterator[jaxleak.Result]:
    """The runs of one attack: one, or where it goes on from another one for each update."""

    def run(attack: str, images: list[int], evaluations: int, **settings: Any) -> jaxleak.Result:
        attacks = (attack_of(attack, evaluations, batch),)
        given = {"seeds": 1, "snapshots": (), **settings}
        return jaxleak.run_sweep(jaxleak.Sweep(victim=victim(images), attacks=attacks, **given), quiet=True)

    if name not in ("refined", "consensus"):
        yield run(name, chosen, setting.evaluations)
        return
    fifth = setting.evaluations // 5
    first = run("best", chosen, setting.evaluations) if name == "refined" else run("best", chosen, fifth, seeds=4)
    for place in range(0, len(chosen), batch):
        images = chosen[place : place + batch]
        own = sorted((row for row in first.rows if row["image"] == images[0]), key=lambda row: row["objective"])[:2]
        start = np.mean([first.reconstructions([row["trial"]])["candidate"][0] for row in own], axis=0)
        starts = {"image": start.reshape(1, batch, *start.shape[-3:])}
        after = ("lbfgs-0.03", setting.evaluations) if name == "refined" else ("adam-falling", fifth)
        yield run(after[0], images, after[1], starts=starts)


def measured(result: jaxleak.Result, batch: int, data: jaxleak.Dataset) -> Iterator[dict[str, Any]]:
    """A row for each image."""
    indices = result.run.settings["victim"]["images"]
    for row in result.rows:
        place = indices.index(row["image"])
        images, _ = data.images(indices[place : place + batch])
        found = result.reconstructions([row["trial"]])["candidate"][0].reshape(images.shape)
        square = np.mean((np.clip(found, 0, 1) - images) ** 2, axis=(1, 2, 3))
        kept = ("image", "evaluations", "labels_right", "chosen", "device", "git_revision", "git_dirty")
        for slot, error in enumerate(square):
            yield {"slot": slot, "psnr": float(-10 * np.log10(error)), **{key: row[key] for key in kept}}


def rows() -> list[dict[str, Any]]:
    """What is done."""
    path = results_folder("best") / "images.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results() -> list[tables.Results]:
    """A row each setting and attack."""
    made, lines = rows(), []
    for (model, batch), setting in SETTINGS.items():
        for name in setting.attacks:
            own = [row for row in made if (row["setting"], row["batch"], row["attack"]) == (model, batch, name)]
            what = f": {own[0]['chosen'].partition(':')[0]}" if own and name == "best" else ""
            line = [f"{model}, {batch}", f"`{name}`{what}"]
            if not own:
                lines.append([*line, tables.NOT_RUN])
                continue
            psnr = np.array([row["psnr"] for row in own])
            good, (low, middle, high) = int(np.sum(psnr > GOOD)), np.percentile(psnr, (25, 50, 75))
            bounds = tables.interval([100 * bound for bound in jaxleak.wilson(good, len(own))], 0)
            evaluations = f"{np.median([row['evaluations'] for row in own]):,.0f}"
            lines.append([*line, evaluations, f"{middle:.1f} ({low:.1f} to {high:.1f})", f"{good}/{len(own)}", bounds])
    return [
        tables.Results(
            "The attack best, and what its options buy",
            "best",
            ("network, images", "attack", "evaluations", "PSNR in dB", "above 20 dB", "95 %"),
            lines,
            ", ".join(dict.fromkeys(row["device"] for row in made)),
            (
                "PSNR: median (quartiles). Evaluations: median; of `refined` and `consensus` those of the last part.",
                "`idlg` is what `jaxleak attack` runs beside `dlg` where no attack is named.",
            ),
        )
    ]


if __name__ == "__main__":
    main()
