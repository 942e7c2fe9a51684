"""Estimates the time of a measurement from the time of its parts elsewhere and the pace of this machine."""

import time

from jaxleak.bench.settings import SMALL

# Seconds of one core until a process is warm, for LeNet, on a machine where `_some_work` took WORK_SECONDS.
COSTS = {
    "machine": 5.9,
    "pytorch-processes": 4.1,
    "pytorch-no-onednn": 4.1,
    "pytorch-serial": 4.0,
    "pytorch-vmap": 6.7,
    "pytorch-compiled": 50.0,
    "pytorch-cosine-processes": 4.1,
    "plain-vmap": 8.5,
    "jaxopt": 24.0,
    "jaxleak": 17.0,
    "jaxleak-network-per-trial": 15.0,
    "jaxleak-lbfgs": 16.0,
    "jaxleak-cosine": 18.0,
}
DEEP = 4.0  # times as long for ResNet-18, where something is compiled; of other models not measured
SEARCH_SECONDS = 90.0  # for the engine to settle how many lanes it takes
WORK_SECONDS = 0.19


def core_seconds(name: str, model: str) -> float:
    """Seconds of one core until a process of the variant is warm."""
    return COSTS[name] * (1.0 if model in SMALL or name.startswith("pytorch") else DEEP)


def pace() -> float:
    """Time of a little work here and now, relative to that where `COSTS` were measured."""
    began = time.perf_counter()
    _some_work()
    return (time.perf_counter() - began) / WORK_SECONDS


def _some_work() -> dict[str, list[int]]:
    """Take and fill memory, as a compiler does; a loop over numbers alone suffers less from neighbours."""
    return {str(number): [number] for number in range(200_000)}


def clock(seconds: float) -> str:
    """A time rounded to five seconds, for people: "45 s", "2 min", "2 min 5 s"."""
    minutes, rest = divmod(max(5, 5 * round(seconds / 5)), 60)
    return " ".join([*([f"{minutes} min"] if minutes else []), *([f"{rest} s"] if rest else [])])
