"""What the controller decides when nodes come, fail, hang and end: tables of events and actions, no process."""

from __future__ import annotations

import pytest

from smolcluster.cluster.session import ending
from smolcluster.cluster.supervision import (
    EndRun,
    KillNode,
    Phase,
    PublishView,
    Rules,
    StartNode,
    Supervisor,
)
from smolcluster.ports import Member

SERVER = Member(name="server", role="server", rank=0)
WORKERS = [Member(name=f"worker{rank}", role="worker", rank=rank) for rank in range(2)]


def running(survives: bool = True, restarts: int = 1, least: int = 1) -> Supervisor:
    """A supervisor whose nodes are all there."""
    rules = Rules(survives_workers=survives, max_restarts=restarts, min_workers=least, start_timeout_s=10, silence_s=5)
    supervisor = Supervisor([SERVER, *WORKERS], rules)
    assert supervisor.begin(0.0) == [StartNode(name=m.name, joined=1) for m in (SERVER, *WORKERS)]
    for port, name in enumerate(("server", "worker0", "worker1"), 1):
        assert supervisor.listening(name, ["h", port]) == []
    assert supervisor.built("server") == []
    assert supervisor.built("worker1") == []
    (view,) = supervisor.built("worker0")
    assert isinstance(view, PublishView)
    assert (view.view.generation, len(view.view.members), view.addresses["worker1"]) == (1, 3, ["h", 3])
    return supervisor


def test_a_guest_joins_as_a_new_member_and_is_not_started_again() -> None:
    supervisor = running()
    guest = Member(name="guest1", role="worker", rank=2)
    assert supervisor.admit(guest, 5.0) == [StartNode(name="guest1", joined=2)]
    assert supervisor.listening("guest1", ["g", 1]) == []
    (view,) = supervisor.built("guest1")
    assert isinstance(view, PublishView)
    assert (view.reason, view.view.generation, len(view.view.members)) == ("guest1 has joined", 3, 4)
    member = view.view.get("guest1")
    assert member is not None
    assert (member.rank, member.joined) == (2, 2)
    assert supervisor.loss("guest1", "killed") == "killed"
    (gone,) = supervisor.exited("guest1", -9, 6.0)
    assert isinstance(gone, PublishView)
    assert len(gone.view.members) == 3


def test_a_worker_that_dies_is_lost_and_started_again_as_a_new_member() -> None:
    supervisor = running()
    assert supervisor.loss("worker1", ending(-9)) == "killed by signal 9 (SIGKILL)"
    lost, start = supervisor.exited("worker1", -9, 5.0)
    assert isinstance(lost, PublishView)
    assert lost.reason == "worker1: killed by signal 9 (SIGKILL)"
    assert [m.name for m in lost.view.members] == ["server", "worker0"]
    assert lost.view.generation == 2
    assert start == StartNode(name="worker1", joined=3)
    assert supervisor.listening("worker1", ["h", 9]) == []
    (back,) = supervisor.built("worker1")
    assert isinstance(back, PublishView)
    assert back.view.generation == 4
    member = back.view.get("worker1")
    assert member is not None
    assert member.joined == 3
    assert (
        supervisor.loss("worker1", "ended with exit code 1")
        == "ended with exit code 1; it is not started again (cluster.max_restarts=1)"
    )
    (gone,) = supervisor.exited("worker1", 1, 6.0)
    assert isinstance(gone, PublishView), "no restart is left, the run goes on with the other"


def test_too_few_workers_end_the_run() -> None:
    supervisor = running(restarts=0, least=2)
    (end,) = supervisor.exited("worker0", -9, 1.0)
    assert isinstance(end, EndRun)
    assert end.status == "failed"
    assert end.reason.endswith("killed by signal 9 (SIGKILL); 1 worker is left, 2 needed")
    assert supervisor.exited("server", 1, 2.0) == [], "what follows from the end is not a new cause"


@pytest.mark.parametrize(("survives", "who"), [(True, "server"), (False, "worker0")])
def test_who_cannot_be_missed_ends_the_run(survives: bool, who: str) -> None:
    supervisor = running(survives=survives)
    supervisor.failed(who, "out of memory")
    (end,) = supervisor.exited(who, 1, 1.0)
    assert isinstance(end, EndRun)
    assert end.reason.endswith("out of memory"), "its own last words are the reason"


def test_only_the_servers_word_on_a_worker_counts() -> None:
    supervisor = running()
    assert supervisor.silent("worker0", "server", "is silent") == []
    assert supervisor.silent("worker0", "worker1", "is silent") == []
    assert supervisor.silent("server", "nobody", "is silent") == []
    (kill,) = supervisor.silent("server", "worker1", "gives no sign of life for 4.1 s")
    assert kill == KillNode(name="worker1", reason="server says: worker1 gives no sign of life for 4.1 s")
    lost, _ = supervisor.exited("worker1", -9, 1.0)
    assert isinstance(lost, PublishView)
    assert lost.reason.endswith("gives no sign of life for 4.1 s")


def test_a_node_that_does_not_start_in_time_is_killed_once() -> None:
    rules = Rules(survives_workers=True, max_restarts=0, min_workers=1, start_timeout_s=10, silence_s=5)
    supervisor = Supervisor([SERVER, *WORKERS], rules)
    supervisor.begin(0.0)
    for name in ("server", "worker0"):
        supervisor.listening(name, ["h", 1])
        supervisor.built(name)
    assert supervisor.tick(9.9) == []
    assert supervisor.tick(10.0) == [
        KillNode(name="worker1", reason="not ready within 10 s (cluster.start_timeout_s) and was killed")
    ]
    assert supervisor.tick(10.2) == []
    (view,) = supervisor.exited("worker1", -9, 10.3)
    assert isinstance(view, PublishView), "the others begin without it"
    assert [m.name for m in view.view.members] == ["server", "worker0"]


