"""Hydra's own test suite for launchers, which is shipped with it: in this process, side by side, and through sshd."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra.version import VersionBase

Plugins.instance()  # made here, it outlives what the suite's fixture puts back after each test
pytestmark = [
    # the suite's own sweeps name no version_base, and the warning comes from within run_job
    pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer change working directory"),
    pytest.mark.xdist_group("hydra suite"),
]
WAYS = ("in this process", "side by side", "through sshd")
FLAGS = ("-m", "hydra/launcher=smolcluster", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled")


@pytest.fixture(autouse=True)
def no_version_base() -> Iterator[None]:
    """The suite is written for an application that names no version_base; tests of ours before it have named one."""
    before = VersionBase.instance()
    VersionBase.set_instance(VersionBase.__new__(VersionBase))
    VersionBase.instance().__init__()  # type: ignore[misc]
    yield
    VersionBase.set_instance(before)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> list[str]:
    """The words that make the launcher run jobs in that way."""
    if request.param == "through sshd":
        return [f"hydra.launcher.host={request.getfixturevalue('over_ssh')}"]
    return ["hydra.launcher.max_concurrent=2"] if request.param == "side by side" else []


@pytest.fixture
def launcher_name() -> str:
    return "smolcluster"


@pytest.fixture
def overrides(way: list[str]) -> list[str]:
    return list(way)


def test_discovery() -> None:
    assert "SmolclusterLauncher" in [found.__name__ for found in Plugins.instance().discover(Launcher)]


class TestLauncher(LauncherTestSuite):
    pass


class TestBatches(BatchedSweeperTestSuite):
    @pytest.fixture
    def overrides(self, way: list[str]) -> list[str]:
        return [*way, "hydra.sweeper.max_batch_size=2"]


class TestIntegration(IntegrationTestSuite):
    @pytest.fixture
    def task_launcher_cfg(self) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def extra_flags(self, way: list[str]) -> list[str]:
        return [*FLAGS, *way]
