"""The loop that jaxleak replaces: one restart after the other in PyTorch. Only ever run in a process of its own.

    python -m jaxleak.bench.pytorch_loop        (a worker: see jaxleak/bench/protocol.py)

DLG on its LeNet with `torch.optim.LBFGS` (lr 1, 20 inner steps, history 100, no line search), on other networks with
Adam; Inverting Gradients on any. The gradient of the gradient by autograd. One call of the closure is one evaluation;
nothing else is evaluated.

Sources: Zhu, Liu & Han 2019, algorithm 1 and reference implementation; Geiping et al. 2020,
`inversefed/reconstruction_algorithms.py`.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jaxleak.bench.networks.build import build, logits
from jaxleak.bench.protocol import Link, Meter, peak_bytes, serve

TV = 1e-4  # Inverting Gradients' weight of the total variation
MILESTONES = (2.667, 1.6, 1.142)  # and where its learning rate falls to a tenth, as divisors of the number of steps


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """DLG's `cross_entropy_for_onehot`: `label` is a distribution over classes [b, k], of texts for each place."""
    return torch.mean(torch.sum(-label * torch.log_softmax(logits, dim=-1), -1))


class Problem:
    """A network, a private image's gradient, and the objectives."""

    def __init__(self, net: nn.Module, image: Tensor, label: Tensor):
        self.net, self.label = net, label
        self.parameters = list(net.parameters())
        gradient = torch.autograd.grad(cross_entropy(logits(net(image)), label), self.parameters)
        self.update = [tensor.detach().clone() for tensor in gradient]

    def objective(self, image: Tensor, label_logits: Tensor) -> Tensor:
        """Squared differences between the candidate's gradient and the shared one, summed over all tensors."""
        gradient = self._gradient(image, torch.softmax(label_logits, dim=-1))
        return sum(((ours - theirs) ** 2).sum() for ours, theirs in zip(gradient, self.update, strict=True))  # pyright: ignore[reportReturnType]

    def cosine(self, image: Tensor) -> Tensor:
        """Inverting Gradients', the label known: one minus the cosine of all tensors, and the total variation."""
        gradient = self._gradient(image, self.label)
        pairs = zip(gradient, self.update, strict=True)
        product = torch.stack([(ours * theirs).sum() for ours, theirs in pairs]).sum()
        norms = [torch.stack([tensor.pow(2).sum() for tensor in side]).sum().sqrt() for side in (gradient, self.update)]
        across = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().mean()
        down = (image[:, :, 1:] - image[:, :, :-1]).abs().mean()
        return 1 - product / (norms[0] * norms[1]) + TV * (across + down)

    def _gradient(self, image: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        value = cross_entropy(logits(self.net(image)), target)
        return torch.autograd.grad(value, self.parameters, create_graph=True)


class Restarts:
    """Restart after restart on one victim.

    Attributes:
        evaluations: calls of the closure so far.
        iterations: inner L-BFGS iterations (torch's `n_iter`), or Adam steps, so far.
    """

    def __init__(self, problem: Problem, *, image: Tensor, logits: Tensor, solver: str, history: int, iterations: int):
        self.problem, self.solver, self.history, self.limit = problem, solver, history, iterations
        self.image, self.logits = image, logits
        self.evaluations = self.iterations = 0

    def run(self) -> Iterator[None]:
        """Yields after every `optimizer.step`, for ever."""
        while True:
            if self.solver == "signed-adam":
                yield from self.invert(torch.randn_like(self.image))
            else:
                yield from self.restart(torch.randn_like(self.image), torch.randn_like(self.logits))

    def invert(self, image: Tensor) -> Iterator[None]:
        """One restart of Inverting Gradients: Adam on the sign of the gradient, pixels cut to [0, 1]."""
        self.image = image.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([self.image], lr=0.1)
        milestones = [int(self.limit // divisor) for divisor in MILESTONES]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        for _ in range(self.limit):
            (gradient,) = torch.autograd.grad(self.problem.cosine(self.image), [self.image])
            self.image.grad = gradient.sign()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                self.image.clamp_(0, 1)
            self.evaluations, self.iterations = self.evaluations + 1, self.iterations + 1
            yield

    def restart(self, image: Tensor, logits: Tensor) -> Iterator[None]:
        """One restart from the given start; it ends early below 1e-6, when not finite, and when it no longer moves."""
        self.image = image.detach().clone().requires_grad_()
        self.logits = logits.detach().clone().requires_grad_()
        candidate = [self.image, self.logits]
        if self.solver == "adam":
            optimizer = torch.optim.Adam(candidate, lr=0.1)
        else:
            optimizer = torch.optim.LBFGS(candidate, lr=1.0, max_iter=20, history_size=self.history)

        def closure() -> Tensor:
            self.evaluations += 1
            optimizer.zero_grad()
            value = self.problem.objective(self.image, self.logits)
            value.backward(inputs=candidate)
            return value.detach()

        counted = 0
        for _ in range(self.limit):
            before = self.evaluations
            value = float(optimizer.step(closure))  # pyright: ignore[reportArgumentType]
            steps = counted + 1 if self.solver == "adam" else optimizer.state[self.image]["n_iter"]
            self.iterations, counted = self.iterations + steps - counted, steps
            yield
            stuck = self.solver != "adam" and self.evaluations == before + 1
            if stuck or not 1e-6 <= value < float("inf"):
                return


def prepare_torch(task: dict[str, Any]) -> None:
    """Threads, seed, device and oneDNN, as the task has them."""
    if task["threads"] is not None:
        torch.set_num_threads(task["threads"])
    torch.manual_seed(os.getpid())
    torch.set_default_device(task["device"])
    torch.backends.mkldnn.enabled = task["onednn"]


def problem_of(task: dict[str, Any]) -> tuple[Problem, Tensor]:
    """A problem with random weights and private image, and that image [1, 3, s, s]; or vectors of tokens [1, t, e]."""
    classes, shape = task["settings"]["num_classes"], tuple(task["settings"]["shape"])
    kind, fields = task["network"]
    net: Any = build(kind, fields, shape)
    if len(shape) == 1:
        tokens = torch.randint(classes, (1, *shape))
        vectors = net.vectors(tokens).detach()
        net.embed = nn.Identity()  # its gradient is not compared
        return Problem(net, vectors, nn.functional.one_hot(net.targets(tokens), classes).float()), vectors
    image, label = torch.rand(1, shape[2], *shape[:2]), torch.zeros(1, classes)
    label[0, 3] = 1
    return Problem(net, image, label), image


def versions() -> dict[str, Any]:
    """PyTorch's version and number of threads, for the report."""
    return {"threads": torch.get_num_threads(), "versions": {"torch": torch.__version__}}


def work(task: dict[str, Any], link: Link) -> None:
    """Measure the loop for as long as the parent asks."""
    began = time.perf_counter()
    prepare_torch(task)
    held, settings = peak_bytes(), task["settings"]
    problem, image = problem_of(task)
    restarts = Restarts(
        problem,
        image=torch.empty_like(image),
        logits=torch.empty_like(problem.label),
        solver="signed-adam" if task["variant"] == "pytorch-cosine-processes" else settings["solver"],
        history=settings["history"],
        iterations=settings["iterations"],
    )

    steps, meter = restarts.run(), Meter(link)
    next(steps)
    about = {"lanes": 1, "compile_seconds": time.perf_counter() - began, "device": task["device"]}
    meter.wait({**about, **versions(), "held_bytes": held})
    for _ in steps:
        if meter.tick(restarts.evaluations, restarts.iterations):
            meter.wait()


if __name__ == "__main__":
    serve(work)
