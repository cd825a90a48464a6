"""One host that is reached by SSH, for Hydra's own tests of launchers."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Iterator

import pytest

from tests.integration.hosts import SSHD, Hosts


@pytest.fixture(scope="session")
def over_ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``user@address:port`` of an sshd, for whoever has this session's home."""
    if shutil.which(SSHD) is None or shutil.which("ssh-keygen") is None:
        pytest.skip("sshd and ssh-keygen are missing (packages openssh-server and openssh-client)")
    home, before = tmp_path_factory.mktemp("home"), os.environ.get("HOME")
    with Hosts(tmp_path_factory.mktemp("host"), ["host"]) as hosts:
        (home / ".ssh").mkdir()
        (home / ".ssh" / "config").write_text(f"Host *\n  IdentityFile {hosts.key}\n")
        shutil.copy(hosts.known_hosts, home / ".ssh" / "known_hosts")
        os.environ["HOME"] = str(home)
        (host,) = hosts
        try:
            yield f"{getpass.getuser()}@{host.address}:{host.port}"
        finally:
            if before is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = before
