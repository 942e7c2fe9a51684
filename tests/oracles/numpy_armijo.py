"""jaxleak's L-BFGS in numpy: one trial, pairs in lists, the two-loop recursion. Writes the stored trajectories.

python -m tests.oracles.numpy_armijo
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.oracles.two_loop import two_loop_direction

Array = np.ndarray
Function = Callable[[Array], tuple[float, Array]]
FILE = Path(__file__).parents[1] / "golden" / "armijo_lbfgs.npz"


def rosenbrock(x: Array) -> tuple[float, Array]:
    """Rosenbrock 1960, the second coordinate of the minimum at 1."""
    a, b = x[1] - x[0] ** 2, 1 - x[0]
    return 100 * a**2 + b**2, np.array([-400 * x[0] * a - 2 * b, 200 * a])


def valley(x: Array) -> tuple[float, Array]:
    """sum c (sin x + x / 5)^2: several minima, and slopes that mislead."""
    c = np.logspace(0, 2, x.size)
    root = np.sin(x) + x / 5
    return float(np.sum(c * root**2)), 2 * c * root * (np.cos(x) + 0.2)


def stairs(x: Array) -> tuple[float, Array]:
    """sum x^2, lifted by 1 in every other strip of width 1/3: steps down must go up first."""
    return float(np.sum(x**2) + np.sum(np.floor(3 * x) % 2)), 2 * x


def cliff(x: Array, lift: float = 9.0) -> tuple[float, Array]:
    """x_1^2 + 2 x_2^2 + 3 x_3^2 .., lifted where x_1 is below 1: by 9 it is too far up to be taken."""
    c = np.arange(1, x.size + 1)
    return float(np.sum(c * x**2) + lift * (x[0] < 1)), 2 * c * x


def flat(x: Array) -> tuple[float, Array]:
    """A gradient that promises what the objective does not hold."""
    return 1.0, np.ones_like(x)


class Case(NamedTuple):
    function: Function
    start: tuple[float, ...]
    steps: int
    history: int = 100
    max_step: float = 1.0


CASES = {
    "rosenbrock": Case(rosenbrock, (-1.2, 1.0), 45),
    "short history": Case(rosenbrock, (-1.2, 1.0), 40, history=2),
    "valley": Case(valley, (2.0, -3.0, 1.1, 0.4, -1.7), 45, history=4, max_step=0.5),
    "stairs": Case(stairs, (2.03, -1.72, 1.41, 0.93), 120, max_step=0.05),
    "cliff": Case(cliff, (1.1, 0.8, -0.7, 0.5), 90, max_step=0.05),
    "ledge": Case(partial(cliff, lift=3.2), (1.1, 0.8, -0.7, 0.5), 60, max_step=0.05),
    "full, then dropped": Case(cliff, (1.1, 0.8, -0.7, 0.5), 90, history=4, max_step=0.05),
    "flat": Case(flat, (1.0, 2.0), 320),
}


def trajectory(case: Case) -> dict[str, Array]:
    """Every candidate that is evaluated, the lowest objective so far, the pairs held, and whether the solver stalls.

    A step is tested by Armijo's rule with c1 = 1e-4. Rejected six times, it is taken up to twice the objective.
    """
    n, eps = len(case.start), np.finfo(float).eps
    x = base = lowest = np.array(case.start)
    value = best = np.inf
    slope, gamma, rejections, climbs = 0.0, 0.0, 0, 0
    gradient = np.zeros(n)
    S: list[Array] = []
    Y: list[Array] = []
    told: dict[str, list] = {"x": [], "lowest": [], "value": [], "pairs": [], "stalled": []}
    for step in range(case.steps):
        told["x"].append(x)
        f, g = case.function(x)
        first, s, y = step == 0, x - base, g - gradient
        finite, length = bool(np.isfinite(f) and np.isfinite(g).all()), float(np.linalg.norm(s))
        moved = finite and length > 0
        lower = moved and f <= value + 1e-4 * slope
        up = not lower and moved and rejections + 1 >= 6 and f <= 2 * value
        record = first or (finite and f < best)
        if record:
            lowest, best = x, f
        climbs = 0 if record else climbs + (up and not first)
        accept = first or lower or up
        if accept:
            base, value, gradient, rejections = x, f, g, 0
        else:
            rejections += 1
        ys, yy = float(y @ s), float(y @ y)
        if first:
            gamma = 1 / float(np.sum(np.abs(g)))
        elif finite and ys > eps * length * np.sqrt(yy):
            gamma = ys / yy
            S, Y = [*S, s][-case.history :], [*Y, y][-case.history :]
        longest = case.max_step * np.sqrt(n) if accept else 0.5 * length
        p = cut(two_loop_direction(S, Y, gradient, gamma), longest)
        slope = float(p @ gradient)
        if not slope < -eps * abs(value) or rejections >= 6:
            p, S, Y, rejections = cut(-gamma * gradient, longest), [], [], 0
            slope = float(p @ gradient)
        stalled = not slope < -eps * abs(value) or climbs >= 50
        x = base if stalled else base + p
        for name, one in (("lowest", lowest), ("value", best), ("pairs", len(S)), ("stalled", stalled)):
            told[name].append(one)
    return {name: np.array(values) for name, values in told.items()}


def cut(p: Array, longest: float) -> Array:
    """No longer than this."""
    length = float(np.linalg.norm(p))
    return p * (longest / length) if length > longest else p


def stored() -> dict[str, dict[str, Array]]:
    """The trajectories in the repository, by case."""
    with np.load(FILE) as arrays:
        names = [key.split("/") for key in arrays.files]
        return {case: {name: arrays[f"{case}/{name}"] for one, name in names if one == case} for case in CASES}


if __name__ == "__main__":
    made = {f"{name}/{key}": array for name, case in CASES.items() for key, array in trajectory(case).items()}
    np.savez_compressed(FILE, **made)
