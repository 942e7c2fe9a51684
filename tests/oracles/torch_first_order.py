"""The loop of the attacks that use Adam, with torch's optimisers and schedulers: slow, and in the sources' order."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults, written out


def run_adam(
    value: Callable[[Tensor], Tensor],
    start: np.ndarray,
    *,
    steps: int,
    lr: float,
    sign: str = "none",
    schedule: str = "constant",
    warmup: int = 0,
    weight_decay: float = 0.0,
    langevin: float = 0.0,
    noise: Sequence[np.ndarray] | None = None,
    box: tuple[float, float] | None = None,
) -> np.ndarray:
    """The candidates [steps + 1, n]: the start, and one after each step.

    Args:
        value: the objective.
        noise: N(0, 1) [steps, n], for `langevin`.
        box: lowest and highest entry of a candidate.

    Source: Geiping et al. 2020, `inversefed/reconstruction_algorithms.py` (gradient, sign, Adam, scheduler, box);
        breaching: `attacks/optimization_with_label_attack.py` (noise, soft sign), `common.py` (cosine, and its
        warm-up: in steps 0 to `warmup` the rate is set by hand, and only after the step that follows, at the
        scheduler's first rate, is the scheduler moved on).
    """
    x = torch.tensor(start, requires_grad=True)
    if weight_decay:
        optimizer = torch.optim.AdamW([x], lr=lr, betas=BETAS, eps=EPS, weight_decay=weight_decay)
    else:
        optimizer = torch.optim.Adam([x], lr=lr, betas=BETAS, eps=EPS)
    if schedule == "step":
        milestones = [steps // 2.667, steps // 1.6, steps // 1.142]  # floats, as published
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=milestones, gamma=0.1)  # type: ignore
    elif schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=0.0)
    else:
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[], gamma=1.0)
    group, first_rate = optimizer.param_groups[0], optimizer.param_groups[0]["lr"]

    candidates = [start.copy()]
    for t in range(steps):
        if warmup and t <= warmup:
            group["lr"] = lr * t / warmup
        elif warmup and t == warmup + 1:
            group["lr"] = first_rate
        optimizer.zero_grad()
        value(x).backward()
        with torch.no_grad():
            assert x.grad is not None
            if langevin:
                assert noise is not None
                x.grad += langevin * group["lr"] * torch.tensor(noise[t])
            if sign == "hard":
                x.grad.sign_()
            elif sign == "soft":
                scale = 1 - t / steps
                x.grad.mul_(scale).tanh_().div_(scale)
        optimizer.step()
        if t > warmup or not warmup:
            scheduler.step()
        if box is not None:
            x.data = torch.clamp(x.data, *box)
        candidates.append(x.detach().numpy().copy())
    return np.stack(candidates)
