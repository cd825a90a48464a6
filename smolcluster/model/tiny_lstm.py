"""The seeds' ``tiny-lstm``: a small LSTM language model for slow links and small machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.errors import Problem
from smolcluster.model import export
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from torch import nn

    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class TinyLSTM:
    """Embedding, LSTM, linear; some 200,000 parameters with 512 tokens."""

    accepts: ClassVar[tuple[str, ...]] = ("tokens",)

    embedding_dim: Annotated[int, Range(ge=1, le=65_536, unit="features")] = 64
    """Width of a token's embedding."""
    hidden_dim: Annotated[int, Range(ge=1, le=65_536, unit="features")] = 128
    """Width of the LSTM's state."""
    num_layers: Annotated[int, Range(ge=1, le=64, unit="layers")] = 1
    """LSTM layers on top of each other."""
    dropout: Annotated[float, Range(ge=0, lt=1, unit="probability")] = 0.0
    """Dropout between and after the LSTM's layers."""
    max_seq_len: Annotated[int, Range(ge=1, le=131_072, unit="tokens")] = 32
    """Length of a training sample."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def build(self, info: DataInfo) -> nn.Module:
        from smolcluster.model.nn import lstm

        return lstm.LSTMLanguageModel(
            info.num_outputs, self.embedding_dim, self.hidden_dim, self.num_layers, self.dropout
        )

    def export(self, module: nn.Module, folder: Path, dataset: Dataset) -> None:
        export.as_program(module, folder, dataset)
