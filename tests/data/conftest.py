from pathlib import Path

import pytest
from smolcluster.data.dataset import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(seq_length=16, seed=0, cache=tmp_path / "cache", say=lambda line: None)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub does not answer, whatever network there is."""
    monkeypatch.setattr("smolcluster.data.hub._ask", lambda: "https://huggingface.co: ConnectError: no route")
