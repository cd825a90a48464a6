"""Hydra's own test suite for launchers, which is shipped with it."""

from __future__ import annotations

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

Plugins.instance()  # made here, it outlives what the suite's fixture puts back after each test
WAYS = {"in this process": [], "side by side": ["hydra.launcher.max_concurrent=2"]}
LAUNCHERS = [pytest.param("smolcluster", words, id=way) for way, words in WAYS.items()]
FLAGS = ["-m", "hydra/launcher=smolcluster", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]


def test_discovery() -> None:
    assert "SmolclusterLauncher" in [found.__name__ for found in Plugins.instance().discover(Launcher)]


@pytest.mark.parametrize(("launcher_name", "overrides"), LAUNCHERS)
class TestLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [pytest.param("smolcluster", [*words, "hydra.sweeper.max_batch_size=2"], id=way) for way, words in WAYS.items()],
)
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [pytest.param({}, [*FLAGS, *words], id=way) for way, words in WAYS.items()],
)
class TestIntegration(IntegrationTestSuite):
    pass
