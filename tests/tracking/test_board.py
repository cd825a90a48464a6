from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.tracking.board import MAX_POINTS, Board, Curve
from smolcluster.tracking.news import news_of
from smolcluster.tracking.tracker import RunInfo

START = 1_000_000.0


@pytest.fixture
def board(run: RunInfo) -> Board:
    return Board(run, START)


def lines(board: Board) -> list[tuple[str, str, int]]:
    return [(line.news.words, line.news.tone, line.times) for line in board.news]


def test_what_a_story_leaves_on_the_board(board: Board, story: list[dict[str, Any]]) -> None:
    for event in story:
        board.on_event(event)
    mini1, mini2, _ = board.nodes.values()
    assert (board.step, board.num_steps, board.last["loss"]) == (10, 10, 0.2)
    assert (board.validation["step"], board.best["step"]) == (10, 10)
    assert (mini1.links, mini2.links) == ({"mini2": True, "mini3": True}, {"mini1": True})
    assert mini2.wire_per_s == (1000.0, 900.0)
    assert (mini2.state, mini2.step, mini2.wait_share) == ("training", 10, 0.1)
    assert board.traffic.total() == {"sent": 30_000, "received": 27_000, "uncompressed": 60_000}
    assert lines(board) == [
        ("evaluation at step 5: loss 0.5, accuracy 31.25 %", "info", 1),
        ("checkpoint at step 5 (best so far): checkpoints/step-5", "good", 1),
        ("evaluation at step 10: loss 0.25, accuracy 62.50 %", "info", 1),
        ("checkpoint at step 10 (best so far): checkpoints/step-10", "good", 1),
        ("mini3 answered too late at step 10: no answer in 5 s", "warn", 1),
    ]


def test_the_time_left_follows_the_pace_and_runs_on(board: Board, metrics: Any) -> None:
    assert board.seconds_left(START) is None
    for step in (1, 2, 3, 4):
        board.on_event(metrics(step, 1.0))
    assert board.seconds_left(START + 4) == pytest.approx(6.0)
    assert board.seconds_left(START + 6) == pytest.approx(4.0)
    assert board.seconds_left(START + 60) == 0.0


def test_many_steps_a_second_still_make_a_pace(board: Board, say: Any) -> None:
    for step in range(1, 4001):
        board.on_event(say("mini1", "metrics", after=step / 1000, step=step, num_steps=10_000, loss=1.0))
    assert board.seconds_left(START + 4) == pytest.approx(6.0, abs=1.0)


def test_what_comes_again_is_counted_and_leaves_room(board: Board, say: Any) -> None:
    for step in range(20):
        board.on_event(
            say("mini1", "journal", kind="rejected", peer="mini2", step=step, reason="stale", staleness=step)
        )
        board.on_event(say("mini1", "journal", kind="rejected", peer="mini3", step=step, reason="stale"))
    assert lines(board) == [
        ("something that mini2 sent was refused at step 19: stale (staleness 19)", "warn", 20),
        ("something that mini3 sent was refused at step 19: stale", "warn", 20),
    ]


def test_a_lost_node_shows_no_speed_and_is_not_called_silent(
    board: Board, story: list[dict[str, Any]], say: Any
) -> None:
    for event in story:
        board.on_event(event)
    mini3 = board.nodes["mini3"]
    assert mini3.silent_s(START + 20.5) == pytest.approx(10.0)
    board.on_event(say("mini3", "state", after=11.0, state="lost", detail="no heartbeat for 15 s"))
    assert (mini3.wire_per_s, mini3.samples_per_s, mini3.wait_share) == ((None, None), None, None)
    assert mini3.silent_s(START + 99) == 0.0
    assert lines(board)[-1] == ("mini3 lost: no heartbeat for 15 s", "bad", 1)


def test_a_restarted_node_begins_with_no_links_and_keeps_its_bytes(board: Board, story: Any, say: Any) -> None:
    for event in story:
        board.on_event(event)
    board.on_event(say("mini3", "state", after=12.0, state="starting", detail="restart 1 of 3"))
    board.on_event(say("mini3", "node", after=13.0, step=0, sent=5, received=5))
    assert board.nodes["mini3"].links == {}
    assert board.traffic.of("mini3") == (10_005, 9_005)


