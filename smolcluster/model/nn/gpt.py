"""GPT-2 (Radford et al., 2019): pre-norm decoder, learned positions, GELU (tanh), tied embeddings.

Everything is where GPT-2 has it, biases, dropout and initialisation included, so that weights go to and from
transformers' ``GPT2LMHeadModel``. The three parts :attr:`GPT.embedding`, :attr:`GPT.blocks` and
:attr:`GPT.head` are the places to cut a model that spans machines; one matrix is shared by the first and last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smolcluster.model.nn.linear import Linear, linear

INIT_STD = 0.02


class Embedding(nn.Module):
    """Token ids ``[batch, length]`` to ``[batch, length, dim]``: token plus position, then dropout."""

    def __init__(self, vocab_size: int, num_positions: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(num_positions, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        return self.dropout(self.tokens(ids) + self.positions.weight[: ids.shape[1]])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention; query, key and value come from one product."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.output = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        heads = linear(x, self.qkv.weight, self._bias()).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [batch, heads, length, dim / heads]
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.dropout(self.output(mixed.transpose(1, 2).reshape(batch, length, dim)))  # type: ignore[no-any-return]

    def _bias(self) -> Tensor:
        """[3 dim] without the keys' part, which adds the same to all scores of a query, so that softmax cancels it.

        Its gradient is zero but for rounding, and AdamW would make whole steps of that: two runs whose sums differ
        in the last bit would differ in it by all it has learned. Left out, its gradient is exactly zero.
        """
        query, key, value = self.qkv.bias.chunk(3)
        return torch.cat((query, torch.zeros_like(key), value))


class FeedForward(nn.Module):
    """Two layers with a GELU between, applied at each position."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = Linear(dim, hidden)
        self.output = Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.output(F.gelu(self.inner(x), approximate="tanh")))  # type: ignore[no-any-return]


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``."""

    def __init__(self, dim: int, num_heads: int, ff_dim: int, dropout: float, epsilon: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, eps=epsilon)
        self.attention = Attention(dim, num_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=epsilon)
        self.feed_forward = FeedForward(dim, ff_dim, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


class Head(nn.Module):
    """``[batch, length, dim]`` to logits ``[batch, length, vocab]``: norm, then the product with ``weight``."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(weight.shape[1], eps=epsilon)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.norm(x), self.weight)


class GPT(nn.Module):
    """Token ids ``[batch, length]`` to logits ``[batch, length, vocab]``; length is at most ``num_positions``.

    ``dimensions`` are the sizes under the names of transformers' ``GPT2Config``.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        num_positions: int,
        model_dim: int,
        num_layers: int,
        num_heads: int,
        ff_dim: int,
        dropout: float,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(vocab_size, num_positions, model_dim, dropout)
        self.blocks = nn.ModuleList(Block(model_dim, num_heads, ff_dim, dropout, epsilon) for _ in range(num_layers))
        self.head = Head(self.embedding.tokens.weight, epsilon)  # type: ignore[arg-type]
        self.dimensions: Mapping[str, int | float] = {
            "vocab_size": vocab_size,
            "n_positions": num_positions,
            "n_embd": model_dim,
            "n_layer": num_layers,
            "n_head": num_heads,
            "n_inner": ff_dim,
            "embd_pdrop": dropout,
            "attn_pdrop": dropout,
            "resid_pdrop": dropout,
            "layer_norm_epsilon": epsilon,
            "initializer_range": INIT_STD,
        }
        self._initialise()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]

    @torch.no_grad()
    def _initialise(self) -> None:
        """N(0, 0.02) and zero biases; the layers that add to the residual stream are scaled by 1/sqrt(2 layers)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith("output.weight"):
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * len(self.blocks)))
