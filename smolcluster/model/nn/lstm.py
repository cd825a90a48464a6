"""A language model on an LSTM (Hochreiter and Schmidhuber, 1997)."""

from __future__ import annotations

from torch import Tensor, nn


class LSTMLanguageModel(nn.Module):
    """Token ids ``[batch, length]`` to logits ``[batch, length, vocab]``; every block starts from a state of zeros."""

    def __init__(self, vocab_size: int, embedding_dim: int, hidden_dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(embedding_dim, hidden_dim, num_layers, dropout=between, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(ids))
        return self.head(self.dropout(states))  # type: ignore[no-any-return]
