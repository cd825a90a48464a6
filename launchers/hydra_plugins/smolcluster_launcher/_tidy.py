"""Sent to a machine and run there: ends what an earlier run has left, and removes what nobody needs any more.

As ``_probe.py``: old-fashioned, with the standard library only. The request is its argument, the answer one line of
JSON. Nothing that a process of smolcluster uses at the moment is touched: such a process holds a lock beside its pid
file (``smolcluster/node/presence.py``), and the pid file says what it uses.
"""

import json
import os
import platform
import shutil
import signal
import sys
import time

MARGIN_S = 30.0  # a node that has heard nothing for its silence limit needs some time to save and leave
PART_S = 86400.0  # half of a bundle that is older than a day comes from a transfer that was cut
KINDS = ("code", "files", "env")


def is_locked(path):
    """Whether a living process holds the lock in that file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


def present(workdir):
    """The nodes that run there: what their pid files say, and for how long each has heard nothing."""
    found = []
    runs = os.path.join(workdir, "runs")
    for run in sorted(os.listdir(runs)) if os.path.isdir(runs) else []:
        folder = os.path.join(runs, run)
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            path = os.path.join(folder, name)
            if not name.endswith(".pid"):
                continue
            try:
                with open(path) as file:
                    node = json.load(file)
                node["silent_s"] = time.time() - os.path.getmtime(path)
            except (OSError, ValueError):
                continue  # it is being written, or being removed
            if is_locked(path[: -len(".pid")] + ".lock"):
                found.append(node)
    return found


def end(nodes):
    """End the nodes that should have ended themselves; returns them."""
    ended = []
    for node in nodes:
        late = node["silent_s"] > node["silence_limit_s"] + MARGIN_S
        if late and node["host"] == platform.node() and node["pid"] != os.getpid():
            try:
                os.kill(node["pid"], getattr(signal, "SIGKILL", signal.SIGTERM))  # on Windows that ends it at once
            except OSError as error:
                node["error"] = error.strerror or str(error)
            ended.append(node)
    return ended


def prune(workdir, used, keep_s):
    """Remove what was not used for ``keep_s``; returns how many entries."""
    count, now = 0, time.time()
    for kind in KINDS:
        root = os.path.join(workdir, kind)
        for name in os.listdir(root) if os.path.isdir(root) else []:
            path = os.path.join(root, name)
            try:
                age = now - os.path.getmtime(path)
            except OSError:
                continue  # somebody else was quicker
            limit = min(PART_S, keep_s) if ".part-" in name else keep_s
            if kind + "/" + name not in used and age > limit:
                shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.remove(path)
                count += 1
    return count


def begin(request):
    """Before a run: what it ``uses`` is marked as used, so that it stays."""
    workdir = request["workdir"]
    nodes = present(workdir)
    ended = end(nodes)
    used = set(request["uses"])
    for node in nodes:
        used.update(node["uses"])
    for name in request["uses"]:
        if os.path.isdir(os.path.join(workdir, name)):
            os.utime(os.path.join(workdir, name))
    removed = prune(workdir, used, request["keep_s"])
    there = [name for name in request["uses"] if os.path.isdir(os.path.join(workdir, name))]
    return {"ended": ended, "removed": removed, "there": there, "free_bytes": shutil.disk_usage(workdir).free}


def finish(request):
    """After a run: its folder goes, unless it has what was not fetched; returns why it stays."""
    folder = os.path.join(request["workdir"], "runs", request["run"])
    if not os.path.isdir(folder):
        return {"kept": ""}
    for node in present(request["workdir"]):
        if node["run"] == request["run"]:
            return {"kept": "its node %s (pid %d) still runs" % (node["node"], node["pid"])}
    saved = [name for name in ("checkpoints", "export") if os.path.isdir(os.path.join(folder, name))]
    if saved and not request["fetched"]:
        return {"kept": "its %s could not be fetched" % " and ".join(saved)}
    shutil.rmtree(folder, ignore_errors=True)
    return {"kept": "it cannot be removed" if os.path.isdir(folder) else ""}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps((begin if asked["do"] == "begin" else finish)(asked)) + "\n")
