"""What one step of the engine's program costs on an H100, compiled on a machine that has none: `jaxleak bench --for`.

LeNet, DLG, L-BFGS with a history of 100, CIFAR-100's sizes; ResNet-18 of width 64 with Adam. Nothing runs: the program
that XLA makes for the GPU is read. "Before" is the same count of the program as it was at the revision named.

    PYTHONPATH=cuda-plugin python -m experiments.gpu_account

(How to have `cuda-plugin`: `jaxleak bench --for h100` says it.)
"""

import json
import os
from typing import Any

from experiments import tables
from experiments.harness import arguments, results_folder, write_json

PAPER = "Speed"
DEVICE = "h100"
PROGRAMS = {
    "LeNet, `lbfgs`, network shared": ("lenet", "jaxleak-lbfgs", 256),
    "the same, 1,024 lanes": ("lenet", "jaxleak-lbfgs", 1024),
    "LeNet, `torch-lbfgs`, network per-trial": ("lenet", "jaxleak-network-per-trial", 256),
    "LeNet, `ig` (Adam), network shared": ("lenet", "jaxleak-cosine", 256),
    "ResNet-18, Adam, network shared": ("resnet18", "jaxleak", 64),
}


def main() -> None:
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # jax's plugin would look for NVIDIA's packages
    options = arguments(__doc__, stored_as={"default": "now", "choices": ("now", "before"), "help": "which column"})
    from jaxleak.bench.account import account
    from jaxleak.bench.settings import Settings
    from jaxleak.results.store.environment import environment

    path = results_folder("gpu_account") / f"{options.stored_as}.json"
    reports: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    reports["environment"] = environment()
    for name, (model, variant, lanes) in PROGRAMS.items():
        settings = Settings(model=model, width=None if model == "lenet" else 64, iterations=300).plain()
        report = account(DEVICE, variant, lanes, settings).report()
        reports[name] = {key: value for key, value in report.items() if key not in ("largest", "settings")}
        write_json(path, reports)
        print(name, report["kernels"], f"{report['bytes'] / 1e9:.3f} GB", flush=True)


def results() -> list[tables.Results]:
    """Kernels and bytes a step, before and now."""
    before, now = (tables.stored(f"gpu_account/{name}.json") or {} for name in ("before", "now"))
    rows = []
    for name in PROGRAMS:
        old, new = before.get(name), now.get(name)
        row: list[Any] = [name, new["lanes"] if new else tables.NONE]
        for unit, scale in (("kernels", 1.0), ("bytes", 1e-9)):
            for report in (old, new):
                row.append(f"{report[unit] * scale:.3g}" if report else tables.NOT_RUN)
        row += [f"{report['evaluations_per_second']:,.0f}" if report else tables.NOT_RUN for report in (old, new)]
        row.append(f"{new['lane_bytes'] / 1e6:.1f}" if new else tables.NOT_RUN)
        rows.append(row)
    notes = [
        "Compiled for an H100, not run on one. Rates are the most that its memory and float32 units allow.",
        "Launches are not in them: 90 kernels at some 4 us each are 360 us, which 256 lanes do not hide.",
    ]
    if before and now:
        revisions = (report["environment"]["git_revision"][:7] for report in (before, now))
        notes.append("Before: {}; now: {}.".format(*revisions))
    columns = (
        "program",
        "lanes",
        "kernels before",
        "now",
        "GB a step before",
        "now",
        "at most before",
        "now",
        "MB a lane",
    )
    where = "one step compiled for an H100"
    return [tables.Results("A step on a GPU, by its account", "gpu_account", columns, rows, where, notes)]


if __name__ == "__main__":
    main()
