"""What one step of the engine's program costs on an H100, compiled on a machine that has none: `jaxleak bench --for`.

LeNet, DLG, L-BFGS with a history of 100, CIFAR-100's sizes; ResNet-18 of width 64 with Adam. Nothing runs: the program
that XLA makes for the GPU is read. What changes of the program did stands in NOTES.md.

    PYTHONPATH=cuda-plugin python -m experiments.gpu_account

(How to have `cuda-plugin`: `jaxleak bench --for h100` says it.)
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from experiments import tables
from experiments.harness import arguments, chosen_runs, results_folder, write_json
from experiments.throughput import JAXLEAK

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
    options = arguments(__doc__)
    path = results_folder("gpu_account") / "now.json"
    reports: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in chosen_runs(PROGRAMS, options):
        model, variant, lanes = PROGRAMS[name]
        flags = f"bench --for {DEVICE} --model {model} --only {variant} --lanes {lanes} --out".split()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "account.json"
            subprocess.run([*JAXLEAK, *flags, str(out)], check=True)
            (report,) = json.loads(out.read_text())
        reports[name] = {key: value for key, value in report.items() if key not in ("largest", "settings")}
        write_json(path, reports | {"git_revision": report["git_revision"]})


def results() -> list[tables.Results]:
    """Kernels and bytes a step."""
    now = tables.stored("gpu_account/now.json") or {}
    rows = []
    for name, (_, _, lanes) in PROGRAMS.items():
        cells, report = [tables.NOT_RUN], now.get(name)
        if report:
            gigabytes, megabytes = f"{report['bytes'] / 1e9:.2f}", f"{report['lane_bytes'] / 1e6:.1f}"
            cells = [report["kernels"], report["library_calls"], gigabytes, f"{report['evaluations_per_second']:,.0f}"]
            cells.append(megabytes)
        rows.append([name, lanes, *cells])
    notes = [
        "Compiled for an H100, not run on one. Rates are the most that its memory and float32 units allow.",
        "What launching the kernels costs is not in them.",
    ]
    columns = ("program", "lanes", "kernels", "a library's", "GB a step", "evaluations/s at most", "MB a lane")
    where = "one step compiled for an H100" if now else ""
    return [tables.Results("A step on a GPU, by its account", "gpu_account", columns, rows, where, notes)]


if __name__ == "__main__":
    main()
