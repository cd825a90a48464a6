"""Sent to a machine and run there by whatever Python it has, before anything else.

Hence old-fashioned, without annotations, and with the standard library only. The question is its argument, the answer
one line of JSON on its standard output.
"""

import json
import os
import platform
import shutil
import sys
import time

if sys.version_info < (3, 6):
    sys.exit("%s is Python %s, 3.11 is needed" % (sys.executable, sys.version.split()[0]))
try:
    from importlib import metadata
except ImportError:  # before 3.8
    metadata = None


def version(package):
    try:
        return metadata.version(package)
    except Exception:
        return None


def memory_bytes():
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def cores():
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def probe(request):
    workdir = os.path.abspath(os.path.expanduser(request["workdir"]))
    answer = {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "system": platform.system(),
        "machine": platform.machine(),
        "host": platform.node(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "time": time.time(),
        "workdir": workdir,
        "packages": dict((name, version(name)) for name in request["packages"]),
        "tmux": shutil.which("tmux") or shutil.which("tmux", path=os.pathsep.join(request.get("places", []))),
        "error": "",
    }
    try:
        os.makedirs(workdir, exist_ok=True)
        trial = os.path.join(workdir, ".trial-%d" % os.getpid())
        with open(trial, "w") as file:
            file.write("x")
        os.remove(trial)
        answer["free_bytes"] = shutil.disk_usage(workdir).free
        answer["there"] = [name for name in request["wanted"] if os.path.exists(os.path.join(workdir, name))]
    except OSError as error:
        answer["error"] = "%s: %s" % (workdir, error.strerror or error)
    return answer


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(json.loads(sys.argv[1]))) + "\n")
