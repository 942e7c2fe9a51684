"""The shared gradient and the gradient-matching objective in torch, NCHW."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jaxleak.bench.networks.lenet import LeNet
from jaxleak.bench.networks.resnet import ResNet


def lenet_from(state_dict: Mapping[str, np.ndarray], height: int, width: int) -> LeNet:
    """The LeNet that holds these numpy weights, in their dtype; channels and classes are read from them."""
    channels = state_dict["body.0.weight"].shape[1]
    num_classes = state_dict["fc.0.weight"].shape[0]
    net = LeNet(height, width, channels, num_classes)
    tensors = {name: torch.from_numpy(weight.copy()) for name, weight in state_dict.items()}
    net.to(tensors["fc.0.weight"].dtype).load_state_dict(tensors)
    return net


def resnet18(width: int, num_classes: int) -> ResNet:
    """ResNet-18 in its CIFAR form with sigmoids, BatchNorm in train mode."""
    return ResNet(num_classes, (2, 2, 2, 2), False, width, "cifar", nn.Sigmoid(), None)


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, mean over the batch.

    Args:
        logits: [b, k].
        target: class numbers [b] (integers), or label logits [b, k] whose softmax is the soft label.
    """
    if target.is_floating_point():
        soft_label = torch.softmax(target, dim=-1)
        return -(soft_label * torch.log_softmax(logits, dim=-1)).sum(dim=-1).mean()
    return nn.functional.cross_entropy(logits, target)


def parameter_gradient(net: nn.Module, image: Tensor, target: Tensor, *, create_graph: bool) -> list[Tensor]:
    """The loss's gradient with respect to every parameter tensor, in state_dict order."""
    value = loss(net(image), target)
    return list(torch.autograd.grad(value, list(net.parameters()), create_graph=create_graph))


def dlg_gradient(net: nn.Module, image: Tensor, label: Tensor) -> list[Tensor]:
    """What the client shares: the gradient of its loss on images [b, c, h, w] with classes [b]."""
    return [g.detach() for g in parameter_gradient(net, image, label, create_graph=False)]


def infer_label(update: Sequence[Tensor]) -> int:
    """iDLG's label: the class whose row of the head's weight gradient has the smallest sum (one image).

    Differs: the paper's text looks for the one row of negative sign, its code and this for the smallest sum;
        the two agree where the features are positive, as after a sigmoid.
    """
    head_weight = update[-2]
    return int(head_weight.sum(dim=-1).argmin())


def objective(net: nn.Module, update: Sequence[Tensor], image: Tensor, target: Tensor) -> Tensor:
    """Sum over all tensors of squared differences between the candidate's gradient and the update.

    Args:
        net: the victim's network.
        update: the shared gradient, one tensor per parameter.
        image: candidate images [b, c, h, w].
        target: class numbers [b] (iDLG), or label logits [b, k] (DLG).
    """
    candidate = parameter_gradient(net, image, target, create_graph=True)
    squares = [((g - shared) ** 2).sum() for g, shared in zip(candidate, update, strict=True)]
    return torch.stack(squares).sum()


def objective_and_gradient(
    net: nn.Module, update: Sequence[Tensor], image: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The objective, its gradient with respect to the image, and (label logits, else None) to the target."""
    image = image.detach().clone().requires_grad_()
    wanted = [image]
    if target.is_floating_point():
        target = target.detach().clone().requires_grad_()
        wanted.append(target)
    value = objective(net, update, image, target)
    gradients = torch.autograd.grad(value, wanted)
    return value.detach(), gradients[0], gradients[1] if len(gradients) > 1 else None
