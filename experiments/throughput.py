"""Evaluations per second of jaxleak beside the alternatives: `jaxleak bench`, on LeNet and on ResNet-18.

LeNet with L-BFGS, ResNet-18 (CIFAR form) with Adam; on a CPU the ResNet has a reduced width, which is in its settings.
The PyTorch variants need the extra `torch`. Further flags are handed to `jaxleak bench`.

    python -m experiments.throughput
"""

import argparse
import subprocess
import sys
from pathlib import Path

from experiments import tables
from experiments.harness import results_folder

PAPER = "Speed"
MODELS = ("lenet", "resnet18")
JAXLEAK = (sys.executable, "-m", "jaxleak")
VARIANTS = {
    "pytorch-processes": "one process per core, summed",
    "pytorch-serial": "one process",
    "pytorch-vmap": "`torch.func.vmap`, one process per core, summed",
    "pytorch-compiled": "the same through `torch.compile`",
    "pytorch-cosine-processes": "Inverting Gradients, one process per core, summed",
    "plain-vmap": "jax's `vmap` over whole trials",
    "jaxopt": "jaxopt's solver under `vmap`",
    "jaxleak": "network shared",
    "jaxleak-network-per-trial": "network per-trial",
    "jaxleak-lbfgs": "network shared, our solver `lbfgs`",
    "jaxleak-cosine": "attack `ig`, network shared",
}


def bench(folder: Path, models=MODELS, *flags: str) -> None:
    """Write FOLDER/MODEL.json for each model."""
    for model in models:
        out = str(folder / f"{model}.json")
        subprocess.run([*JAXLEAK, "bench", "--model", model, "--out", out, *flags], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, help="just these models")
    options, flags = parser.parse_known_args()
    bench(results_folder("throughput"), options.models, *flags)


def results() -> list[tables.Results]:
    """A table a model: evaluations per second of each variant, and ours over the others'."""
    return [results_of(model) for model in MODELS]


def results_of(model: str) -> tables.Results:
    report = tables.stored(f"throughput/{model}.json")
    title = {"lenet": "LeNet, DLG, L-BFGS with history 100", "resnet18": "ResNet-18, DLG, Adam"}[model]
    rows, others, where, notes = [["all", tables.NOT_RUN]], [], "", []
    if report:
        settings, ratios = report["settings"], report["ratios"]
        others = list(dict.fromkeys(name for own in ratios.values() for name in own))
        rates = {one["name"]: f"{one['evaluations_per_second']:,.0f}" for one in report["variants"]}
        rounds, rows = {one["name"]: len(one["rounds"]) for one in report["variants"]}, []
        for name in rates:
            times = [ratios.get(name, {}).get(other) for other in others]
            cells = [rates[name], rounds[name], *(f"{x:.1f}" if x else tables.NONE for x in times)]
            rows.append([f"`{name}`", VARIANTS[name], *cells])
        title += "" if model == "lenet" else f", width {settings['width']}"
        where = report["device"]
        notes = [f"Medians of interleaved rounds, at most {settings['rounds']}; `times` is ours over that one."]
    columns = ("variant", "what", "evaluations/s", "rounds", *(f"times `{name}`" for name in others))
    return tables.Results(f"{title}: whole step", f"throughput --models {model}", columns, rows, where, notes)


if __name__ == "__main__":
    main()
