"""The cases behind the golden arrays, rebuilt from their seeds in numpy alone, and the arrays themselves.

    from tests.oracles.cases import lenet_cases, load_golden, solver_cases

    @pytest.mark.parametrize("case", lenet_cases(), ids=str)
    def test_forward(case):
        ... case.state_dict, case.image, case.golden["logits"]

Images here are float64 [1, h, w, c] (NHWC); weights are in torch's names and layout (OIHW, [out, in]), so the
head reads features flattened from NCHW. `tests/oracles/make_goldens.py` lists each case's golden arrays.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GOLDEN_DIRECTORY = Path(__file__).parent.parent / "golden"

Array = np.ndarray


def load_golden(name: str) -> dict[str, Array]:
    """The arrays of tests/golden/{name}.npz."""
    with np.load(GOLDEN_DIRECTORY / f"{name}.npz") as arrays:
        return dict(arrays)


class LenetCase(NamedTuple):
    """A LeNet with one private image, and the start of an attack on it."""

    name: str
    state_dict: dict[str, Array]
    image: Array  # private, U[0, 1), [1, h, w, c]
    label: int  # private
    num_classes: int
    candidate_image: Array  # start, N(0, 1), [1, h, w, c]
    candidate_logits: Array  # start of DLG's label logits, N(0, 1), [1, k]
    iterations: int  # outer steps of the golden trajectories

    @property
    def golden(self) -> dict[str, Array]:
        """The case's golden arrays; the image-like ones are NHWC."""
        return load_golden(f"lenet_{self.name}")

    @property
    def image_nchw(self) -> Array:
        return to_nchw(self.image)

    @property
    def candidate_image_nchw(self) -> Array:
        return to_nchw(self.candidate_image)

    @property
    def update(self) -> dict[str, Array]:
        """The golden shared gradient, torch names and layout, in state_dict order."""
        golden = self.golden
        return {name: golden[f"update/{name}"] for name in self.state_dict}

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"LenetCase({self.name!r})"


def to_nchw(images: Array) -> Array:
    """[..., h, w, c] -> [..., c, h, w], contiguous."""
    return np.ascontiguousarray(np.moveaxis(images, -1, -3))


def to_nhwc(images: Array) -> Array:
    """[..., c, h, w] -> [..., h, w, c], contiguous."""
    return np.ascontiguousarray(np.moveaxis(images, -3, -1))


