"""``hydra.launcher.tmux=true``: each node in a tmux session of its machine, and each run with a window here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hydra_plugins.smolcluster_launcher._process import KILL_S, first_word
from omegaconf import DictConfig, OmegaConf

from smolcluster.cluster.local import LocalProcesses, OnThisMachine, ProcessSession, local_sessions, node_environment
from smolcluster.cluster.session import Say, Sessions
from smolcluster.errors import Problem, RunFailed
from smolcluster.panes import tmux
from smolcluster.spec.build import component_class
from smolcluster.spec.schema import TARGET
from smolcluster.tracking.tracker import window

if TYPE_CHECKING:
    from smolcluster.spec.needs import Needs

BRIDGE = "smolcluster.panes.bridge"
STARTS_S = 60.0
"""A node of this machine says its first word by then."""


def nodes_here(threads: int, *, in_tmux: bool) -> Sessions:
    """How nodes of this machine are started, with so many threads each."""
    return LocalPanes(threads) if in_tmux else local_sessions(threads)


class PaneSession(ProcessSession):
    """A node of this machine in a tmux session. The process that is waited for is the bridge to it."""

    def kill(self) -> None:
        """End the node; the bridge follows, and is ended too if it does not."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            asyncio.get_running_loop().call_later(KILL_S, super().kill)

    async def give_up(self) -> None:
        """End the bridge before its node has come up; it removes what it has made."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self.wait(), KILL_S)
        except TimeoutError:
            super().kill()
            await self.wait()


class LocalPanes(OnThisMachine):
    """Starts each node of this machine in a tmux session, from scratch: what is forked could not be in another one."""

    def __init__(self, threads: int) -> None:
        self._environment, self._run = node_environment(threads), ""

    async def open(self, names: Sequence[str], run: str, needs: Needs, say: Say) -> None:
        self._run = run
        if names and tmux.program() is None:
            raise RunFailed(f"this machine {tmux.absence(platform.system())}")

    async def start(self, name: str) -> PaneSession:
        words = [tmux.session_name(self._run, name), name]
        session = PaneSession(await LocalProcesses(self._environment, BRIDGE, words).begin())
        try:
            session.pid = await first_word(session, name, STARTS_S)
        except BaseException:
            await session.give_up()
            session.close()
            raise
        return session

    async def close(self) -> None:
        return


@contextmanager
def windows(*, wanted: bool) -> Iterator[None]:
    """While it lasts, each run that begins gets a window, if they are ``wanted``."""
    from smolcluster.panes.window import Window

    before = window.set(Window if wanted else None)
    try:
        yield
    finally:
        window.reset(before)


def wrong_with_tmux(options: DictConfig) -> Iterable[Problem]:
    """What is in the way of tmux on this machine."""
    if options.tmux and options.host is None and tmux.program() is None:
        yield Problem(key="hydra.launcher.tmux", value=True, rule=f"this machine {tmux.absence(platform.system())}")


def unfit(config: DictConfig) -> Iterable[Problem]:
    """Why the nodes of a job cannot have a session each."""
    comms = component_class("comms", OmegaConf.select(config, f"comms.{TARGET}"))
    if comms is not None and not getattr(comms, "separate_processes", True):
        chosen = config.hydra.runtime.choices.get("comms")
        rule = "needs nodes that are processes of their own: hydra.launcher.tmux=false, or comms=tcp"
        yield Problem(key="comms", value=chosen, rule=rule, nearest="tcp")
