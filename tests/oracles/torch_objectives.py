"""Cosine matching, CPL's label term, BatchNorm statistics and image priors in torch, NCHW, as in their papers' code.

The network and the gradient-matching objective of DLG: `torch_lenet`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def value_and_slope(term: Callable[[Tensor], Tensor], image: Tensor) -> tuple[float, Tensor]:
    """A term at `image`, and its gradient with respect to it."""
    image = image.detach().clone().requires_grad_()
    value = term(image)
    (slope,) = torch.autograd.grad(value, image)
    return value.item(), slope


def cosine_distance(candidate: Sequence[Tensor], update: Sequence[Tensor]) -> Tensor:
    """1 - cosine of all tensors concatenated.

    Source: Geiping et al. 2020, equation 4; `inversefed/reconstruction_algorithms.py`, cost_fn "sim".
    """
    product = torch.stack([(g * u).sum() for g, u in zip(candidate, update, strict=True)]).sum()
    squares = [torch.stack([(t * t).sum() for t in tensors]).sum() for tensors in (candidate, update)]
    return 1 - product / squares[0].sqrt() / squares[1].sqrt()


def label_distance(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over images of the squared distance of the softmax from the one-hot label."""
    target = nn.functional.one_hot(label, logits.shape[1]).to(logits)
    return ((torch.softmax(logits, dim=1) - target) ** 2).sum(dim=1).mean()


def statistics(net: nn.Module, image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By module name: mean and biased variance over images and pixels of each BatchNorm's input.

    Source: DeepInversion's `DeepInversionFeatureHook`.
    """
    seen = {}

    def hook(name: str) -> Callable:
        def look(_module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
            channels = inputs[0].transpose(0, 1).flatten(1)
            seen[name] = channels.mean(dim=1), channels.var(dim=1, unbiased=False)

        return look

    norms = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [module.register_forward_hook(hook(name)) for name, module in norms]
    net(image)
    for handle in handles:
        handle.remove()
    return seen


def statistics_distance(found: dict[str, tuple[Tensor, Tensor]], wanted: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over layers of the Euclidean distances of means and of variances."""
    assert found.keys() == wanted.keys()
    parts = [torch.norm(a - b.detach(), 2) for name in found for a, b in zip(found[name], wanted[name], strict=True)]
    return torch.stack(parts).sum()


def total_variation(x: Tensor) -> Tensor:
    """Source: Geiping et al. 2020, `inversefed/metrics.py`."""
    dx = torch.mean(torch.abs(x[:, :, :, :-1] - x[:, :, :, 1:]))
    dy = torch.mean(torch.abs(x[:, :, :-1, :] - x[:, :, 1:, :]))
    return dx + dy


def norm_prior(x: Tensor) -> Tensor:
    """Source: DeepInversion's l2 loss."""
    return torch.norm(x.flatten(1), dim=1).mean()


def consistency(x: Tensor) -> Tensor:
    """Mean over the group [g, b, c, h, w] of the squared distance from its mean."""
    return ((x - x.mean(dim=0, keepdim=True)) ** 2).flatten(1).sum(dim=1).mean()
