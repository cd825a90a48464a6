"""GPT: a GPT-2 of any size, trained from scratch; the defaults are those of the seeds (4.9 million parameters
with 512 tokens, 17.6 million with GPT-2's 50,257)."""

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
class GPT:
    """GPT-2's architecture: pre-norm blocks, learned positions, GELU, tied embeddings."""

    accepts: ClassVar[tuple[str, ...]] = ("tokens",)

    model_dim: Annotated[int, Range(ge=1, le=65_536, unit="features")] = 256
    """Width of the residual stream; a multiple of num_heads."""
    num_layers: Annotated[int, Range(ge=1, le=1024, unit="blocks")] = 6
    """Number of blocks."""
    num_heads: Annotated[int, Range(ge=1, le=1024, unit="heads")] = 4
    """Attention heads per block."""
    ff_dim: Annotated[int, Range(ge=1, le=262_144, unit="features")] = 1024
    """Width inside the feed-forward layers."""
    dropout: Annotated[float, Range(ge=0, lt=1, unit="probability")] = 0.1
    """Dropout on embeddings, attention weights and residuals, as GPT-2 has it."""
    max_seq_len: Annotated[int, Range(ge=1, le=131_072, unit="tokens")] = 128
    """Longest sequence, and the length of a training sample."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return heads_problems(self.model_dim, self.num_heads)

    def build(self, info: DataInfo) -> nn.Module:
        from smolcluster.model.nn import gpt

        return gpt.GPT(
            vocab_size=info.num_outputs,
            num_positions=self.max_seq_len,
            model_dim=self.model_dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            ff_dim=self.ff_dim,
            dropout=self.dropout,
        )

    def export(self, module: nn.Module, folder: Path, dataset: Dataset) -> None:
        export.as_gpt2(module, folder, dataset)


def heads_problems(model_dim: int, num_heads: int) -> Iterable[Problem]:
    """Heads share the width evenly."""
    if model_dim % num_heads:
        rule = f"must be a multiple of model.num_heads={num_heads}"
        nearest = max(1, round(model_dim / num_heads)) * num_heads
        yield Problem(key="model.model_dim", value=model_dim, rule=rule, nearest=str(nearest))
