"""``optim=adamw``: AdamW (Loshchilov & Hutter, arXiv 1711.05101) on one flat tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from smolcluster.errors import Problem
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from torch import Tensor

    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay."""

    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    lr: Annotated[float, Range(gt=0, le=100)] = 1e-3
    """Learning rate at the schedule's peak."""
    weight_decay: Annotated[float, Range(ge=0, le=1)] = 0.01
    """Decoupled decay, per step and unit of learning rate; applied to every parameter."""
    beta1: Annotated[float, Range(ge=0, lt=1)] = 0.9
    """Decay of the mean of the gradient."""
    beta2: Annotated[float, Range(ge=0, lt=1)] = 0.999
    """Decay of the mean of its square."""
    eps: Annotated[float, Range(gt=0, le=1)] = 1e-8
    """Added to the root of the second mean."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def step(self, parameters: Tensor, gradient: Tensor, state: dict[str, Tensor], *, count: int, lr: float) -> None:
        """Change ``parameters`` and ``state`` in place, all of shape [num_params]; ``count`` is 1 at the first step.

        The functional form of torch.optim.AdamW: one fused pass over memory where the device has it.
        """
        import torch
        from torch.optim.adamw import adamw

        fused = parameters.device.type in ("cpu", "cuda", "mps")
        adamw(
            [parameters],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            # the function counts this step itself; it wants a float tensor, on the device only for fused
            [torch.tensor(float(count - 1), device=parameters.device if fused else None)],
            foreach=False,
            fused=fused,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=lr,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )
