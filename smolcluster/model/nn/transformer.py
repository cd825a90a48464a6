"""A small pre-norm transformer language model (Vaswani et al., 2017) on torch's own encoder layers."""

from __future__ import annotations

from torch import Tensor, nn


class TransformerLanguageModel(nn.Module):
    """Token ids ``[batch, length]`` to logits ``[batch, length, vocab]``; a position sees itself and what is before."""

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
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, model_dim)
        self.positions = nn.Embedding(num_positions, model_dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                model_dim, num_heads, ff_dim, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(model_dim)
        self.head = nn.Linear(model_dim, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.tokens(ids) + self.positions.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=x.device, dtype=x.dtype)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x))  # type: ignore[no-any-return]
