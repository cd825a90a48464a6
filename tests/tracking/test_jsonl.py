import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.tracking.jsonl import JsonLines, dumps, read_lines, read_whole, write_whole

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.sets(st.integers()),
    max_leaves=8,
)


def no_constant(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


@given(anything)
def test_every_value_becomes_one_line_of_strict_json(value: object) -> None:
    line = dumps(value)
    assert "\n" not in line
    json.loads(line, parse_constant=no_constant)


def test_what_json_cannot_say_becomes_null_and_the_rest_stays() -> None:
    value = {"loss": float("nan"), "norms": {"a": float("inf"), 3: 1.5}, "step": 7}
    assert json.loads(dumps(value)) == {"loss": None, "norms": {"a": None, "3": 1.5}, "step": 7}


def test_lines_are_added_to_a_file_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.jsonl"
    for step in (1, 2):
        file = JsonLines(path)
        file.write({"step": step})
        assert file.size == path.stat().st_size
        file.close()
    assert read_lines(path) == [{"step": 1}, {"step": 2}]


def test_a_line_cut_short_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1}\n{"step":2,"lo')
    assert read_lines(path) == [{"step": 1}]
    file = JsonLines(path)
    file.write({"step": 3})
    file.close()
    assert read_lines(path) == [{"step": 1}, {"step": 3}]


def test_a_damaged_line_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step":1}\n[1]\n\xff\n\n{"step":2}\n')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    assert [record.getMessage().split("a.jsonl ")[1] for record in caplog.records] == [
        "line 2 is left out: it is no JSON object",
        "line 3 is left out: it is no JSON object",
    ]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []
    assert read_whole(tmp_path / "none.json") is None


KILLED = """
import os, signal, sys
from pathlib import Path
from smolcluster.tracking.jsonl import JsonLines
file = JsonLines(Path(sys.argv[1]))
for step in range(1000):
    file.write({"step": step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [line["step"] for line in read_lines(path)] == list(range(1000))


def test_a_whole_file_is_replaced_at_once_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, {"status": "failed"})
    write_whole(path, {"status": "done", "loss": float("nan")})
    assert read_whole(path) == {"status": "done", "loss": None}
    assert os.listdir(tmp_path) == ["summary.json"]


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, {"status": "done"})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, {"status": "failed"})
    assert read_whole(path) == {"status": "done"}
    assert os.listdir(tmp_path) == ["summary.json"]