def lenet_shapes(height: int, width: int, channels: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of DLG's LeNet by torch's names, in state_dict order."""
    rows, columns = -(-height // 4), -(-width // 4)  # two convolutions of stride 2, each rounding up
    return {
        "body.0.weight": (12, channels, 5, 5),
        "body.0.bias": (12,),
        "body.2.weight": (12, 12, 5, 5),
        "body.2.bias": (12,),
        "body.4.weight": (12, 12, 5, 5),
        "body.4.bias": (12,),
        "fc.0.weight": (num_classes, 12 * rows * columns),
        "fc.0.bias": (num_classes,),
    }


def lenet_case(
    name: str, seed: int, height: int, width: int, channels: int, num_classes: int, iterations: int
) -> LenetCase:
    """Draw a case: weights U(-0.5, 0.5) in state_dict order, image, label, candidate image and logits."""
    rng = np.random.default_rng(seed)
    shapes = lenet_shapes(height, width, channels, num_classes)
    image_shape = (1, height, width, channels)
    return LenetCase(
        name=name,
        state_dict={tensor: rng.uniform(-0.5, 0.5, shape) for tensor, shape in shapes.items()},
        image=rng.random(image_shape),
        label=int(rng.integers(num_classes)),
        num_classes=num_classes,
        candidate_image=rng.standard_normal(image_shape),
        candidate_logits=rng.standard_normal((1, num_classes)),
        iterations=iterations,
    )


def lenet_cases() -> list[LenetCase]:
    """The LeNets of the goldens.

    L-BFGS without a line search is chaotic: from 16x16x3 on, a change of 1e-12 in the start is about 1e-2 in
    the image after 10 outer steps, so two right implementations differ by more than any useful tolerance.
    Sizes, seeds and lengths are chosen so that it stays below 1e-8 (`make_goldens` checks): small ones run
    10 outer steps, the others 2 or 3. `odd18` and `odd11` are not square; their sides are no multiples of 4.
    """
    return [
        lenet_case("rgb32", seed=3, height=32, width=32, channels=3, num_classes=10, iterations=2),
        lenet_case("gray28", seed=1, height=28, width=28, channels=1, num_classes=10, iterations=3),
        lenet_case("rgb16", seed=5, height=16, width=16, channels=3, num_classes=10, iterations=2),
        lenet_case("odd18", seed=1, height=18, width=15, channels=3, num_classes=5, iterations=2),
        lenet_case("gray12", seed=1, height=12, width=12, channels=1, num_classes=10, iterations=10),
        lenet_case("odd11", seed=1, height=11, width=9, channels=2, num_classes=5, iterations=10),
        lenet_case("gray8", seed=8, height=8, width=8, channels=1, num_classes=10, iterations=10),
    ]


class SolverCase(NamedTuple):
    """A small function for L-BFGS, and settings under which it shows one of the solver's rules.

    `value` and `gradient` use only operators that numpy and jax arrays share.
    """

    name: str
    value: Callable[[Any], Any]  # [n] -> scalar
    gradient: Callable[[Array], Array]  # [n] -> [n], numpy
    start: Array  # [n]
    stops: tuple[str, ...]  # the stopping tests it is here for (numpy_lbfgs.STOP_REASONS)
    lr: float = 1.0
    max_iter: int = 20
    max_eval: int | None = None  # None: 25 for 20 inner steps, as torch
    tolerance_grad: float = 1e-7
    tolerance_change: float = 1e-9
    history: int = 100
    iterations: int = 10  # outer steps

    @property
    def golden(self) -> dict[str, Array]:
        """Trajectory by torch.optim.LBFGS: see `make_goldens.solver_arrays`."""
        return load_golden(f"solver_{self.name}")

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `NumpyLBFGS` (torch says history_size for history)."""
        names = ("lr", "max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history")
        return {name: getattr(self, name) for name in names}

    def value_and_gradient(self, x: Array) -> tuple[float, Array]:
        with np.errstate(all="ignore"):  # the non-finite cases are meant
            return float(self.value(x)), self.gradient(x)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"SolverCase({self.name!r})"


def quadratic(curvature: Array) -> tuple[Callable[[Any], Any], Callable[[Array], Array]]:
    """f(x) = 1/2 sum(curvature * x**2) and its gradient."""
    return lambda x: 0.5 * (curvature * x * x).sum(), lambda x: curvature * x


def rosenbrock(x: Any) -> Any:
    """sum over neighbours of 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2."""
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


def rosenbrock_gradient(x: Array) -> Array:
    gradient = np.zeros_like(x)
    valley = x[1:] - x[:-1] ** 2
    gradient[:-1] = -400.0 * x[:-1] * valley - 2.0 * (1.0 - x[:-1])
    gradient[1:] += 200.0 * valley
    return gradient


def double_well(x: Any) -> Any:
    """sum(x^4 / 4 - x^2 / 2): negative curvature around 0, minima at -1 and 1."""
    return (0.25 * x**4 - 0.5 * x**2).sum()


def cubic(x: Any) -> Any:
    """sum(x^3): unbounded below."""
    return (x**3).sum()


def solver_cases() -> list[SolverCase]:
    """Functions and settings that between them reach every stopping test and every rule of the history."""
    moderate = quadratic(np.geomspace(1.0, 100.0, 12))
    sphere = quadratic(np.ones(5))
    flat = quadratic(np.full(5, 1e-5))
    steep = quadratic(np.full(3, 1e12))
    ramp = np.linspace(0.5, 1.5, 12)
    return [
        # Converges; the later outer steps only find that the slope is gone.
        SolverCase("quadratic", *moderate, ramp, ("max-iter", "directional-derivative")),
        SolverCase(
            "rosenbrock",
            rosenbrock,
            rosenbrock_gradient,
            np.array([0.5, 0.0]),
            ("max-iter", "directional-derivative"),
        ),
        SolverCase("rosenbrock-chain", rosenbrock, rosenbrock_gradient, np.full(6, 0.9), ("max-iter",), lr=0.5),
        # The oldest pair leaves the history.
        SolverCase("short-history", *moderate, ramp, ("max-iter",), history=5),
        SolverCase("max-eval", *moderate, ramp, ("max-eval",), max_eval=7),
        # One evaluation is allowed, but torch looks only after the second: one inner step, two evaluations.
        SolverCase("one-eval", *moderate, ramp, ("max-eval",), max_eval=1),
        # No inner step is evaluated at its end: every evaluation is an outer step's first.
        SolverCase("one-inner-step", *moderate, ramp, ("max-iter",), max_iter=1, iterations=20),
        # Two steps to the minimum: max|g| is 0 while the objective still fell by much.
        SolverCase("sphere", *sphere, np.arange(1.0, 6.0), ("gradient", "gradient-at-start")),
        # A gradient above its tolerance, but |g|^2 below tolerance_change: no step is ever taken.
        SolverCase("flat", *flat, np.ones(5), ("directional-derivative",)),
        # Steps below tolerance_change while the slope is steep; pairs have yᵀs > 1e-10.
        SolverCase("tiny-steps", *steep, np.array([1.0, 2.0, -1.0]), ("step",), lr=1e-10),
        # yᵀs is above 0 but below 1e-10: the history stays empty and gamma stays 1.
        SolverCase("no-curvature", *sphere, np.full(5, 0.1), ("max-iter",), lr=1e-6, tolerance_change=1e-15),
        # yᵀs < 0 at first: those pairs are refused.
        SolverCase(
            "double-well",
            double_well,
            lambda x: x**3 - x,
            np.array([0.01, -0.02, 0.03]),
            ("max-iter", "objective"),
            lr=0.5,
        ),
        # yᵀs < 0 always; the iterates overflow to -inf.
        SolverCase("overflow", cubic, lambda x: 3.0 * x**2, np.array([-0.5, -1.0]), ("max-iter",), iterations=2),
        # The second point is outside the domain: not a number from there, and no test is ever true again.
        SolverCase(
            "not-a-number",
            lambda x: (x**1.5).sum(),
            lambda x: 1.5 * x**0.5,
            np.array([0.01, 0.02]),
            ("max-iter",),
            iterations=2,
        ),
    ]
