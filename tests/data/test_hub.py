import socket
import time
from pathlib import Path

import pytest

from smolcluster.data import hub
from smolcluster.data.dataset import Context
from smolcluster.errors import DataError


def flags() -> tuple[bool, bool]:
    import datasets.config
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_hub")
def test_out_of_reach_means_the_libraries_own_caches_only() -> None:
    before = flags()
    assert hub.load(flags, what="x", instead="y") == (True, True)
    assert flags() == before


@pytest.mark.usefixtures("no_hub")
def test_what_is_local_asks_nobody() -> None:
    assert hub.load(flags, what="x", instead="y", local=True) == flags()


def test_within_reach_the_libraries_do_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_ask", lambda: "")
    assert hub.load(flags, what="x", instead="y") == flags()

    def fail() -> None:
        raise ValueError("first line\nsecond line")

    with pytest.raises(DataError) as caught:
        hub.load(fail, what="data=x", instead="data=y")
    assert str(caught.value) == "data=x: cannot be loaded (ValueError: first line); choose data=y"


@pytest.mark.usefixtures("no_hub")
def test_the_flags_are_put_back_after_a_failure() -> None:
    before = flags()
    with pytest.raises(DataError):
        hub.load(lambda: 1 / 0, what="x", instead="y")
    assert flags() == before


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # bound and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{bound.getsockname()[1]}")
        start = time.monotonic()
        assert "ConnectError" in hub.unreachable()
        assert time.monotonic() - start < 5


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "DEADLINE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert hub.unreachable()
        assert time.monotonic() - start < 5


@pytest.mark.usefixtures("no_hub")
def test_the_whole_failure_is_one_line_within_seconds(context: Context) -> None:
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        hub.splits("nobody/nothing", option="mnist", columns={"train": ["image"]}, context=context)
    assert time.monotonic() - start < 15
    assert str(caught.value) == (
        "data=mnist (nobody/nothing): cannot be loaded (the hub is out of reach, https://huggingface.co: "
        "ConnectError: no route); choose data.path=<local copy>, or data=digits, data=pydocs, or data=text "
        "data.path=<file>"
    )


def test_a_path_that_is_not_there(context: Context, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path=.*nowhere: no such folder; choose a local copy of a/b"):
        hub.splits("a/b", option="mnist", columns={}, context=context, path=str(tmp_path / "nowhere"))
