"""What a node says, as people see it in its pane."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.panes.told import Lines, Screen, event_of, lines_of

NOON = time.mktime((2026, 1, 1, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"event": "hello", "pid": 7}, ["started, process 7"]),
        ({"event": "listening", "address": ["10.0.0.1", 4000]}, ["listens on 10.0.0.1:4000"]),
        ({"event": "state", "state": "training", "detail": ""}, ["training"]),
        ({"event": "log", "level": "INFO", "message": "Epoch 1"}, ["Epoch 1"]),
        ({"event": "log", "level": "ERROR", "message": "a", "exception": "b\n  c"}, ["a", "  b", "    c"]),
        ({"event": "link", "peer": "mini1", "up": True}, ["link to mini1 is up"]),
        ({"event": "link", "peer": "mini1", "up": False, "reason": "cut"}, ["link to mini1 is down: cut"]),
        ({"event": "failed", "reason": "no room"}, ["failed: no room"]),
        ({"event": "evaluation", "step": 3, "loss": 0.5}, ["evaluation at step 3: loss 0.5"]),
        ({"event": "node", "step": 3}, []),
        ({"event": "alive", "cpu_s": 1.0}, []),
        ({"event": "something new"}, []),
    ],
)  # fmt: skip
def test_what_is_told(event: Mapping[str, Any], told: list[str]) -> None:
    assert [line.words for line in lines_of(event)] == told


def shown(*events: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(lines, titles) that a screen writes, without colours."""
    source, target = os.pipe()
    screen = Screen(target, "mini2")
    for event in events:
        screen.show(event, NOON)
    os.close(target)
    with os.fdopen(source, "rb") as stream:
        written = stream.read().decode()
    titles = re.findall("\x1b]2;(.*?)\x1b\\\\", written)
    plain = re.sub("\x1b]2;.*?\x1b\\\\|\x1b\\[[0-9;]*m", "", written)
    return plain.split("\r\n")[:-1], titles


def test_a_screen_has_times_and_a_title() -> None:
    states = [{"event": "state", "state": state, "detail": ""} for state in ("training", "saving", "training")]
    lines, titles = shown(
        *states,
        {"event": "node", "step": 1234, "samples_per_s": 50.0, "wait_share": 0.25, "rss_bytes": 2e8},
        {"event": "checkpoint", "step": 3, "path": "checkpoints/step-3"},
        {"event": "metrics", "step": 1235, "num_steps": 2000, "samples_per_s": 60.0},
    )
    assert lines == ["12:00:00 training", "12:00:00 checkpoint at step 3: checkpoints/step-3"]
    assert titles[0] == "mini2"
    assert "mini2 · saving" in titles
    assert "mini2 · training · step 1,234 · 50 samples/s · waits 25 % · 200 MB" in titles
    assert titles[-1] == "mini2 · training · step 1,235/2,000 · 60 samples/s · waits 25 % · 200 MB"


def test_nothing_that_a_node_says_steers_the_terminal() -> None:
    evil = "\x1b]2;owned\x1b\\\x07\x1b[2J\r"
    lines, titles = shown({"event": "log", "message": evil}, {"event": "state", "state": evil, "detail": evil})
    assert len(lines) == 2
    assert not re.search("[\x00-\x1f\x7f]", "".join(lines))
    assert not any("\x1b" in title for title in titles)


@given(st.lists(st.binary(max_size=20)), st.data())
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines)
    taker, found, rest = Lines(), list[bytes](), whole
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        found += taker.take(rest[:size])
        rest = rest[size:]
    assert found == [line.replace(b"\n", b"") for line in lines]


def test_a_line_without_an_end_does_not_fill_the_memory() -> None:
    taker = Lines(limit=100)
    for _ in range(10):
        assert list(taker.take(b"x" * 60)) == []
        assert len(taker._pending) <= 100
    assert list(taker.take(b"rest\nnext\n")) == [b"next"]


def test_what_is_an_event() -> None:
    assert event_of(json.dumps({"event": "state", "state": "x"}).encode()) == {"event": "state", "state": "x"}
    assert event_of(b'{"step": 3}', "metrics") == {"event": "metrics", "step": 3}
    for line in (b"", b"[1]", b"{", b'{"step": 3}', b'{"event": 3}', b"\xff\xfe"):
        assert event_of(line) is None
