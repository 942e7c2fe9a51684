"""The memory model against the memory that a process really takes."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from dataclasses import replace
import jax
jax.config.update("jax_num_cpu_devices", 1)
import numpy as np
from jaxleak import DLG, load_dataset, make_victim
from jaxleak.engine import Engine
from jaxleak.attacks.trial import Job, Trial

lanes = int(sys.argv[1])
victim = make_victim("lenet", load_dataset("photos"), [0], network=sys.argv[2])
trial = Trial(attack=replace(DLG, iterations=1, max_evaluations=2), victim=victim, threshold=1e-4, snapshots=(0, 1))
engine = Engine(trial, trial.shared(), lanes=lanes)
zeros = np.zeros(lanes, np.int32)
engine.run(Job(np.arange(lanes, dtype=np.int32), zeros, zeros, np.arange(lanes, dtype=np.int32)), lambda finished: None)
programs = engine.compile(engine.trace(None), jax.devices(), lanes)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
print(engine.stats.lanes, peak, programs[0].bytes_per_lane)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux")
@pytest.mark.parametrize("network", [pytest.param("shared", marks=pytest.mark.slow), "per-trial"])
def test_bytes_per_lane_are_what_a_lane_takes(network):
    """Peak memory of two processes with 64 and 224 lanes of LeNet, float32, 100 pairs; compiling adds some 100 MB."""
    measured = []
    for lanes in (64, 224):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(lanes), network], capture_output=True, text=True, check=True, timeout=250
        )
        measured.append([int(word) for word in run.stdout.split()])
    (few, low, _), (many, high, predicted) = measured
    assert (few, many) == (64, 224)
    assert (high - low) / (many - few) == pytest.approx(predicted, rel=0.25)
