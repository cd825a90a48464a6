"""Why a machine cannot be reached, in one line."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from hydra_plugins.smolcluster_launcher._connect import why
from paramiko.ssh_exception import NoValidConnectionsError

CONNECTION: Any = SimpleNamespace(host="mini2", port=22, user="me")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([errno.EHOSTUNREACH, errno.ENETUNREACH], "mini2:22 cannot be reached: is it on, and on this network?"),
        ([errno.ECONNREFUSED], "mini2:22 refuses connections: is its SSH server on (macOS: Sharing, Remote Login)?"),
        ([errno.EHOSTUNREACH, errno.ECONNREFUSED], "mini2:22 refuses connections: is its SSH server on"),
    ],
)
def test_a_machine_that_is_off_is_told_from_one_without_an_ssh_server(numbers: list[int], words: str) -> None:
    errors = {(f"10.0.0.{index}", 22): OSError(number, "") for index, number in enumerate(numbers)}
    assert why(NoValidConnectionsError(errors), CONNECTION, "me@mini2:22", 10.0).startswith(words)
