"""Bytes and means over restarts, and what is not counted at all."""

import io
import re
from typing import Any

from smolcluster.tracking.board import Board
from smolcluster.tracking.console import PlainConsole
from smolcluster.tracking.counts import Traffic
from smolcluster.tracking.live import screen
from smolcluster.tracking.summary import Summary
from smolcluster.tracking.tables import show, summary_table
from smolcluster.tracking.tracker import RunInfo
from tests.tracking.conftest import START

NOBODY = dict.fromkeys(("sent", "received", "uncompressed"))


def test_counts_go_on_over_restarts() -> None:
    traffic = Traffic()
    traffic.see("a", {"sent": 5, "received": 1})
    traffic.restart("a")
    traffic.see("a", {"sent": 2, "received": 1})
    traffic.see("b", {"sent": 1, "received": 1, "uncompressed": 4})
    assert traffic.of("a") == (7, 2)
    assert traffic.total() == {"sent": 8, "received": 3, "uncompressed": 11}


def test_a_part_is_not_taken_for_the_whole() -> None:
    traffic = Traffic()
    traffic.see("a", {"sent": 5, "received": 1})
    traffic.see("b", NOBODY)
    assert traffic.of("a") == (None, None)
    assert traffic.total() == NOBODY


def test_bytes_that_nobody_counts_are_not_shown_as_a_number(run: RunInfo, say: Any, metrics: Any) -> None:
    events = [
        say("mini2", "state", state="training"),
        metrics(1, 2.0, wire=NOBODY, wait_share=None),
        *(say("mini2", "node", after=10.0 + at, step=1, samples=32, wait_share=None, **NOBODY) for at in (1, 2)),
        metrics(2, 2.0, wire=NOBODY, wait_share=None, num_steps=2),
    ]
    summary, board, stream = Summary(run, started=START), Board(run, START), io.StringIO()
    console = PlainConsole(stream, clock=lambda: START)
    console.start(run)
    for event in events:
        summary.on_event(event)
        board.on_event(event)
        console.on_event(event)
    console.stop()
    plain = stream.getvalue()
    assert "step 2/2" in plain
    assert " sent" not in plain
    assert "MB/s" not in plain
    assert board.nodes["mini2"].wire_per_s == (None, None)
    result = summary.result("done", "", now=START + 5)
    assert result["wire_bytes"] == NOBODY
    assert {node["sent"] for node in result["nodes"]} == {None}
    table = io.StringIO()
    show(table, summary_table(result))
    assert re.search(r"wire +not counted \(torch's own sockets\)", table.getvalue())
    assert "waiting" not in table.getvalue().partition("node")[0]


def test_the_live_view_says_so_too(run: RunInfo, metrics: Any) -> None:
    board = Board(run, START)
    board.on_event(metrics(1, 2.0, wire=NOBODY))
    stream = io.StringIO()
    show(stream, screen(board, START + 1, 120, 40))
    assert "wire       not counted (torch's own sockets)" in stream.getvalue()
