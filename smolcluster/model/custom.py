"""The user's own model: a class or function that makes a ``torch.nn.Module``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from smolcluster.data import target
from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.errors import ConfigError, Problem
from smolcluster.model import export
from smolcluster.spec.schema import Importable, Range

if TYPE_CHECKING:
    from torch import nn

    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Custom:
    """``target(**kwargs)``; where it has a parameter ``info``, it is also given the :class:`DataInfo`."""

    accepts: ClassVar[tuple[str, ...]] = ("any",)

    target: Annotated[str, Importable()]
    """The class or function, as package.module:name; it must be importable on every node."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""
    max_seq_len: Annotated[int | None, Range(ge=1, le=131_072, unit="tokens")] = None
    """Length of a training sample; must be set where the data are tokens, null where they are features."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        yield from target.problems("model.target", self.target)
        if spec.data.kind == "tokens" and self.max_seq_len is None:
            rule = "must be set: the data are tokens, and samples need a length"
            yield Problem(key="model.max_seq_len", value=None, rule=rule, nearest="128")

    def missing(self) -> Iterable[Problem]:
        return target.missing("model.target", self.target)

    def build(self, info: DataInfo) -> nn.Module:
        """The module; ConfigError where the target is not there, or does not make one of these arguments."""
        import torch

        kwargs = dict(self.kwargs)
        if "info" in inspect.signature(target.imported("model.target", self.target)).parameters:
            kwargs.setdefault("info", info)
        module = target.call("model.target", self.target, kwargs)
        if not isinstance(module, torch.nn.Module):
            rule = f"must make a torch.nn.Module, made a {type(module).__name__}"
            raise ConfigError([Problem(key="model.target", value=self.target, rule=rule)])
        return module

    def export(self, module: nn.Module, folder: Path, dataset: Dataset) -> None:
        export.as_program(module, folder, dataset)
