"""Restarts side by side in PyTorch: `torch.func.vmap` of the gradient, batched L-BFGS. Only ever run on its own.

    python -m jaxleak.bench.pytorch_vmap        (a worker: see jaxleak/bench/protocol.py)

Networks, objective and rules are those of `jaxleak/bench/pytorch_loop.py`; every row of `x` is one restart.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, replace_all_batch_norm_modules_, vmap

from jaxleak.bench.networks.build import logits
from jaxleak.bench.protocol import Link, Meter, peak_bytes, serve
from jaxleak.bench.pytorch_loop import Problem, cross_entropy, prepare_torch, problem_of, versions

INNER_STEPS = 20  # of one outer step of torch's L-BFGS
BATCHES = {"cpu": (16, 32, 64, 128), "cuda": (64, 256, 1024)}  # restarts at once that are tried
COMPILED = {"cpu": 32, "cuda": 1024}  # at once through torch.compile, which compiles anew for every other number
PROBE_SECONDS = 0.3  # for each of them
LONGEST_STEP = 0.6  # seconds; with more restarts a step would outlast a measurement


def batched_objective(problem: Problem, image: Tensor):
    """The objective's gradients [l, n] and values [l] at flat candidates [l, n]: the image, then the label's logits."""
    network: nn.Module = replace_all_batch_norm_modules_(problem.net)  # running statistics cannot be mapped
    parameters = {name: tensor.detach() for name, tensor in network.named_parameters()}
    update = dict(zip(parameters, problem.update, strict=True))

    def loss(parameters: dict[str, Tensor], pixels: Tensor, label_logits: Tensor) -> Tensor:
        label = torch.softmax(label_logits.view_as(problem.label), dim=-1)
        output = functional_call(network, parameters, (pixels.view_as(image),))
        return cross_entropy(logits(output), label)

    def objective(x: Tensor) -> Tensor:
        gradient = grad(loss)(parameters, x[: image.numel()], x[image.numel() :])
        return torch.stack([(gradient[name] - update[name]).square().sum() for name in update]).sum()

    return vmap(grad_and_value(objective))


class LBFGS:
    """`torch.optim.LBFGS` with lr 1 and no line search, for many restarts at once."""

    def __init__(self, x: Tensor, history: int):
        lanes = len(x)
        self.s, self.y = x.new_zeros(2, history, *x.shape)
        self.rho = x.new_zeros(history, lanes)  # 0 for a pair that is not there
        self.gamma, self.step_size = x.new_ones(lanes), x.new_zeros(lanes)
        self.direction, self.gradient = torch.zeros_like(x), torch.zeros_like(x)
        self.age = torch.zeros(lanes, dtype=torch.int64, device=x.device)
        self._slot = 0

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Move `x` in place; returns which restarts can move no further."""
        slot, first, history = self._slot, self.age == 0, (self.s, self.y, self.rho)
        s, y = self.direction * self.step_size[:, None], gradient - self.gradient
        product = torch.linalg.vecdot(y, s)
        enters = (product > 1e-10) & ~first
        pair = s, y, torch.where(enters, 1 / product, 0)
        stays = ~enters & ~first
        written: Any = slice(None)
        if stays.any():
            written = ~stays
            for rows in history:  # no pair enters, so the oldest is not replaced: each moves on to the next slot
                rows[:, stays] = rows[:, stays].roll(1, 0)
        for rows, row in zip(history, pair, strict=True):
            rows[slot, written] = row[written]
        self.gamma = torch.where(enters, product / y.square().sum(-1), self.gamma)
        self.direction, self.gradient = self._two_loop(gradient), gradient
        self.step_size = torch.where(first, (1 / gradient.abs().sum(-1)).clamp(max=1), 1)
        flat = gradient.abs().amax(-1) <= 1e-7
        stuck = flat | (torch.linalg.vecdot(gradient, self.direction) > -1e-9)
        x.addcmul_(self.direction, self.step_size[:, None])
        self.age += 1
        self._slot = (slot + 1) % len(self.rho)
        return stuck

    def forget(self, lanes: Tensor) -> None:
        """Let these restarts begin afresh."""
        # Zeroed as well as left out: 0 times what is not finite is not 0.
        self.s[:, lanes] = self.y[:, lanes] = self.rho[:, lanes] = 0
        self.direction[lanes] = self.step_size[lanes] = self.gradient[lanes] = self.age[lanes] = 0
        self.gamma[lanes] = 1

    def _two_loop(self, gradient: Tensor) -> Tensor:
        count, alphas = len(self.rho), torch.empty_like(self.rho)
        order = [(self._slot + 1 + i) % count for i in range(count)]  # from the oldest
        q = -gradient
        for i in reversed(order):
            torch.mul(self.rho[i], torch.linalg.vecdot(self.s[i], q), out=alphas[i])
            q.addcmul_(self.y[i], alphas[i, :, None], value=-1)
        q *= self.gamma[:, None]
        for i in order:
            beta = self.rho[i] * torch.linalg.vecdot(self.y[i], q)
            q.addcmul_(self.s[i], (alphas[i] - beta)[:, None])
        return q


