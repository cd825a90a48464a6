from collections.abc import Callable
from pathlib import Path

import pytest

from smolcluster.data.dataset import Context


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(seq_length=16, seed=0, cache=tmp_path / "cache", say=lambda line: None)


@pytest.fixture
def write() -> Callable[..., None]:
    """Writes a parquet file with the given columns: a small data set in the layout of the hub."""
    import pyarrow as pa
    from pyarrow import parquet

    def run(path: Path, **columns: list[object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), path)

    return run


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub does not answer, whatever network there is."""
    monkeypatch.setattr("smolcluster.data.hub._ask", lambda: "https://huggingface.co: ConnectError: no route")
