"""What a Ray cluster of this machine costs: two workers of one core each beside one process with both cores.

The same sweep (DLG with jaxleak's L-BFGS on CIFAR-100, a fresh LeNet for each trial), short and long, in turns, each in
a process of its own. Evaluations per second are those of the trials by which the long run is longer, over the seconds
by which it takes longer: starting, compiling and the last trials are the same in both and fall out. What they take is
given beside it.

    python -m experiments.ray_throughput --data-dir DIR --rounds 3 --seeds 10 --longer 4
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments import tables
from experiments.harness import arguments, results_folder, write_json

PAPER = "Speed"
WORKERS, LANES = 2, 4  # lanes of each core
PLACES = {
    "one process": ["--lanes", str(WORKERS * LANES)],
    "ray": ["--lanes", str(LANES), "--on", "ray", "--workers", str(WORKERS)],
}


def main() -> None:
    numbers = {"rounds": 3, "seeds": 10, "longer": 4}
    options = arguments(__doc__, **{name: {"type": int, "default": value} for name, value in numbers.items()})
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in PLACES}
    for number in range(options.rounds):
        for name in list(PLACES)[:: 1 if number % 2 == 0 else -1]:
            short, long = (run(name, seeds, options) for seeds in (options.seeds, options.seeds * options.longer))
            measured[name].append(compared(short, long))
            print(f"{name}: {measured[name][-1]['rate']:,.0f} evaluations/s", flush=True)
    ratios = [a["rate"] / b["rate"] for a, b in zip(measured["ray"], measured["one process"], strict=True)]
    told = {
        "device": measured["ray"][0]["device"],
        "settings": {name: getattr(options, name) for name in numbers} | {"workers": WORKERS, "lanes_per_core": LANES},
        "rounds": measured,
        "ratios": ratios,
        "ratio_median": float(np.median(ratios)),
    }
    write_json(results_folder("ray_throughput") / "summary.json", told)
    print(f"ray: {told['ratio_median']:.2f} of one process")


def run(name: str, seeds: int, options: Any) -> dict[str, Any]:
    """The command; seconds it took, and what its summary and rows say."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "jaxleak", "run", "--attack", "dlg", "--dataset", "cifar100"),
            *(["--data-dir", options.data_dir] if options.data_dir else []),
            *("--num-images", "4", "--seeds", str(seeds), "--no-figures"),
            *("--out", f"{folder}/run", *PLACES[name]),
        ]
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        seconds = time.monotonic() - began
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
        described = json.loads((Path(folder) / "run/run.json").read_text())
    engine = summary["engine"]
    return {"seconds": seconds, "device": described["environment"]["device"], **engine}


def compared(short: dict[str, Any], long: dict[str, Any]) -> dict[str, Any]:
    """The long run without the short one."""
    evaluations, seconds = (long[key] - short[key] for key in ("evaluations", "seconds"))
    return {
        "rate": evaluations / seconds,
        "evaluations": evaluations,
        "seconds": seconds,
        "seconds_beside": short["seconds"] - short["evaluations"] * seconds / evaluations,
        "device": short["device"],
    }


def results() -> list[tables.Results]:
    """Medians of both, and of their ratio."""
    told, rows = tables.stored("ray_throughput/summary.json"), [[name, tables.NOT_RUN] for name in PLACES]
    if told:
        rates = {name: np.median([one["rate"] for one in rounds]) for name, rounds in told["rounds"].items()}
        rows = [[name, f"{rates[name]:,.0f}"] for name in PLACES]
        bounds = [min(told["ratios"]), max(told["ratios"])]
        rows[-1] += [f"{told['ratio_median']:.2f}", tables.interval(bounds), f"{len(told['ratios'])}"]
    return [
        tables.Results(
            "A Ray cluster of two one-core workers beside one process on two cores",
            "ray_throughput --seeds 3",
            ("where", "evaluations/s", "times one process", "smallest and largest", "rounds"),
            rows,
            tables.device(told),
            ("DLG on LeNet, a network for each trial.", "`times`: the median of the rounds' ratios."),
        )
    ]


if __name__ == "__main__":
    main()
