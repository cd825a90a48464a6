"""Hosts for tests that need several machines; made once for the tests of one process."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator

import pytest

from tests.integration.hosts import SSHD, Hosts, why_not
from tests.integration.on_hosts import Cluster, names


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three hosts, each with an sshd of its own."""
    if shutil.which(SSHD) is None or shutil.which("ssh-keygen") is None:
        pytest.skip("sshd and ssh-keygen are missing (packages openssh-server and openssh-client)")
    if reason := why_not():
        warnings.warn(f"{reason}: the hosts are sshd processes on loopback addresses instead", stacklevel=1)
    with Hosts(tmp_path_factory.mktemp("hosts"), names(3)) as hosts:
        yield Cluster.of(hosts)
