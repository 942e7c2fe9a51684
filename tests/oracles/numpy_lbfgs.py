"""torch.optim.LBFGS without a line search in plain numpy, and which test ended each outer step."""

from collections.abc import Callable

import numpy as np

from tests.oracles.two_loop import two_loop_direction

Array = np.ndarray

# Why an outer step ended, in the order in which torch looks.
GRADIENT_AT_START = "gradient-at-start"  # max|g| <= tolerance_grad before the first inner step
DIRECTIONAL = "directional-derivative"  # gᵀd > -tolerance_change; the step is not taken
MAX_ITER = "max-iter"
MAX_EVAL = "max-eval"
GRADIENT = "gradient"  # max|g| <= tolerance_grad after an inner step
STEP = "step"  # max|t d| <= tolerance_change
OBJECTIVE = "objective"  # |f - f_previous| < tolerance_change
STOP_REASONS = (GRADIENT_AT_START, DIRECTIONAL, MAX_ITER, MAX_EVAL, GRADIENT, STEP, OBJECTIVE)


class NumpyLBFGS:
    """Minimise f from `start`; one `step()` is one `optimizer.step` of torch, at most `max_iter` inner steps.

    Attributes:
        x: current point [n].
        n_iter: inner steps so far (torch's `state["n_iter"]`); counts the step that `DIRECTIONAL` refused.
        func_evals: evaluations so far (torch's `state["func_evals"]`).
        stops: one entry of `STOP_REASONS` per outer step.
        values: every objective value computed, in order; its length is `func_evals`.
        s, y: the history, oldest first.
        gamma: scale of the initial inverse Hessian.

    Source: torch/optim/lbfgs.py, class LBFGS, line_search_fn=None.
    """

    def __init__(
        self,
        value_and_gradient: Callable[[Array], tuple[float, Array]],
        start: Array,
        *,
        lr: float = 1.0,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history: int = 100,
    ) -> None:
        self.value_and_gradient = value_and_gradient
        self.x = np.array(start)
        self.lr = lr
        self.max_iter = max_iter
        self.max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
        self.tolerance_grad = tolerance_grad
        self.tolerance_change = tolerance_change
        self.history = history
        self.n_iter = 0
        self.func_evals = 0
        self.stops: list[str] = []
        self.values: list[float] = []
        # What survives from one outer step to the next, beside x and the counters.
        self.s: list[Array] = []
        self.y: list[Array] = []
        self.gamma = 1.0
        self.direction = np.zeros_like(self.x)
        self.step_length = 0.0
        self.previous_gradient = np.zeros_like(self.x)

    def step(self) -> float:
        """One outer step; returns the objective at the point where it began."""
        # The point reached by the last outer step was not evaluated there: it is here.
        first_value, gradient = self._evaluate()
        if np.max(np.abs(gradient)) <= self.tolerance_grad:
            self.stops.append(GRADIENT_AT_START)
            return first_value
        self.stops.append(self._inner_steps(first_value, gradient))
        return first_value

    def _evaluate(self) -> tuple[float, Array]:
        value, gradient = self.value_and_gradient(self.x.copy())
        self.func_evals += 1
        self.values.append(float(value))
        return float(value), np.array(gradient)

    def _inner_steps(self, value: float, gradient: Array) -> str:
        """Inner steps until a test stops them; returns which."""
        evaluations = 1
        inner = 0
        while True:
            inner += 1
            self.n_iter += 1

            # 1. Direction. The first one ever is -g; gamma and an empty history give the same.
            if self.n_iter > 1:
                self._remember(gradient)
            self.direction = two_loop_direction(self.s, self.y, gradient, self.gamma)
            self.previous_gradient = gradient
            previous_value = value

            # 2. Step length: damped for the first step ever, then lr.
            self.step_length = self.lr
            if self.n_iter == 1:
                self.step_length = min(1.0, 1.0 / np.sum(np.abs(gradient))) * self.lr
            if gradient @ self.direction > -self.tolerance_change:
                return DIRECTIONAL

            # 3. Move; the last inner step is not evaluated.
            self.x = self.x + self.step_length * self.direction
            if inner == self.max_iter:
                return MAX_ITER
            value, gradient = self._evaluate()
            evaluations += 1

            # 4. The remaining tests, in torch's order.
            if evaluations >= self.max_eval:
                return MAX_EVAL
            if np.max(np.abs(gradient)) <= self.tolerance_grad:
                return GRADIENT
            if np.max(np.abs(self.step_length * self.direction)) <= self.tolerance_change:
                return STEP
            if abs(value - previous_value) < self.tolerance_change:
                return OBJECTIVE

    def _remember(self, gradient: Array) -> None:
        """Add the last step and its gradient difference to the history if they show curvature."""
        y = gradient - self.previous_gradient
        s = self.step_length * self.direction
        curvature = y @ s
        if curvature > 1e-10:
            self.s = [*self.s, s][-self.history :]
            self.y = [*self.y, y][-self.history :]
            self.gamma = float(curvature / (y @ y))
