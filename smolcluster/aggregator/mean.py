"""``aggregator=mean``: the mean weighted by numbers of items. Robust against nothing, equal to one process.

With n_r items behind the mean gradient g_r of rank r, sum_r (n_r / sum n) g_r is the mean gradient over all
items: the same as one process computes on the whole batch, for any optimizer (docs/algorithms.md,
"SyncPS"). Terms are added in the order given, so the result does not depend on who was faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smolcluster.errors import AggregationError, Problem

if TYPE_CHECKING:
    from torch import Tensor

    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The weighted mean of the updates."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def __call__(self, updates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """sum_i w_i x_i / sum w for ``updates`` of shape [num_params] each, in rank order; weights > 0."""
        total = sum(weights)
        if not updates or total <= 0:
            raise AggregationError(f"mean needs at least one update with items, got {len(updates)} with {total:g}")
        mean = updates[0] * (weights[0] / total)
        for update, weight in zip(updates[1:], weights[1:], strict=True):
            mean.add_(update, alpha=weight / total)
        return mean
