"""``optim=sgd``: stochastic gradient descent, with momentum if wanted, on one flat tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from smolcluster.errors import Problem
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from torch import Tensor

    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class SGD:
    """v <- mu v + (g + wd theta);  theta <- theta - lr v  (torch.optim.SGD's convention: lr outside of v)."""

    lr: Annotated[float, Range(gt=0, le=100)] = 0.1
    """Learning rate at the schedule's peak."""
    momentum: Annotated[float, Range(ge=0, lt=1)] = 0.0
    """mu; 0 keeps no state."""
    nesterov: bool = False
    """Look ahead along the momentum; needs momentum > 0."""
    weight_decay: Annotated[float, Range(ge=0, le=1)] = 0.0
    """Added to the gradient as weight_decay * theta."""

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if self.nesterov and self.momentum == 0:
            yield Problem(key="optim.momentum", value=0.0, rule="must be > 0 with optim.nesterov=true", nearest="0.9")

    def step(self, parameters: Tensor, gradient: Tensor, state: dict[str, Tensor], *, count: int, lr: float) -> None:
        """Change ``parameters`` and ``state`` in place, all of shape [num_params]; ``count`` is 1 at the first step."""
        update = gradient.add(parameters, alpha=self.weight_decay) if self.weight_decay else gradient
        if self.momentum:
            velocity = state["momentum_buffer"].mul_(self.momentum).add_(update)
            update = update.add(velocity, alpha=self.momentum) if self.nesterov else velocity
        parameters.add_(update, alpha=-lr)
