"""Whether a GPU computes right: torch's stored trajectories in float64, and float32 products that stay float32.

The part `checks` of gpu_throughput.py, in a process of its own.

    python -m experiments.gpu_checks OUT.json
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

import jaxleak
from experiments.harness import write_json

GOLDEN_TESTS = ("tests/test_objectives.py", "tests/test_trial.py", "-k", "torch")
FLOAT32_ERROR = 1e-5  # relative; TF32 keeps 11 bits of each factor, 5e-4
STARTS = 8


def golden() -> dict:
    """How many of the tests against torch's stored trajectories pass in float64, on jax's default device."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *GOLDEN_TESTS]
    said = subprocess.run(command, capture_output=True, text=True).stdout
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
    path, device = Path(sys.argv[1]), jax.devices()[0]
    write_json(path, {"device": device.device_kind, "platform": device.platform, "float64": golden()})
    found = json.loads(path.read_text()) | {"float32": precision()}
    write_json(path, found)
    print(found)


if __name__ == "__main__":
    main()
