import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from smolcluster.data import cache
from smolcluster.data.dataset import Context
from smolcluster.errors import DataError

TWO_AT_ONCE = """
import sys
from pathlib import Path
from smolcluster.data import cache
from smolcluster.data.dataset import Context
def build(folder):
    with open(sys.argv[1] + "/log", "a") as log:
        log.write("built\\n")
    (folder / "a").write_text("x" * 1000000)
context = Context(seq_length=None, seed=0, cache=Path(sys.argv[1]) / "cache", say=print)
print(len((cache.entry("e", [1], context, build) / "a").read_text()))
"""


def test_built_once_and_found_again(context: Context) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "a").write_text("x")

    first = cache.entry("e", ["key", 1], context, build)
    assert cache.entry("e", ["key", 1], context, build) == first
    assert (first / "a").read_text() == "x"
    assert len(built) == 1
    assert cache.entry("e", ["key", 2], context, build) != first
    assert len(built) == 2


def test_a_failed_build_leaves_no_entry(context: Context) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        cache.entry("e", [1], context, fail)
    assert not [path for path in context.cache.iterdir() if path.is_dir()]
    assert cache.entry("e", [1], context, lambda folder: None).is_dir()


def test_what_a_dead_process_left_is_cleared(context: Context) -> None:
    path = cache.entry("e", [1], context, lambda folder: None)
    path.rmdir()
    left = path.with_name(f"{path.name}.part")
    left.mkdir()
    (left / "half").write_text("x")
    again = cache.entry("e", [1], context, lambda folder: (folder / "a").touch())
    assert [file.name for file in again.iterdir()] == ["a"]
    assert not left.exists()


def test_two_processes_build_one_entry(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_AT_ONCE, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["1000000", "1000000"]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_cache_that_cannot_be_written_is_named(context: Context, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = replace(context, cache=tmp_path / "file" / "cache")
    with pytest.raises(DataError, match=r"cannot write to the data cache .*file/cache"):
        cache.entry("e", [1], inside, lambda folder: None)


def test_identity_follows_names_sizes_and_times(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a.txt"
    file.parent.mkdir()
    file.write_text("one")
    before = cache.identity(file.parent)
    assert cache.identity(file.parent) == before
    os.utime(file, ns=(0, 5))
    touched = cache.identity(file.parent)
    assert touched[1] == [["a.txt", 3, 5]]
    (file.parent / "b.txt").write_text("")
    assert len({str(before), str(touched), str(cache.identity(file.parent))}) == 3
    assert cache.identity(tmp_path / "nothing")[1] == []


def test_who_waits_for_another_process_says_so_and_gives_up(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(cache, "WAIT_S", 0.2)
    monkeypatch.setattr(cache, "SAY_S", 0.1)
    said: list[str] = []
    path = cache.entry("e", [1], context, lambda folder: None)
    path.rmdir()
    with (
        filelock.FileLock(f"{path}.lock"),
        pytest.raises(DataError, match=r"another process has been building it for 0\.2 s"),
    ):
        cache.entry("e", [1], replace(context, say=said.append), lambda folder: None)
    assert said == [f"waiting for another process, which prepares {path.name}"] * 2
