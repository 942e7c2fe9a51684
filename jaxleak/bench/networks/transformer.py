"""The language model in torch, causal and masked, with the names of `models.Transformer`."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (part.view(b, n, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        # The plain algorithm: the others have no second derivative.
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, causal: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, heads, causal), Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Next tokens of a text, or those at places 3, 10, … of one in which they are replaced by entry 0."""

    def __init__(self, size: int, length: int, dim: int, depth: int, heads: int, hidden: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.embed = nn.Embedding(size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, length - causal, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, causal) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, size)
        self.hidden = [place for place in range(length) if place % 7 == 3]

    def vectors(self, ids: Tensor) -> Tensor:
        """Of the tokens that are read; hidden ones are replaced later."""
        return self.embed(ids[:, :-1] if self.causal else ids)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, p, k] of vectors."""
        if not self.causal:
            x = x.clone()
            x[:, self.hidden] = self.embed.weight[0]
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x if self.causal else x[:, self.hidden])

    def loss(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Cross-entropy of the tokens that are predicted."""
        return functional.cross_entropy(logits.flatten(0, 1), self.targets(ids).flatten())

    def targets(self, ids: Tensor) -> Tensor:
        """The tokens that are predicted."""
        return ids[:, 1:] if self.causal else ids[:, self.hidden]
