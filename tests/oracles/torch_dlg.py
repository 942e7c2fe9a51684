"""The published DLG and iDLG procedure with torch.optim.LBFGS, one trial at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.oracles.torch_lenet import infer_label, objective


class Trace(NamedTuple):
    """One trial; every array has an entry for the start and one after each iteration (`optimizer.step`)."""

    objective: np.ndarray  # [t+1]
    image: np.ndarray  # [t+1, b, c, h, w]
    label_logits: np.ndarray | None  # [t+1, b, k], DLG only
    evaluations: np.ndarray  # [t+1], torch's state["func_evals"]
    inner_iterations: np.ndarray  # [t+1], torch's state["n_iter"]
    closure_calls: np.ndarray  # [t+1], counted here; equal to `evaluations`
    label: int  # iDLG: inferred at the start; DLG: argmax of the last label logits
    threshold_iterations: int | None  # first iteration after which the objective is below the threshold


def run_attack(
    net: nn.Module,
    update: Sequence[Tensor],
    image: Tensor,
    label_logits: Tensor | None,
    *,
    iterations: int,
    threshold: float = 1e-4,
    stop_below: float = 0.0,
) -> Trace:
    """DLG where `label_logits` are given, iDLG where they are None.

    Args:
        net: the victim's network.
        update: the shared gradient.
        image: start of the candidate image [1, c, h, w].
        label_logits: start of the label logits [1, k], or None to infer the label and fix it.
        iterations: outer steps at most.
        threshold: the objective below which a trial counts for `threshold_iterations`.
        stop_below: end the trial when the objective is below this after an iteration (iDLG: 1e-6).

    Source: Zhu et al. 2019, algorithm 1; Zhao et al. 2020, algorithm 1; settings of their code:
        L-BFGS, lr 1, 20 inner steps, history 100, no line search.
    """
    image = image.detach().clone().requires_grad_()
    if label_logits is None:
        inferred = infer_label(update)
        target, candidate = torch.tensor([inferred]), [image]
    else:
        target = label_logits.detach().clone().requires_grad_()
        inferred, candidate = None, [image, target]
    optimizer = torch.optim.LBFGS(candidate, lr=1.0, max_iter=20, history_size=100)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = objective(net, update, image, target)
        gradients = torch.autograd.grad(value, candidate)
        for tensor, gradient in zip(candidate, gradients, strict=True):
            tensor.grad = gradient
        return value.detach()

    def snapshot() -> dict[str, np.ndarray]:
        """Everything worth looking at after an iteration; its own evaluation is not counted."""
        state = optimizer.state[image]
        return {
            "objective": objective(net, update, image, target).detach().numpy().copy(),
            "image": image.detach().numpy().copy(),
            "target": target.detach().numpy().copy(),
            "evaluations": np.array(state.get("func_evals", 0)),
            "inner_iterations": np.array(state.get("n_iter", 0)),
            "closure_calls": np.array(calls),
        }

    rows = [snapshot()]
    for _ in range(iterations):
        optimizer.step(closure)
        rows.append(snapshot())
        if rows[-1]["objective"] < stop_below:
            break

    stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    below = np.flatnonzero(stacked["objective"] < threshold)
    return Trace(
        objective=stacked["objective"],
        image=stacked["image"],
        label_logits=stacked["target"] if inferred is None else None,
        evaluations=stacked["evaluations"],
        inner_iterations=stacked["inner_iterations"],
        closure_calls=stacked["closure_calls"],
        label=int(np.argmax(stacked["target"][-1])) if inferred is None else inferred,
        threshold_iterations=int(below[0]) if below.size else None,
    )