class Adam:
    """`torch.optim.Adam` with lr 0.1 for many restarts, each with an age of its own."""

    def __init__(self, x: Tensor):
        self.mean, self.square = torch.zeros_like(x), torch.zeros_like(x)
        self.age = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def step(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Move `x` in place; no restart is ever stuck."""
        self.age += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        mean_scale, square_scale = (1 - rate ** self.age[:, None].to(x.dtype) for rate in (0.9, 0.999))
        x.addcdiv_(self.mean / mean_scale, (self.square / square_scale).sqrt_().add_(1e-8), value=-0.1)
        return torch.zeros_like(self.age, dtype=torch.bool)

    def forget(self, lanes: Tensor) -> None:
        """Let these restarts begin afresh."""
        self.mean[lanes] = self.square[lanes] = self.age[lanes] = 0


class Batch:
    """Restarts side by side on one victim; others take the place of those that have ended.

    Attributes:
        x: the candidates, a row each.
        evaluations: of the objective and its gradient so far, one for each restart and step.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        image: Tensor,
        x: Tensor,
        solver: str,
        history: int,
        iterations: int,
        compiled: bool = False,
    ):
        self.x = x
        self.evaluations = self._steps = 0
        evaluate = batched_objective(problem, image)
        self._evaluate = torch.compile(evaluate, dynamic=False) if compiled else evaluate
        self._solver = Adam(x) if solver == "adam" else LBFGS(x, history)
        self._outer = 1 if solver == "adam" else INNER_STEPS  # steps between two looks at what has ended
        self._limit = iterations * self._outer
        self._ended = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    @torch.no_grad()
    def step(self) -> None:
        """One evaluation and one move of every restart; after an outer step those that ended are replaced.

        A restart ends as in the loop: below 1e-6 or not finite where an outer step begins, no longer moving, or at its
        last iteration.
        """
        gradient, value = self._evaluate(self.x)
        begins = self._solver.age % self._outer == 0
        self._ended |= begins & ~((value >= 1e-6) & (value < float("inf")))
        self._ended |= self._solver.step(self.x, gradient)
        self.evaluations, self._steps = self.evaluations + len(self.x), self._steps + 1
        if self._steps % self._outer == 0:
            (lanes,) = torch.nonzero(self._ended | (self._solver.age >= self._limit), as_tuple=True)
            if len(lanes):
                self._solver.forget(lanes)
                self.x[lanes] = torch.randn_like(self.x[lanes])
                self._ended[:] = False
        if self.x.is_cuda:
            torch.cuda.synchronize()


def work(task: dict[str, Any], link: Link) -> None:
    """Measure batches for as long as the parent asks; `lanes` restarts at once, or what a short probe finds best."""
    began = time.perf_counter()
    prepare_torch(task)
    held, settings = peak_bytes(), task["settings"]
    problem, image = problem_of(task)

    def batch(lanes: int) -> Batch:
        x = torch.randn(lanes, image.numel() + problem.label.numel())
        solver = {name: settings[name] for name in ("solver", "history", "iterations")}
        return Batch(problem, image=image, x=x, **solver, compiled=compiled)

    lanes, compiled = task["lanes"], task["variant"] == "pytorch-compiled"
    if lanes in (None, "auto"):
        lanes = COMPILED[task["device"]] if compiled else fastest(batch, BATCHES[task["device"]])
    restarts, meter = batch(lanes), Meter(link)
    restarts.step()
    about = {"lanes": lanes, "compile_seconds": time.perf_counter() - began, "device": task["device"]}
    meter.wait({**about, **versions(), "held_bytes": held})
    while True:
        restarts.step()
        if meter.tick(restarts.evaluations, restarts.evaluations):
            meter.wait()


def fastest(batch: Callable[[int], Batch], counts: Sequence[int]) -> int:
    """The number of restarts at once, out of `counts`, that evaluates most per second."""
    rates = {}
    for lanes in counts:
        restarts = batch(lanes)
        restarts.step()
        began, before = time.perf_counter(), restarts.evaluations
        while restarts.evaluations == before or time.perf_counter() - began < PROBE_SECONDS:
            restarts.step()
        rates[lanes] = (restarts.evaluations - before) / (time.perf_counter() - began)
        if lanes / rates[lanes] > LONGEST_STEP:
            break
    return max(rates, key=rates.__getitem__)


if __name__ == "__main__":
    serve(work)
