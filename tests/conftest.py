"""What all tests share: a private cache, torch's process-wide settings put back, and no thread left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("LOG_LEVEL", None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, since a test on hosts waits half of its time for something to be noticed; four at
    most, since each may be a cluster of its own."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data of tests stays out of the user's cache, and is made once per test session."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def private_tmux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests have a tmux server of their own, and are in nobody's session."""
    before = {name: os.environ.pop(name, None) for name in ("TMUX", "TMUX_PANE", "TMUX_TMPDIR")}
    os.environ["TMUX_TMPDIR"] = str(tmp_path_factory.mktemp("tmux"))
    yield
    os.environ.update({name: value for name, value in before.items() if value is not None})


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """Put back what a node sets for its whole process."""
    import torch

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """Every thread that a test starts has ended a moment after it."""
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 5
    foreign = ("tqdm_monitor",)  # of a library, one for the process, and meant to stay
    while left := [t for t in threading.enumerate() if t not in before and t.name not in foreign]:
        if time.monotonic() >= until:
            break
        left[0].join(0.05)
    assert not left, f"threads left behind: {[t.name for t in left]}"


@pytest.fixture(scope="session")
def shared_data() -> Path | None:
    """Real data beside the checkout, where there is any."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None
