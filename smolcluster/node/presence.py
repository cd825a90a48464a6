"""That a node runs, for whoever looks at its machine later: a pid file and a lock that ends with the process.

``<folder>/<name>-<pid>.pid`` says which process it is and what it uses, and its time of change is when it last heard of
its controller. The lock beside it is held as long as the process lives: a number that the system has given to another
process since is never taken for the node. A process that is there although it has heard nothing for longer than its
silence limit cannot end itself any more (it is stopped, or stuck in a driver); the next run on that machine ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smolcluster.errors import RunFailed

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_S = 5.0
"""Nobody else has a reason to hold the lock; a machine that tidies up tries it for a moment."""


class Presence:
    """The pid file of this process. ``uses`` are entries of the working folder that must stay while it runs."""

    def __init__(self, folder: Path, name: str, uses: Sequence[str], silence_limit_s: float) -> None:
        self.name, self.path = name, folder / f"{name}-{os.getpid()}.pid"
        self._content = {
            "pid": os.getpid(),
            "host": platform.node(),
            "node": name,
            "run": folder.name,
            "silence_limit_s": silence_limit_s,
            "uses": list(uses),
        }
        self._lock: BaseFileLock | None = None

    def open(self) -> None:
        """Write the file. RunFailed where that cannot be done."""
        import filelock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.path.with_suffix(".lock"))
            self._lock.acquire(timeout=LOCK_S)
            self.path.write_text(json.dumps(self._content))
        except OSError as error:
            self.close()
            raise RunFailed(f"{self.name}: {self.path} cannot be written: {error.strerror or error}") from None

    def heard(self) -> None:
        """The controller has said something."""
        with contextlib.suppress(OSError):  # a file that is gone, or a disk that is: the node has more to do than this
            os.utime(self.path)

    def close(self) -> None:
        """The node is about to leave."""
        self.path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
        self.path.with_suffix(".lock").unlink(missing_ok=True)
