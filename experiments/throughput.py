"""Evaluations per second of jaxleak beside the alternatives: `jaxleak bench`, on LeNet and on ResNet-18.

LeNet with L-BFGS, ResNet-18 (CIFAR form) with Adam; on a CPU the ResNet has a reduced width, which is in its settings.
The PyTorch variants need the extra `torch`. Further flags are handed to `jaxleak bench`.

The whole zoo (`--zoo`): every model at its own width, 32 pixels (Inception v3: 299) or 16 tokens of a text, beside the
loop in PyTorch.

    python -m experiments.throughput [--zoo]
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
    "pytorch-no-onednn": "the same with oneDNN off",
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
LOOPS = ("jaxleak", "pytorch-processes", "pytorch-serial")
# Lanes: one a core, where an image fills it.
ZOO = {
    "lenet-cpl": (),
    "mlp": (),
    "transformer": (),
    "vit": ("--lanes", "8"),
    **dict.fromkeys(("convnet", "convnet-gn", "resnet20-4"), ("--lanes", "2")),
    "resnet18": ("--width", "64", "--lanes", "2"),
    **dict.fromkeys(("resnet34", "resnet50", "densenet121"), ("--lanes", "2")),
    **dict.fromkeys(("resnet101", "resnet152", "resnet32-10", "inception3"), ("--lanes", "2")),
}


def bench(folder: Path, models=MODELS, *flags: str) -> None:
    """Write FOLDER/MODEL.json for each model."""
    for model in models:
        out = str(folder / f"{model}.json")
        subprocess.run([*JAXLEAK, "bench", "--model", model, "--out", out, *flags], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS, help="just these models")
    parser.add_argument("--zoo", nargs="*", default=None, choices=ZOO, help="these models of the zoo, or all, instead")
    options, flags = parser.parse_known_args()
    folder = results_folder("throughput")
    if options.zoo is None:
        bench(folder, options.models, *flags)
    for model in ZOO if options.zoo == [] else options.zoo or ():
        out = str(folder / f"zoo-{model}.json")
        command = [*JAXLEAK, "bench", "--model", model, "--only", *LOOPS, *ZOO[model], "--out", out, *flags]
        subprocess.run(command, check=True)


def zoo() -> tables.Results:
    """A line a model."""
    lines, where = [], ""
    for model in ZOO:
        report = tables.stored(f"throughput/zoo-{model}.json")
        if not report or report["interrupted"] or "jaxleak" not in report["ratios"]:
            lines.append([f"`{model}`", tables.NOT_RUN])
            continue
        where, settings = report["device"], report["settings"]
        told = {one["name"]: one for one in report["variants"]}
        ours, work = told["jaxleak"], report["machine"]["evaluation"]["flops"]
        size = settings["image_size"] or f"{settings['shape'][0]} tokens"
        cells = [settings["width"] or tables.NONE, size, f"{work / 1e9:,.2f}", ours["lanes"]]
        cells += [f"{told[name]['evaluations_per_second']:,.2f}" for name in LOOPS]
        cells += [times_of(report, "jaxleak", other) for other in LOOPS[1:]]
        lines.append([f"`{model}`", *cells, f"{ours['compile_seconds']:.0f}"])
    columns = ("model", "width", "pixels", "GFLOP an evaluation", "lanes", "jaxleak", "PyTorch, a process a core")
    columns += ("PyTorch, one process", "times the processes", "times the one", "compile [s]")
    notes = [
        "Evaluations/s, medians of interleaved rounds; brackets: smallest and largest of a round. GFLOP: XLA's count.",
        "`--seconds 30` to 100, the deeper the longer.",
    ]
    return tables.Results("The zoo: whole step", "throughput --zoo", columns, lines, where, notes)


def times_of(report: dict, ours: str, other: str) -> str:
    """Ours over the other, with the smallest and largest of a round."""
    ratio, spread = (report[key].get(ours, {}).get(other) for key in ("ratios", "ratios_spread"))
    return f"{ratio:.1f} ({spread[0]:.1f} to {spread[1]:.1f})" if ratio else tables.NONE


def results() -> list[tables.Results]:
    """A table a model: evaluations per second of each variant, and ours over the others'; then the zoo's."""
    return [*(results_of(model) for model in MODELS), zoo()]


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
            times = (times_of(report, name, other) for other in others)
            cells = [rates[name], rounds[name], *times]
            rows.append([f"`{name}`", VARIANTS[name], *cells])
        title += "" if model == "lenet" else f", width {settings['width']}"
        where = report["device"]
        notes = [
            f"Medians of interleaved rounds, at most {settings['rounds']}; `times` is ours over that one (smallest to "
            "largest of a round).",
            "With oneDNN off only the loop was measured.",
        ]
    columns = ("variant", "what", "evaluations/s", "rounds", *(f"times `{name}`" for name in others))
    return tables.Results(
        f"{title}: whole step", f"throughput --models {model} --seconds 200", columns, rows, where, notes
    )


if __name__ == "__main__":
    main()