def test_a_link_that_ends_with_its_node_is_no_news(board: Board, say: Any) -> None:
    down = say("mini1", "link", peer="mini3", up=False, reason="closed")
    assert board.on_event(down) is not None
    board.on_event(say("mini3", "state", state="finished", detail=""))
    assert board.on_event(down) is None


def test_a_node_that_joins_later_gets_a_row(board: Board, say: Any) -> None:
    board.on_event(say("pi5", "state", state="starting", detail=""))
    board.on_event(say("pi5", "ready", hardware={"device": "cpu"}))
    view = board.nodes["pi5"]
    assert (view.info.role, view.host, view.device, view.state) == ("worker", "pi5", "cpu", "starting")


@pytest.mark.parametrize(
    ("kind", "fields", "words", "tone"),
    [
        ("link", {"peer": "mini1", "up": False, "reason": "reset"}, "link mini2 - mini1 is down: reset", "warn"),
        ("log", {"level": "ERROR", "message": "out of\nmemory"}, "mini2: out of memory", "bad"),
        ("state", {"state": "failed", "detail": "\x1b[2Jboom"}, "mini2 failed: ·[2Jboom", "bad"),
        ("journal", {"kind": "joined", "step": 1500, "reason": ""}, "mini2 joined at step 1,500", "good"),
        (
            "journal",
            {"kind": "lost", "step": 3, "reason": "mini2: killed", "samples": 32},
            "others do what mini2 had to do at step 3 (32 samples)",
            "info",
        ),
        ("journal", {"kind": "started", "pid": 17, "joined": 1, "peer": "mini3"}, "mini3 is started (pid 17)", "info"),
        (
            "journal",
            {"kind": "dropped", "step": 3, "samples": 32, "peer": "mini3", "reason": "straggler timeout of 0.1 s"},
            "mini3 was too slow at step 3, its part is left out: straggler timeout of 0.1 s (32 samples)",
            "warn",
        ),
        (
            "journal",
            {"kind": "late", "step": 3, "samples": 32},
            "mini2 answered too late at step 3 (32 samples)",
            "warn",
        ),
        ("journal", {"kind": "resumed", "step": None, "peer": "a/step-5"}, "goes on from a/step-5", "good"),
        ("journal", {"kind": "{odd}", "step": None}, "mini2 (odd)", "warn"),
        (
            "journal",
            {"kind": "view", "members": 1, "reason": "mini3: killed by signal 9"},
            "1 node takes part from now on",
            "info",
        ),
        (
            "journal",
            {"kind": "view", "members": 3, "reason": "all are there"},
            "3 nodes take part: all are there",
            "info",
        ),
        ("journal", {"kind": "killed", "peer": "mini3"}, "mini3 is killed", "bad"),
        ("silent", {"peer": "mini3", "reason": "is silent for 5 s"}, "mini3 is silent for 5 s, says mini2", "warn"),
        ("evaluation", {"step": 4, "loss": float("nan")}, "evaluation at step 4: loss nan", "info"),
    ],
)
def test_news(say: Any, kind: str, fields: dict[str, Any], words: str, tone: str) -> None:
    news = news_of(say("mini2", kind, **fields))
    assert news is not None
    assert (news.words, news.tone) == (words, tone)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("link", {"peer": "mini1", "up": True}),
        ("log", {"level": "WARNING", "message": "hm"}),
        ("state", {"state": "training"}),
        ("node", {"step": 1}),
        ("journal", {"kind": "member", "peer": "mini3"}),
        ("metrics", {"step": 1}),
        ("never heard of", {}),
    ],
)
def test_what_is_no_news(say: Any, kind: str, fields: dict[str, Any]) -> None:
    assert news_of(say("mini2", kind, **fields)) is None


@given(st.integers(0, 3 * MAX_POINTS))
def test_a_curve_of_any_length_keeps_its_shape_in_bounds(count: int) -> None:
    curve = Curve()
    for value in range(count):
        curve.add(float(value))
    assert len(curve.points) < MAX_POINTS
    whole = len(curve.points) * curve.span
    assert count - whole < curve.span
    expected = [i * curve.span + (curve.span - 1) / 2 for i in range(len(curve.points))]
    assert curve.points == pytest.approx(expected)
