"""The vision transformer in torch, NCHW, with timm's names."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    def __init__(self, side: int, channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, side, stride=side)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """timm's rearrangement, and torch's own attention in place of the three lines that the network has."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        # The plain algorithm: the others have no second derivative.
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.fc1, self.fc2, self.activation = nn.Linear(dim, hidden), nn.Linear(hidden, dim), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, activation: Callable[[Tensor], Tensor], sequential: bool):
        super().__init__()
        self.sequential = sequential
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        if not sequential:
            self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.sequential:
            return self.mlp(self.norm1(self.attn(x)))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021, with timm's names.

    Args:
        shape: height, width and channels of the images.
        sequential: attention, norm and dense layers without shortcuts (Lu et al. 2022, figure 1 A).
    """

    def __init__(
        self,
        num_classes: int,
        shape: tuple[int, int, int],
        side: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
        sequential: bool = False,
    ):
        super().__init__()
        h, w, c = shape
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (h // side) * (w // side) + 1, dim))
        self.patch_embed = PatchEmbed(side, c, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden, activation, sequential) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, k] of images [b, c, h, w]."""
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])