def test_a_node_that_hangs_is_killed_and_named() -> None:
    supervisor = running()
    supervisor.tick(0.0)
    for tick in range(1, 25):
        supervisor.heard("worker0")
        supervisor.heard("worker1")
        assert supervisor.tick(tick * 0.2) == []
    supervisor.heard("worker0")
    supervisor.heard("worker1")
    (kill,) = supervisor.tick(5.0)
    assert kill == KillNode(name="server", reason="has reported nothing for 5.0 s and was killed")
    assert supervisor.tick(5.2) == [], "once"
    (end,) = supervisor.exited("server", -9, 5.3)
    assert isinstance(end, EndRun)
    assert end.reason == "server: has reported nothing for 5.0 s and was killed"


def test_a_controller_that_slept_blames_nobody() -> None:
    supervisor = running()
    supervisor.tick(0.0)
    assert supervisor.tick(3600.0) == []


def test_the_end() -> None:
    supervisor = running()
    supervisor.finished("worker0", 1.0)
    assert supervisor.exited("worker0", 0, 1.1) == []
    supervisor.exited("worker1", -9, 1.2)
    assert supervisor.finished("server", 2.0) == [KillNode(name="worker1", reason="the run is over")]
    (end,) = supervisor.exited("worker1", -9, 2.1)
    assert end == EndRun(status="done", reason="")
    assert supervisor.exited("server", 0, 2.2) == []


def test_who_does_not_leave_in_time_is_killed() -> None:
    supervisor = running()
    supervisor.finished("server", 1.0)
    assert supervisor.exited("server", 0, 1.1) == []
    assert supervisor.tick(5.9) == []
    names = {action.name for action in supervisor.tick(6.0) if isinstance(action, KillNode)}
    assert names == {"worker0", "worker1"}
    supervisor.exited("worker0", -9, 6.1)
    assert supervisor.exited("worker1", -9, 6.1) == [EndRun(status="done", reason="")]
    assert supervisor.nodes["worker0"].phase is Phase.GONE


def test_endings_in_words() -> None:
    assert ending(-9) == "killed by signal 9 (SIGKILL)"
    assert ending(3) == "ended with exit code 3"
    assert ending(-77) == "killed by signal 77"


def test_a_build_that_gets_on_is_never_cut_and_one_that_stands_still_is() -> None:
    """start_timeout_s is 10 here, so that a tenth of a second of computing counts as getting on."""
    rules = Rules(survives_workers=True, max_restarts=0, min_workers=1, start_timeout_s=10, silence_s=5)
    supervisor = Supervisor([SERVER, *WORKERS], rules)
    supervisor.begin(0.0)
    for member in (SERVER, *WORKERS):
        supervisor.listening(member.name, ["h", 1])
    supervisor.built("server")
    seconds = 0.0
    supervisor.tick(0.0)
    for second in range(1, 300):
        for member in (SERVER, *WORKERS):
            supervisor.heard(member.name)
        seconds += 0.02  # of the processor's time: a download
        supervisor.computed("worker0", seconds)
        if second % 9 == 0:
            supervisor.got_on("worker1")
        assert supervisor.tick(float(second)) == []
    for second in range(300, 310):
        for member in (SERVER, *WORKERS):
            supervisor.heard(member.name)
        supervisor.got_on("worker0")
        supervisor.computed("worker1", 0.005 * (second - 299))
        killed = supervisor.tick(float(second))
        if killed:
            break
    assert second in (306, 307), "ten seconds after it last told of something new"
    reason = "building the model and the data has not got on for 10 s (cluster.start_timeout_s) and was killed"
    assert killed == [KillNode(name="worker1", reason=reason)]
    assert supervisor.exited("worker1", -9, 310.0) == [], "the other worker builds still"
    (view,) = supervisor.built("worker0")
    assert isinstance(view, PublishView)
    assert [member.name for member in view.view.members] == ["server", "worker0"]


def test_a_node_that_is_started_again_has_its_time_to_build() -> None:
    supervisor = running()
    supervisor.computed("worker1", 100.0)
    supervisor.exited("worker1", -9, 5.0)
    state = supervisor.nodes["worker1"]
    assert (state.phase, state.built, state.computed_s, state.restarts) == (Phase.STARTING, False, 0.0, 1)
    assert state.deadline == 15.0
    supervisor.listening("worker1", ["h", 9])
    (view,) = supervisor.exited("worker0", -9, 6.0)[:1]
    assert isinstance(view, PublishView)
    assert [member.name for member in view.view.members] == ["server"], "who builds does not take part yet"


def test_what_would_only_happen_again_ends_the_run_at_once() -> None:
    supervisor = running()
    (end,) = supervisor.failed("worker1", "data.path=/x: no such folder", final=True)
    assert end == EndRun(status="failed", reason="worker1: data.path=/x: no such folder")
    assert supervisor.failed("worker0", "data.path=/x: no such folder", final=True) == [], "one cause"
    assert supervisor.exited("worker1", 1, 1.0) == []


def test_a_run_that_is_over_cannot_fail_any_more() -> None:
    supervisor = running()
    supervisor.finished("server", 1.0)
    assert supervisor.failed("worker1", "too late", final=True) == []
