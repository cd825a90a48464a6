"""A network with one hidden layer, for inputs of any shape."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SimpleNN(nn.Module):
    """``[batch, ...]`` to logits ``[batch, classes]``: flatten, linear, ReLU, linear."""

    def __init__(self, num_inputs: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_inputs, hidden)
        self.output = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(self.hidden(x.flatten(1))))  # type: ignore[no-any-return]
