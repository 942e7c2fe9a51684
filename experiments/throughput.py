"""Useful evaluations per second of `jaxleak run` and of the original PyTorch loop, side by side in one run.

Interleaved rounds on LeNet, CIFAR-100, DLG, history 100, the whole step included. PyTorch: one process per core with
one thread each, rates summed (every call of the closure counts, and one more for each iteration's look at the
objective). jaxleak: the `run` command in a process of its own; only steps of trials that were still running count,
compile time is given apart. Needs the extra `torch`.

    python -m experiments.throughput --data-dir DIR
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from experiments.harness import arguments, results_folder, write_json

CLASSES = 100


def torch_rate(seconds: float) -> float:
    """Evaluations per second of one process, one thread, over restarts of one victim."""
    import torch

    from tests.oracles.torch_dlg import run_attack
    from tests.oracles.torch_lenet import LeNet, dlg_gradient

    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())
    net = LeNet(32, 32, 3, CLASSES)
    update = dlg_gradient(net, torch.rand(1, 3, 32, 32), torch.tensor([3]))
    start, logits = torch.randn(1, 3, 32, 32), torch.randn(1, CLASSES)
    run_attack(net, update, start, logits, iterations=2)  # warm-up
    began, evaluations = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        trace = run_attack(net, update, torch.randn_like(start), torch.randn_like(logits), iterations=20)
        evaluations += int(trace.closure_calls[-1]) + len(trace.objective)
    return evaluations / (time.perf_counter() - began)


def torch_summed(processes: int, seconds: float) -> float:
    """The same in one process per core, summed."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.map(torch_rate, [seconds] * processes, chunksize=1))


def jaxleak_rate(data_dir: str, network: str, seeds: int, iterations: int) -> dict:
    """The engine part of `summary.json` after one `jaxleak run`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from jaxleak.cli import main; main()", "run", "--attack", "dlg"]
        command += ["--dataset", "cifar100", "--data-dir", data_dir, "--num-images", "4", "--seeds", str(seeds)]
        command += ["--network", network, "--iterations", str(iterations), "--no-figures", "--out", f"{folder}/run"]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads((Path(folder) / "run" / "summary.json").read_text())["engine"]


def main() -> None:
    options = arguments(
        __doc__,
        rounds={"type": int, "default": 3},
        seconds={"type": float, "default": 20.0},
        seeds={"type": int, "default": 16},
        iterations={"type": int, "default": 40},
    )
    cores = len(os.sched_getaffinity(0))
    rounds = []
    for number in range(options.rounds):
        row: dict[str, Any] = {"pytorch_processes": torch_summed(cores, options.seconds)}
        for network in ("shared", "per-trial"):
            row[network] = jaxleak_rate(options.data_dir, network, options.seeds, options.iterations)
        rounds.append(row)
        print(f"round {number + 1}: {row}", flush=True)
    torch_median = statistics.median(row["pytorch_processes"] for row in rounds)
    summary = {
        "device": f"{cores} CPU cores",
        "jax": jax.__version__,
        "rounds": rounds,
        "median": {"pytorch_processes": torch_median},
        "ratio": {},
    }
    for network in ("shared", "per-trial"):
        median = statistics.median(row[network]["evaluations_per_second"] for row in rounds)
        summary["median"][network] = median
        summary["ratio"][network] = statistics.median(
            row[network]["evaluations_per_second"] / row["pytorch_processes"] for row in rounds
        )
    write_json(results_folder("throughput") / "summary.json", summary)
    print(json.dumps({key: summary[key] for key in ("median", "ratio")}, indent=1))


if __name__ == "__main__":
    main()
