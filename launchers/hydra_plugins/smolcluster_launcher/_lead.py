"""``python -m hydra_plugins.smolcluster_launcher._lead``: the process of one job. Started by the launcher.

Its stdin brings one line with the job, and later perhaps the wish to stop; the end of stdin is that wish, too. Its
stdout takes the job's return back. What the job prints goes to stderr.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
import sys
import threading
from typing import Any

from hydra_plugins.smolcluster_launcher import NO_DESK

from smolcluster.node.control import Events, split_streams


def main() -> None:
    commands, events = split_streams()
    report = Events(events)
    report("hello", pid=os.getpid())
    lines = os.fdopen(commands, "rb")
    parcel = _read(lines)
    if parcel is None:
        os._exit(1)
    threading.Thread(target=_watch, args=(lines,), daemon=True).start()
    code = 0
    try:
        returned = _run(parcel)
        report("returned", parcel=base64.b64encode(_packed(returned)).decode())
    except KeyboardInterrupt:
        code = 130
    report.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read(lines: Any) -> bytes | None:
    import json

    line = lines.readline()
    return base64.b64decode(json.loads(line)["parcel"]) if line.endswith(b"\n") else None


def _watch(lines: Any) -> None:
    """Interrupt the job when the launcher wishes so, or is gone."""
    lines.readline()
    os.kill(os.getpid(), signal.SIGINT)


def _run(parcel: bytes) -> Any:
    import cloudpickle
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from hydra_plugins.smolcluster_launcher._tmux import windows

    from smolcluster.cluster.session import opener

    desk = None if sys.argv[1] == NO_DESK else socket.socket(fileno=int(sys.argv[1]))
    setup_globals()
    outer = cloudpickle.loads(parcel)
    sys.path[:] = outer["path"]
    job = cloudpickle.loads(outer["job"])
    options = job["config"].hydra.launcher
    opener.set(_opener(desk, options))
    Singleton.set_state(job["singletons"])
    HydraConfig.instance().set_config(job["config"])
    with windows(wanted=options.tmux and desk is not None):  # on a machine where nobody sits, nobody would see it
        return run_job(
            hydra_context=job["context"],
            task_function=job["task"],
            config=job["config"],
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def _opener(desk: socket.socket | None, options: Any) -> Any:
    """How runs of this job start nodes elsewhere: through the launcher's desk, or over connections of its own."""
    from hydra_plugins.smolcluster_launcher._core import machine_options
    from hydra_plugins.smolcluster_launcher._desk import DeskSessions
    from hydra_plugins.smolcluster_launcher._session import ClusterSessions
    from hydra_plugins.smolcluster_launcher._ssh import Machines
    from hydra_plugins.smolcluster_launcher._tmux import nodes_here

    machines = Machines(options.connect_timeout_s)

    def make(spec: Any, threads: int) -> Any:
        local = nodes_here(threads, in_tmux=options.tmux)
        if spec.cluster.is_local:
            return local
        if desk is not None:
            return DeskSessions(spec, desk, local)
        return ClusterSessions(spec, machine_options(options), machines, local)

    return make


def _packed(returned: Any) -> bytes:
    """The job's return; an error that cannot be pickled is replaced by its words."""
    import cloudpickle

    try:
        packed = cloudpickle.dumps(returned)
    except Exception:  # noqa: BLE001  (whatever a user's error holds)
        error = returned._return_value
        returned._return_value = RuntimeError(f"{type(error).__name__}: {error}")
        packed = cloudpickle.dumps(returned)
    return bytes(packed)


if __name__ == "__main__":
    main()
