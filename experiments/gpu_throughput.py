"""On an NVIDIA GPU: `jaxleak bench`, the 1,000 trials of Kan et al.'s table 1 by the clock, and two checks of numbers.

1. `jaxleak bench` on LeNet and ResNet-18, the serial PyTorch loop on the same GPU where PyTorch is installed.
2. `jaxleak run` with table 1's 20 images and 50 networks and starts each, to an objective of 1e-4: seconds from the
   command's start to its end, start of Python and compilation included.
3. The tests that follow torch's stored trajectories in float64, run on the GPU.
4. Whether float32 products are full precision: the objective at random starts in float32 against float64, beside the
   error of a matrix product as jaxleak asks for it ("highest") and as jax does by default (TF32 on such GPUs).

Everything is written to `results/gpu_throughput/DEVICE`.

    python -m experiments.gpu_throughput --data-dir DIR
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import jaxleak
from experiments import tables
from experiments.harness import arguments, results_folder, write_json
from experiments.throughput import JAXLEAK, bench

PAPER = "Speed"
GOLDEN_TESTS = ("tests/test_objectives.py", "tests/test_trial.py", "-k", "torch")
FLOAT32_ERROR = 1e-5  # relative; TF32 keeps 11 bits of each factor, 5e-4
STARTS = 8


def table1(folder: Path, data_dir: str, runs: Path) -> float:
    """Run table 1's trials from nothing, keep rows and summary, and return the seconds it took."""
    out = runs / "gpu_throughput" / time.strftime("%Y%m%d-%H%M%S")
    flags = "run --attack dlg --dataset cifar100 --split train --num-images 20 --image-seed 2022 --seeds 50"
    flags += " --network per-trial --stop-objective 1e-4 --no-figures"
    began = time.perf_counter()
    subprocess.run([*JAXLEAK, *flags.split(), "--data-dir", data_dir, "--out", str(out)], check=True)
    seconds = time.perf_counter() - began
    run = jaxleak.Run.open(out)
    run.write_rows(folder / "table1.parquet")
    summary = json.loads((out / "summary.json").read_text())
    about = {"wall_seconds": seconds, "settings": run.settings, "environment": run.environment}
    write_json(folder / "table1.json", summary | about)
    return seconds


def golden() -> dict:
    """How many of the tests against torch's stored trajectories pass on the GPU, in float64."""
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    command = [sys.executable, "-m", "pytest", "-q", *GOLDEN_TESTS]
    said = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", said)}
    return {"command": " ".join(command[1:]), **counts}


def starting_objectives(starts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The objective of DLG at given starts, in the precision jax is set to."""
    victim = jaxleak.make_victim("lenet", jaxleak.load_dataset("photos"), [6], network="shared")
    attack = jaxleak.Attack(name="dlg", iterations=1)
    given = {"image": starts, "label": labels[..., : victim.num_classes]}
    result = jaxleak.attack(victim, attack, seeds=len(starts), starts=given, snapshots=(), quiet=True)
    stored = result.run.arrays(["trial", "objective_trace"])
    return stored["objective_trace"][np.argsort(stored["trial"]), 0].astype(np.float64)


def precision() -> dict:
    """Relative errors of float32 against float64: of the objective, and of a matrix product."""
    import jax

    rng = np.random.default_rng(0)
    starts, labels = rng.normal(size=(STARTS, 1, 32, 32, 3)), rng.normal(size=(STARTS, 1, 100))
    single = starting_objectives(starts, labels)
    left, right = rng.normal(size=(2, 512, 512)).astype(np.float32)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    errors = {}
    for setting in ("highest", "default"):
        with jax.default_matmul_precision(setting):
            product = np.asarray(jax.jit(jax.numpy.matmul)(left, right), np.float64)
        errors[setting] = float(np.linalg.norm(product - exact) / np.linalg.norm(exact))
    jax.config.update("jax_enable_x64", True)
    double = starting_objectives(starts, labels)
    jax.config.update("jax_enable_x64", False)
    worst = float(np.max(np.abs(single / double - 1)))
    full = max(worst, errors["highest"]) < FLOAT32_ERROR
    return {"objective_error": worst, "matmul_error": errors, "full_precision": full}


def main() -> None:
    seconds = {"type": float, "default": 240.0, "help": "of measurement for each model"}
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the GPU is shared with the processes started here
    options = arguments(__doc__, seconds=seconds)
    import jax

    device = jax.devices()[0]
    if device.platform != "gpu":
        print(f"gpu_throughput needs an NVIDIA GPU and jax for it (extra cuda12 or cuda13); jax has {device}.")
        sys.exit(2)
    name = re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")
    folder = results_folder(f"gpu_throughput/{name}")
    checks = {"device": device.device_kind, "float64": golden(), "float32": precision()}
    write_json(folder / "checks.json", checks)
    print(checks, flush=True)
    wall = table1(folder, options.data_dir, options.runs)
    print(f"table 1: {wall:.1f} s", flush=True)
    bench(folder, ("lenet", "resnet18"), "--seconds", str(options.seconds))


def results() -> list[tables.Results]:
    """A row each GPU that was measured."""
    rows: list[list] = []
    for folder in sorted((tables.harness.RESULTS / "gpu_throughput").glob("*")):
        checks, table1, lenet, resnet18 = (
            tables.stored(f"gpu_throughput/{folder.name}/{name}.json")
            for name in ("checks", "table1", "lenet", "resnet18")
        )
        rows.append([checks["device"] if checks else folder.name])
        for report in (lenet, resnet18):
            rates = {one["name"]: one["evaluations_per_second"] for one in report["variants"]} if report else {}
            rows[-1].append(f"{rates['jaxleak']:,.0f}" if "jaxleak" in rates else tables.NOT_RUN)
        rows[-1].append(f"{table1['wall_seconds']:.1f} s" if table1 else tables.NOT_RUN)
        rows[-1].append(f"{checks['float32']['objective_error']:.0e}" if checks else tables.NOT_RUN)
    columns = ("GPU", "LeNet: evaluations/s", "ResNet-18: evaluations/s", "table 1's 1,000 trials", "float32's error")
    return [tables.Results("On an NVIDIA GPU", "gpu_throughput", columns, rows or [["any", tables.NOT_RUN]])]


if __name__ == "__main__":
    main()
