"""What a client shares after steps of its own training: with torch.optim, and as a graph that can be differentiated."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tests.oracles.torch_lenet import loss

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's defaults, written out
ROOT = 1e-30  # under the root of a graph, whose derivative is not finite at 0; `jaxleak.threat.client` has the same


def client_update(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    optimizer: str,
    lr: float,
    batch: int | None = None,
    clients: int = 1,
) -> list[Tensor]:
    """w_0 - w_K with torch.optim, mean over the clients; their mean gradient for 0 steps.

    Args:
        images: [b, c, h, w], client by client.
        labels: [b].
        steps: local steps of each client.
        batch: images per step, in turn; None: all of the client's.

    Source: McMahan et al. 2017 (FedAvg), algorithm 1.
    """
    updates = []
    for x, y in zip(images.chunk(clients), labels.chunk(clients), strict=True):
        local = copy.deepcopy(net)
        if steps == 0:
            updates.append(torch.autograd.grad(loss(local(x), y), list(local.parameters())))
            continue
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        stepper = kind(local.parameters(), lr=lr)
        for rows in turns(len(x), batch, steps):
            stepper.zero_grad()
            loss(local(x[rows]), y[rows]).backward()
            stepper.step()
        pairs = zip(net.parameters(), local.parameters(), strict=True)
        updates.append([(before - after).detach() for before, after in pairs])
    return [torch.stack(tensors).mean(dim=0) for tensors in zip(*updates, strict=True)]


def turns(images: int, batch: int | None, steps: int) -> Iterator[slice]:
    """Rows of each step: the batches in order, from the first again after the last."""
    batch = batch or images
    for step in range(steps):
        first = step * batch % images
        yield slice(first, first + batch)


def simulated_update(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    optimizer: str,
    lr: float,
    batch: int | None = None,
    clients: int = 1,
) -> list[Tensor]:
    """`client_update` as a graph: SGD and Adam written out, so that the images can be differentiated through it."""
    names = [name for name, _ in net.named_parameters()]
    start = [parameter.detach().clone().requires_grad_() for parameter in net.parameters()]
    updates = []
    for x, y in zip(images.chunk(clients), labels.chunk(clients), strict=True):
        weights = list(start)
        first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
        for number, rows in enumerate(turns(len(x), batch, max(steps, 1)), start=1):
            outputs = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x[rows],))
            slopes = torch.autograd.grad(loss(outputs, y[rows]), weights, create_graph=True)
            if steps == 0:
                updates.append(slopes)
                break
            if optimizer == "adam":
                first = [BETAS[0] * m + (1 - BETAS[0]) * g for m, g in zip(first, slopes, strict=True)]
                second = [BETAS[1] * v + (1 - BETAS[1]) * g**2 for v, g in zip(second, slopes, strict=True)]
                slopes = [
                    m / (1 - BETAS[0] ** number) / ((v / (1 - BETAS[1] ** number) + ROOT).sqrt() + EPS)
                    for m, v in zip(first, second, strict=True)
                ]
            weights = [w - lr * g for w, g in zip(weights, slopes, strict=True)]
        else:
            updates.append([before - after for before, after in zip(start, weights, strict=True)])
    return [torch.stack(tensors).mean(dim=0) for tensors in zip(*updates, strict=True)]


def objective_and_slope(
    net: nn.Module, update: Sequence[Tensor], images: Tensor, labels: Tensor, **client
) -> tuple[float, Tensor]:
    """Squared distance of the simulated update from the shared one, and its gradient with respect to the images."""
    images = images.detach().clone().requires_grad_()
    candidate = simulated_update(net, images, labels, **client)
    value = torch.stack([((u - shared) ** 2).sum() for u, shared in zip(candidate, update, strict=True)]).sum()
    (slope,) = torch.autograd.grad(value, images)
    return value.item(), slope
