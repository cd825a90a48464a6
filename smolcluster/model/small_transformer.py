"""The seeds' ``small-transformer``: a small causal transformer on torch's own layers, head and embedding not tied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.errors import Problem
from smolcluster.model import export
from smolcluster.model.gpt import heads_problems
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from torch import nn

    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class SmallTransformer:
    """Pre-norm encoder layers with a causal mask; some 530,000 parameters with 512 tokens."""

    accepts: ClassVar[tuple[str, ...]] = ("tokens",)

    model_dim: Annotated[int, Range(ge=1, le=65_536, unit="features")] = 128
    """Width of the residual stream; a multiple of num_heads."""
    num_layers: Annotated[int, Range(ge=1, le=1024, unit="layers")] = 2
    """Number of layers."""
    num_heads: Annotated[int, Range(ge=1, le=1024, unit="heads")] = 4
    """Attention heads per layer."""
    ff_dim: Annotated[int, Range(ge=1, le=262_144, unit="features")] = 512
    """Width inside the feed-forward layers."""
    dropout: Annotated[float, Range(ge=0, lt=1, unit="probability")] = 0.1
    """Dropout on attention weights, feed-forward layers and residuals."""
    max_seq_len: Annotated[int, Range(ge=1, le=131_072, unit="tokens")] = 32
    """Longest sequence, and the length of a training sample."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return heads_problems(self.model_dim, self.num_heads)

    def build(self, info: DataInfo) -> nn.Module:
        from smolcluster.model.nn import transformer

        return transformer.TransformerLanguageModel(
            vocab_size=info.num_outputs,
            num_positions=self.max_seq_len,
            model_dim=self.model_dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            ff_dim=self.ff_dim,
            dropout=self.dropout,
        )

    def export(self, module: nn.Module, folder: Path, dataset: Dataset) -> None:
        export.as_program(module, folder, dataset)
