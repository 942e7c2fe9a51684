"""On an NVIDIA GPU, in ten minutes of a bare machine: parts ordered by what they are worth, each in its own time.

The machine has jax for its GPU, torch, numpy, llvmlite and pytest, and no network. What else is needed is packed here,
less than 64 MB, and taken there:

    python -m experiments.gpu_pack --out gpu-pack --data-dir DIR
    pip install --no-index --no-deps gpu-pack/*.whl; python -m experiments.gpu_throughput --given gpu-pack --out DIR

1. checks: the tests that follow torch's stored trajectories in float64, on the GPU; and whether float32 products are
   full precision: the objective at random starts in float32 against float64, beside the error of a matrix product as
   jaxleak asks for it ("highest") and as jax does by default (TF32 on such GPUs).
2. lenet: evaluations per second over numbers of lanes, and where the time of a step goes.
3. table1: `jaxleak run` with the 20 images of Kan et al.'s table 1 and 50 networks and starts each, to an objective of
   1e-4: seconds from the command's start to its end, start of Python and compilation included.
4. pytorch: the serial loop, `torch.func.vmap` and the same through torch.compile, on the same GPU.
5. resnet18: at full width, beside the serial loop.
6. patches: lenet without the library's convolutions (JAXLEAK_GPU_CONV=patches).
7. ig: Inverting Gradients at its published 24,000 steps on one photograph.

Each part writes its files when it ends; one that takes too long is interrupted and loses only itself. Copy DIR to
`results/gpu_throughput/DEVICE`. `--rehearse` runs everything briefly on a CPU.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jaxleak
from experiments import tables
from experiments.gpu_pack import IMAGES
from experiments.harness import arguments, chosen_runs, write_json
from experiments.throughput import JAXLEAK

PAPER = "Speed"
LAST_WORDS = 20.0  # seconds for a part that is interrupted to write what it has


class Part(NamedTuple):
    """What runs (from the folder for its files, that of the pack, rehearsed or not), and when it is interrupted."""

    command: Callable[[Path, Path, bool], list[str]]
    seconds: float
    environment: Mapping[str, str] = MappingProxyType({})


def bench(name: str, *flags: str, seconds: float) -> Callable[[Path, Path, bool], list[str]]:
    """`jaxleak bench`, its report under this name."""

    def command(folder: Path, given: Path, rehearse: bool) -> list[str]:
        del given
        brief = ["--lanes", "4", "--rounds", "1"] if rehearse else []
        kept = list(flags) if not rehearse or "--lanes" not in flags else list(flags[: flags.index("--lanes")])
        length = ["--seconds", str(4.0 if rehearse else seconds)]
        return [*JAXLEAK, "bench", *kept, *brief, *length, "--out", str(folder / f"{name}.json")]

    return command


def checks(folder: Path, given: Path, rehearse: bool) -> list[str]:
    del given, rehearse
    return [sys.executable, "-m", "experiments.gpu_checks", str(folder / "checks.json")]


def table1(folder: Path, given: Path, rehearse: bool) -> list[str]:
    seeds = "2" if rehearse else "50"
    flags = f"run --attack dlg --network per-trial --seeds {seeds} --stop-objective 1e-4 --no-figures --no-report"
    return [*JAXLEAK, *flags.split(), "--dataset", str(given / IMAGES), "--out", str(folder / "table1")]


def inverting(folder: Path, given: Path, rehearse: bool) -> list[str]:
    del given
    steps = "20" if rehearse else "24000"
    flags = f"run --attack ig --iterations {steps} --num-images 1 --seeds 8 --no-figures --no-report"
    return [*JAXLEAK, *flags.split(), "--out", str(folder / "ig")]


LANES = ("--lanes", "256", "512", "1024", "2048")
PARTS = {
    "checks": Part(checks, 100),
    "lenet": Part(bench("lenet", "--only", "jaxleak-lbfgs", "--profile", *LANES, seconds=24), 140),
    "table1": Part(table1, 70),
    "pytorch": Part(bench("pytorch", "--only", "pytorch-serial", "pytorch-vmap", "pytorch-compiled", seconds=15), 100),
    "resnet18": Part(
        bench("resnet18", "--model", "resnet18", "--only", "jaxleak", "pytorch-serial", "--lanes", "64", seconds=15), 90
    ),
    "patches": Part(
        bench("patches", "--only", "jaxleak-lbfgs", "--lanes", "512", seconds=6), 45, {"JAXLEAK_GPU_CONV": "patches"}
    ),
    "ig": Part(inverting, 90),
}


def run_part(name: str, folder: Path, given: Path, rehearse: bool) -> dict[str, Any]:
    """Run one part in processes of its own, for no longer than its time; what it says is kept in NAME.log."""
    part, began = PARTS[name], time.perf_counter()
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", **part.environment}
    limit = part.seconds * (3 if rehearse else 1)  # a CPU compiles and follows trajectories longer
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            part.command(folder, given, rehearse),
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        ended = "in time"
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            ended = "interrupted"
            process.send_signal(signal.SIGINT)
            try:
                process.wait(LAST_WORDS)
            except subprocess.TimeoutExpired:
                ended = "killed"
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = round(time.perf_counter() - began, 1)
    return {"part": name, "ended": ended, "code": process.returncode, "seconds": seconds}


def main() -> None:
    out = {"type": Path, "default": None, "help": "where the files of each part go"}
    given = {"type": Path, "default": Path("gpu-pack"), "help": "what gpu_pack made"}
    rehearse = {"action": "store_true", "help": "briefly, on whatever there is"}
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is shared with the processes started here
    options = arguments(__doc__, out=out, given=given, rehearse=rehearse)
    import jax

    device = jax.devices()[0]
    if device.platform != "gpu" and not options.rehearse:
        print(f"gpu_throughput needs an NVIDIA GPU and jax for it (extra cuda12 or cuda13); jax has {device}.")
        sys.exit(2)
    name = re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")
    folder = options.out or tables.harness.RESULTS / "gpu_throughput" / name
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for part in chosen_runs(PARTS, options):
        done.append(run_part(part, folder, options.given, options.rehearse))
        write_json(folder / "parts.json", {"device": device.device_kind, "parts": done})
        print(done[-1], flush=True)
        if part == "table1" and done[-1]["code"] == 0:
            run = jaxleak.Run.open(folder / "table1")
            run.write_rows(folder / "table1.parquet")
            summary = json.loads((folder / "table1" / "summary.json").read_text())
            about = {"wall_seconds": done[-1]["seconds"], "settings": run.settings, "environment": run.environment}
            write_json(folder / "table1.json", summary | about)


def results() -> list[tables.Results]:
    """A row each GPU that was measured."""
    rows: list[list] = []
    for folder in sorted((tables.harness.RESULTS / "gpu_throughput").glob("*")):
        checks, table1, lenet, pytorch, resnet18 = (
            tables.stored(f"gpu_throughput/{folder.name}/{name}.json")
            for name in ("checks", "table1", "lenet", "pytorch", "resnet18")
        )
        rows.append([checks["device"] if checks else folder.name])
        for report, ours in ((lenet, "jaxleak-lbfgs"), (pytorch, "pytorch-compiled"), (resnet18, "jaxleak")):
            rates = {one["name"]: one["evaluations_per_second"] for one in report["variants"]} if report else {}
            rows[-1].append(f"{rates[ours]:,.0f}" if rates.get(ours) else tables.NOT_RUN)
        rows[-1].append(f"{table1['wall_seconds']:.1f} s" if table1 else tables.NOT_RUN)
        rows[-1].append(f"{checks['float32']['objective_error']:.0e}" if checks else tables.NOT_RUN)
    columns = (
        "GPU",
        "LeNet: evaluations/s",
        "PyTorch compiled",
        "ResNet-18",
        "table 1's 1,000 trials",
        "float32's error",
    )
    return [tables.Results("On an NVIDIA GPU", "gpu_throughput", columns, rows or [["any", tables.NOT_RUN]])]


if __name__ == "__main__":
    main()
