"""SimpleNN: one hidden layer with ReLU, the first example of the seeds (784-128-10 on MNIST)."""

from __future__ import annotations

import math
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
class SimpleNN:
    """input - hidden - classes, ReLU between; the sizes at both ends come from the data."""

    accepts: ClassVar[tuple[str, ...]] = ("features",)

    hidden: Annotated[int, Range(ge=1, le=1_000_000, unit="units")] = 128
    """Size of the hidden layer."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def build(self, info: DataInfo) -> nn.Module:
        from smolcluster.model.nn import mlp

        return mlp.SimpleNN(math.prod(info.input_shape), self.hidden, info.num_outputs)

    def export(self, module: nn.Module, folder: Path, dataset: Dataset) -> None:
        export.as_program(module, folder, dataset)
