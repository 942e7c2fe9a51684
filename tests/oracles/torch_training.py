"""A client's training as people write it in PyTorch: a DataLoader, torch.optim, a schedule, clipped gradients."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def trained_update(
    net: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    orders: Sequence[Sequence[int]],
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    optimizer: str = "sgd",
    lrs: Sequence[float] = (0.1,),
    batch: int | None = None,
    drop_last: bool = False,
    clip: float | None = None,
    **options,
) -> list[Tensor]:
    """w_0 - w_K of one client.

    Args:
        images: [n, c, h, w].
        targets: as `loss` takes them.
        orders: of the images, one for each epoch.
        lrs: learning rates, one for each epoch; one is for all.
        options: of the optimiser.
    """
    local, data = copy.deepcopy(net), TensorDataset(images, targets)
    stepper = OPTIMIZERS[optimizer](local.parameters(), lr=lrs[0], **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, lambda epoch: lrs[min(epoch, len(lrs) - 1)] / lrs[0])
    for order in orders:
        for x, y in DataLoader(data, batch_size=batch or len(images), sampler=list(order), drop_last=drop_last):
            stepper.zero_grad()
            loss(local(x), y).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(local.parameters(), clip)
            stepper.step()
        schedule.step()
    return [(before - after).detach() for before, after in zip(net.parameters(), local.parameters(), strict=True)]
