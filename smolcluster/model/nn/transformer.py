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
        layer = nn.TransformerEncoderLayer(
            model_dim, num_heads, ff_dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, nn.LayerNorm(model_dim), enable_nested_tensor=False)
        self.head = nn.Linear(model_dim, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device, dtype=self.head.weight.dtype)
        x = self.tokens(ids) + self.positions.weight[:length]
        return self.head(self.encoder(x, mask=mask, is_causal=True))  # type: ignore[no-any-return]
