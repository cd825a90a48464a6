"""A window with a pane for each node of a run, on the machine of the person who started it.

Inside of tmux it is a new window of that session, beside the one that the command was typed in; elsewhere it is a
session of its own that one can attach to. It goes when the run is over. When the run has failed, it stays until a key
is pressed in it: always inside of tmux, elsewhere if somebody has attached to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from smolcluster.panes import tmux
from smolcluster.panes.follow import ALWAYS, ATTACHED, Watched
from smolcluster.tracking.logs import file_name
from smolcluster.tracking.tracker import Event, NodeInfo, RunInfo, TrackerFailed

FOLLOW = "smolcluster.panes.follow"


class Window:
    """Implements :class:`smolcluster.tracking.tracker.Tracker`: should it break, the run goes on without it."""

    def __init__(self, run: RunInfo) -> None:
        self._run, self.name = run, tmux.session_name(run.run_id)
        self._id, self._inside = "", False

    def start(self, spec: Mapping[str, Any]) -> Sequence[str]:
        """Open it; says where it is."""
        try:
            return self._open()
        except tmux.TmuxFailed as error:
            self._end()
            raise TrackerFailed(str(error)) from None
        except KeyboardInterrupt:
            self._end()
            raise

    def on_event(self, event: Event) -> None:
        """The panes read the run's directory themselves."""

    def finish(self, summary: Mapping[str, Any]) -> Sequence[str]:
        """Close it, unless there is something in it that a person should read."""
        if summary.get("status") != "failed" or not (self._inside or self._watched()):
            self._end()
        return ()

    def _open(self) -> list[str]:
        self._inside = is_inside()
        first, *others = self._run.nodes
        shape = ["-P", "-F", "#{window_id}", "-n", self.name if self._inside else "nodes"]
        if self._inside:
            self._id = tmux.tell("new-window", "-d", *shape, *self._follow(first))
            tmux.tell(*tmux.framed(self._id)[1:])
        else:
            looks = tmux.bare(f"={self.name}:", "{} z enlarges a pane, {} d leaves")
            self._id = tmux.begin(*shape, "-s", self.name, *tmux.SIZE, *self._follow(first), *looks)
        left_out = self._split(others)
        what = f"window {self.name} of this tmux session" if self._inside else f"tmux attach -t {self.name}"
        lines = [f"a pane for each node: {what}"]
        return [*lines, f"no room for a pane for {', '.join(left_out)}"] if left_out else lines

    def _split(self, others: Sequence[NodeInfo]) -> list[str]:
        """Make a pane for each of the others; returns who found no room."""
        last = self._id
        for index, node in enumerate(others):
            try:
                last = tmux.tell("split-window", "-d", "-P", "-F", "#{pane_id}", "-t", last, *self._follow(node))
            except tmux.TmuxFailed as error:
                if "no space" not in str(error):
                    raise
                return [node.name for node in others[index:]]
            tmux.tell("select-layout", "-t", self._id, "tiled")  # at once: the next one needs room, too
        return []

    def _follow(self, node: NodeInfo) -> list[str]:
        """What runs in the pane of ``node``."""
        role = f"{node.name} ({node.role} {node.rank})"
        watched = Watched(
            folder=str(self._run.path),
            node=node.name,
            label=file_name(node.label),
            title=role if node.host == node.name else f"{role} on {node.host}",
            controller=str(os.getpid()),
            stays=ALWAYS if self._inside else ATTACHED,
        )
        return tmux.command(FOLLOW, *watched)

    def _watched(self) -> bool:
        """Whether somebody has attached to the session of this window."""
        try:
            return tmux.tell("display-message", "-p", "-t", self._id, "#{session_attached}") != "0"
        except tmux.TmuxFailed:
            return False

    def _end(self) -> None:
        if self._inside and self._id:
            try:
                tmux.tell("kill-window", "-t", self._id)
            except tmux.TmuxFailed:
                return  # somebody has closed it
        elif not self._inside:
            tmux.end(self.name)


def is_inside() -> bool:
    """Whether this process is in a tmux session that can be asked for a window."""
    if "TMUX" not in os.environ:
        return False
    try:
        tmux.tell("display-message", "-p", "#{session_id}")
    except tmux.TmuxFailed:
        return False
    return True
