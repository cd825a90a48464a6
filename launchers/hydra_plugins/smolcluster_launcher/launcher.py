"""The launcher as Hydra sees it. Hydra imports this module in every application: the work is done in ``_core``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import hydra_plugins.smolcluster_launcher.config  # noqa: F401  (registers the options)
from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig


class SmolclusterLauncher(Launcher):
    """Runs the jobs of a sweep: one after another in this process, side by side, or on another machine."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from hydra_plugins.smolcluster_launcher._core import Sweep

        assert self.hydra_context is not None
        assert self.task_function is not None
        assert self.config is not None
        return Sweep(self.hydra_context, self.task_function, self.config).run(job_overrides, initial_job_idx)
