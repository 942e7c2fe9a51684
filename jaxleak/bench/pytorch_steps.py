"""PyTorch's own profile of a step of `pytorch_loop`, on one core. Only ever run in a process of its own.

python -m jaxleak.bench.pytorch_steps --task TASK      (settings and network as JSON; writes one line of JSON)
"""

import json
import statistics
import sys
import time
from typing import Any

import torch

from jaxleak.bench import pytorch_loop
from jaxleak.bench.protocol import use_one_core

TIMED = 5


def profile_of(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step by operation."""
    pytorch_loop.prepare_torch({**task, "threads": 1, "device": "cpu", "onednn": True})
    problem, image = pytorch_loop.problem_of(task)
    restarts = pytorch_loop.Restarts(
        problem,
        image=image,
        logits=torch.empty_like(problem.label),
        solver="adam",
        history=1,
        iterations=100,
    )
    steps, seconds = restarts.run(), []
    next(steps)
    for _ in range(TIMED):
        began = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - began)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        next(steps)
    spent = {event.key: event.self_cpu_time_total * 1e-6 for event in profile.key_averages()}
    convolutions = sum(value for key, value in spent.items() if "conv" in key)
    return {
        "seconds": statistics.median(seconds),
        "convolutions": convolutions,
        "rest": sum(spent.values()) - convolutions,
        "largest": dict(sorted(spent.items(), key=lambda item: -item[1])[:8]),
        "version": torch.__version__,
    }


if __name__ == "__main__":
    use_one_core()
    print(json.dumps(profile_of(json.loads(sys.argv[2]))))
