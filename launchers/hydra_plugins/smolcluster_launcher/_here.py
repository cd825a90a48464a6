"""The machine of this process, as one of those that are reached."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from hydra_plugins.smolcluster_launcher._reached import Done, HostFailed, OnEnd


class Here:
    """This machine, used as one that is reached by SSH is. What is started here outlives this process."""

    name, shell, connected = "this machine", "posix", True

    async def open(self) -> None:
        return

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        out: Callable[[bytes], object] | None = None,
        silent_s: float = 60.0,
    ) -> Done:
        """Run a command to its end, which must come within ``silent_s``."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe)
        try:
            data, errors = await asyncio.wait_for(process.communicate(b"".join(stdin)), silent_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise HostFailed(f"{self.name}: {' '.join(argv)[:60]} has not ended within {silent_s:g} s") from None
        if out is not None:
            out(data)
        return Done(code=process.returncode or 0, out=b"" if out is not None else data, err=errors)

    async def start(
        self,
        argv: Sequence[str],
        descriptors: tuple[int, int, int],
        on_end: OnEnd,
        *,
        directory: str | None,
        environment: Mapping[str, str],
    ) -> LocalProcess:
        """Start a process in a session of its own whose standard streams are these descriptors."""
        stdin, stdout, stderr = descriptors
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=None if directory is None else os.path.expanduser(directory),
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise HostFailed(f"{self.name}: {argv[0]}: {error.strerror or error}") from None
        for descriptor in descriptors:
            os.close(descriptor)
        return LocalProcess(process, on_end)


class LocalProcess:
    """A process of this machine. A thread waits for its end, and no longer than this process lives."""

    def __init__(self, process: subprocess.Popen[bytes], on_end: OnEnd) -> None:
        self._process, self._on_end, self.pid = process, on_end, process.pid
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, name=f"end of {process.pid}", daemon=True).start()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        return

    def _wait(self) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._on_end, code, "")


def importable() -> list[str]:
    """Where modules are found: a task may be in any of these places."""
    return [str(Path(entry).absolute()) for entry in sys.path]
