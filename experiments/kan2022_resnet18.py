"""Kan, Meng & Wang 2022, "ResNet-18 cannot be inverted": the published protocol and ours, side by side.

ResNet-18 in its CIFAR form, CIFAR-100 images normalised by the data set's statistics, a fresh network for each trial
unless a line says otherwise. `published`: all weights U(-0.5, 0.5), BatchNorm in train mode on one image, absolute
objective, torch's solver, pixels as they are; `published-lenet` is the same attack on LeNet. The others use jaxleak's
L-BFGS with a relative objective and no absolute stop. `eval-` and `train-` say BatchNorm's mode, what follows the
initialisation or what else is changed; sigmoids unless said. `published-idlg` is iDLG's published attack,
`published-34` and `published-50` are DLG's on ResNet-34 and ResNet-50. On a CPU the width is reduced (16 instead of
64), which is in the rows; `--width 64 --images 3 --seeds 2 --evaluations 4000` is the paper's network.

    python -m experiments.kan2022_resnet18 --data-dir DIR --images 20 --seeds 4 --width 16 --evaluations 800
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jaxleak
from experiments import tables
from experiments.harness import DLG, IDLG, arguments, chosen_runs, results_folder, run_one, write_json
from experiments.kan2022_resnet18_figures import curves, pictures, table

PAPER = "Kan et al. 2022"
OURS = replace(jaxleak.IDLG, name="ours", label="bias", scale="relative", stop_objective=0.0)
IMAGE = 20319
CURVES = ("published-lenet", "published", "eval-softplus-torch", "train-softplus-torch")


@dataclass(frozen=True)
class Setting:
    """One line of the table: fields changed in the model, the attack and the victim; network, and attack to change."""

    model: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    victim: dict[str, Any] = field(default_factory=dict)
    network: str = "resnet18"
    base: jaxleak.Attack = OURS


WEIGHTS, TORCH = {"weight_init": "uniform-weights"}, {"weight_init": "torch"}
TRAIN, RELU, SOFTPLUS = {"train": True}, {"activation": "relu"}, {"activation": "softplus"}
EACH_TENSOR, COSINE = {"scale": "per-tensor"}, {"objective": "cosine", "scale": "none", "tv": 1e-6}
TRAINED = {"network": "shared", "trained_steps": 1000}
SETTINGS = {
    "published": Setting(TRAIN, base=DLG),
    "published-idlg": Setting(TRAIN, base=IDLG),
    "published-34": Setting(TRAIN, network="resnet34", base=DLG),
    "published-50": Setting(TRAIN, network="resnet50", base=DLG),
    "published-lenet": Setting(network="lenet", base=DLG),
    "train-uniform": Setting(TRAIN),
    "eval": Setting(WEIGHTS),
    "train": Setting(TRAIN | WEIGHTS),
    "eval-softplus-torch": Setting(SOFTPLUS | TORCH),
    "eval-uniform": Setting({}, EACH_TENSOR),
    "eval-torch": Setting(TORCH, EACH_TENSOR),
    "train-torch": Setting(TRAIN | TORCH, EACH_TENSOR),
    "train-softplus-torch": Setting(TRAIN | SOFTPLUS | TORCH, EACH_TENSOR),
    "eval-softplus-trained": Setting(SOFTPLUS | TORCH, {}, TRAINED),
    "eval-softplus-trained-hidden": Setting(SOFTPLUS | TORCH, {}, TRAINED | {"knows_statistics": False}),
    "eval-relu-torch-cosine": Setting(RELU | TORCH, COSINE),
    "train-relu-torch-cosine": Setting(TRAIN | RELU | TORCH, COSINE),
    "eval-joint": Setting(WEIGHTS, {"label": "joint"}),
    "eval-per-tensor": Setting(WEIGHTS, EACH_TENSOR),
    "eval-absolute": Setting(WEIGHTS, {"scale": "none"}),
}
COLUMNS = (
    *("setting", "images x starts", "evaluations", "recovered", "95 %", "but for contrast and brightness", "95 %"),
    *("PSNR in dB", "error but for these", "objective below 1e-4", "relative objective", "label right"),
)


def main() -> None:
    numbers = {"images": 20, "seeds": 4, "width": 16, "evaluations": 800}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=options.data_dir)
    chosen = [IMAGE, *(index for index in data.random_indices(options.images, seed=2022) if index != IMAGE)]
    folder, results = results_folder("kan2022_resnet18"), {}
    for name in chosen_runs(SETTINGS, options):
        sweep = build(name, SETTINGS[name], data, chosen[: options.images], options)
        results[name] = run_one("kan2022_resnet18", f"{name}-{options.width}", sweep, options)
        write_json(folder / f"{name}-{options.width}-table.json", table(name, options.width, results[name]))
    pictures(results, folder / f"pictures-{options.width}.png")
    shown = {name: results[name] for name in CURVES if name in results}
    if shown:
        curves(shown, folder / f"curves-{options.width}.png")


def build(name: str, setting: Setting, data: jaxleak.Dataset, images: list[int], options) -> jaxleak.Sweep:
    """The sweep of one setting."""
    published, lenet = setting.base is not OURS, setting.network == "lenet"
    fields = {"width": options.width, "train": False, **setting.model}
    threat = dict(setting.victim)
    if "trained_steps" in threat:  # one training for both lines, taken from the first one's run directory
        threat["checkpoint"] = Path(options.runs) / "kan2022_resnet18" / f"eval-softplus-trained-{options.width}"
    known = threat.pop("knows_statistics", True)
    victim = jaxleak.make_victim(
        setting.network,
        data,
        images,
        fields=None if lenet else fields,
        normalise="none" if published else "cifar100",
        **threat,
    )
    victim = replace(victim, knows_statistics=known)
    budget = {} if published else {"max_evaluations": options.evaluations}
    attack = replace(setting.base, name=name, **budget, **setting.attack)
    return jaxleak.Sweep(victim=victim, attacks=(attack,), seeds=options.seeds, snapshots=())


TENSORS = "`eval-uniform`, `eval-torch`, `train-torch`, `train-softplus-torch`: measured tensor by tensor."


def results() -> list[tables.Results]:
    """A table a width: a row each setting."""
    return [results_at(64), results_at(16)]


def results_at(width: int) -> tables.Results:
    told = {name: tables.stored(f"kan2022_resnet18/{name}-{width}-table.json") for name in SETTINGS}
    rows = [cells(one) for one in told.values() if one]
    if len(rows) < len(SETTINGS):
        rows.append(["others" if rows else "all", tables.NOT_RUN])
    return tables.Results(
        f"ResNet-18, {'full width' if width == 64 else f'width {width}'}: whose images come back",
        f"kan2022_resnet18 --width {width}{' --images 3 --seeds 2' if width == 64 else ''}",
        COLUMNS,
        rows,
        tables.device(*told.values()),
        (
            "`--only NAME --images N --seeds N --evaluations N` makes a row.",
            "The name says BatchNorm's mode first: eval (running statistics) or train.",
            TENSORS,
            "`published-34` and `published-50` are ResNet-34 and ResNet-50, `published-idlg` has iDLG's attack.",
            tables.AFFINE,
            "Evaluations, PSNR, error and objective are medians or quartiles; the objective is the relative one.",
            "Paper: no image recovered of 20, 20 starts each.",
        ),
        {kind: f"kan2022_resnet18/{kind}-{width}.png" for kind in ("pictures", "curves")},
    )


def cells(told: dict[str, Any]) -> list[str]:
    """All that was measured in one setting."""
    n, accuracy = told["trials"], told["accuracy"]
    shape = {"solved": told["recovered_but_affine"], "trials": n, "ci95": told["ci95_but_affine"]}
    return [
        f"`{told['setting']}`" + (f" ({accuracy:.1%} accuracy)" if accuracy is not None else ""),
        f"{told['images']} x {n // told['images']}",
        f"{told['evaluations_median']:,.0f}",
        *tables.share(told, "recovered"),
        *tables.share(shape),
        ", ".join(f"{one:.1f}" for one in told["psnr_quartiles"]),
        ", ".join(f"{one:.2f}" for one in told["affine_error_quartiles"]),
        f"{told['objective_below_1e-4']}/{n}",
        f"{told['relative_objective_median']:.0e}",
        f"{told['labels_right']}/{n}",
    ]


if __name__ == "__main__":
    main()
