"""SyncPS's server, message by message: deaths, stragglers, lies, and who is sent which weights."""

from __future__ import annotations

import pytest
import torch

from smolcluster.aggregator.mean import Mean
from smolcluster.algo.syncps import Server, SyncPS
from smolcluster.data.order import Course, unflatten
from smolcluster.errors import RunFailed
from smolcluster.messages import Join, Update, Work
from smolcluster.ports import AlgorithmState, Member, Received, Span
from tests.algo.scripted import Script, Table, Vector, worker

W0, W1, W2 = worker(0), worker(1), worker(2)
COURSE = Course(num_samples=12, global_batch=6, epochs=100)


def server(state: AlgorithmState | None = None, **config: object) -> Server:
    return Server(SyncPS(**config), COURSE, Mean(), state)  # type: ignore[arg-type]


def join(member: Member) -> Received:
    return Received(member, Join(fingerprint="same"))


def update(
    table: Table, member: Member, numbers: tuple[float, float] = (1.0, 1.0), nth: int = -1, **other: object
) -> Received:
    """A worker's honest answer to what it was last asked, but for ``other``."""
    work = table.said(member.name, Work)[nth]
    held = [each.version for each in table.said(member.name, Work) if each.parameters is not None][-1]
    size = sum(span.size for span in unflatten(work.spans))
    told = {
        "step": work.step, "version": held, "spans": work.spans, "num_samples": size, "num_items": size, "loss": 0.5,
        "compute_s": 0.1, "wait_s": 0.1, "gradient": torch.tensor(numbers, dtype=torch.float64), **other,
    }  # fmt: skip
    return Received(member, Update(**told))  # type: ignore[arg-type]


def test_a_dead_workers_span_is_done_again_in_the_same_step() -> None:
    table, learner = Table([W0, W1, W2]), Vector()

    def script() -> Script:
        for member in (W0, W1, W2):
            yield join(member)
        yield update(table, W0, (2.0, 0.0))
        yield table.change(W0, W1)
        again = [work for name in ("worker0", "worker1") for work in table.said(name, Work)[1:]]
        assert [work.step for work in again] == [0, 0]
        assert [unflatten(work.spans) for work in again] == [[Span(0, 4, 5)], [Span(0, 5, 6)]]
        assert [work.parameters for work in again] == [None, None], "at the same weights"
        yield update(table, W1, (4.0, 0.0), nth=0)
        yield update(table, W1, (0.0, 6.0))
        yield update(table, W0, (0.0, 6.0))

    table.play(server(), learner, script())
    assert learner.applied == [([pytest.approx(2.0), pytest.approx(2.0)], 1.0)], "2/6 of each, of six samples"
    assert table.steps[0].num_samples == 6


def test_doing_again_is_not_being_late() -> None:
    """The straggler's clock starts anew when the dead worker's share is handed out."""
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        for member in (W0, W1):
            yield join(member)
        yield update(table, W0)
        table.time = 0.9
        yield table.change(W0)
        table.time = 5.0
        yield update(table, W0)

    table.play(server(timeout=1.0), learner, script())
    assert table.steps[0].num_samples == 6
    assert table.journal("dropped") == []


def test_a_straggler_is_left_alone_and_comes_back_with_the_weights() -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        for member in (W0, W1):
            yield join(member)
        yield update(table, W0)
        yield None  # the straggler timeout
        yield update(table, W0)
        assert len(table.said("worker1", Work)) == 1, "it still owes an answer"
        yield update(table, W1)  # to step 0, late
        yield update(table, W0)

    role = server(timeout=1.0)
    table.play(role, learner, script())
    assert [event["samples"] for event in table.journal("dropped")] == [3]
    assert role.counts["late/worker1"] == 1
    back = table.said("worker1", Work)[-1]
    assert back.parameters is not None
    assert back.parameters.tolist() == learner.theta.tolist()
    assert back.blend == 1.0


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"step": 1}, "does not match what was asked for"),
        ({"version": 1}, "does not match what was asked for"),
        ({"num_samples": 4}, "does not match what was asked for"),
        ({"spans": (0, 3, 6)}, "does not match what was asked for"),
        ({"spans": (0, 0, 3, 0, 0, 3), "num_samples": 6}, "does not match what was asked for"),
        ({"spans": ()}, "does not match what was asked for"),
        ({"num_items": 4}, "impossible number of items"),
        ({"num_items": -1}, "impossible number of items"),
        ({"loss": float("nan")}, "not finite"),
        ({"gradient": torch.tensor([float("nan"), 0.0])}, "not finite"),
        ({"compute_s": float("inf")}, "impossible times"),
    ],
    ids=str,
)
def test_a_lie_changes_nothing_but_its_count(lie: dict[str, object], reason: str) -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        for member in (W0, W1):
            yield join(member)
        yield update(table, W0, **lie)

    role = server()
    table.play(role, learner, script())
    assert learner.version == 0
    assert [event["reason"] for event in table.journal("refused")] == [reason]
    assert role.counts == {"refused/worker0": 1}


def test_a_refused_gradient_is_none_of_a_quorum() -> None:
    table, learner = Table([W0, W1, W2]), Vector()

    def script() -> Script:
        for member in (W0, W1, W2):
            yield join(member)
        yield update(table, W0, (float("nan"), 0.0))
        yield update(table, W1)
        yield None  # the straggler timeout: one usable gradient, two are wanted
        assert learner.version == 0
        yield update(table, W2)

    table.play(server(timeout=1.0, quorum=2), learner, script())
    assert learner.version == 1
    assert table.steps[0].details["workers"] == 2
    assert table.steps[0].num_samples == 4


def test_no_work_for_a_successor_that_has_not_joined() -> None:
    """The view changes while the server commits; it hears of it in the next step."""
    table, learner = Table([W0, W1]), Vector()
    again = worker(1, joined=2)

    def script() -> Script:
        for member in (W0, W1):
            yield join(member)
        yield update(table, W0)
        changed = table.change(W0, again)
        yield update(table, W1)  # the old one's last word
        assert len(table.said("worker1", Work)) == 1
        assert unflatten(table.said("worker0", Work)[-1].spans) == [Span(0, 6, 12)]
        yield changed
        yield join(again)
        yield update(table, W0)

    table.play(server(), learner, script())
    assert learner.version == 2
    assert table.said("worker1", Work)[1].parameters is not None


def test_a_long_evaluation_is_nobodys_lateness() -> None:
    table, learner = Table([W0], commit_s=5000.0), Vector()

    def script() -> Script:
        yield join(W0)
        for _ in range(4):
            yield update(table, W0)

    table.play(server(), learner, script())
    assert learner.version == 4


def test_a_step_that_is_never_complete_ends_the_run_and_names_who_is_missing() -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        for member in (W0, W1):
            yield join(member)
        yield update(table, W0)
        yield None

    with pytest.raises(RunFailed, match="step 0: not complete after 600 s; missing: worker1"):
        table.play(server(), learner, script())


def test_who_joins_takes_over_the_blend_that_the_others_hold() -> None:
    """K = 2, alpha = 1/2: at step 2 the others hold (theta_2 + 0) / 2, and so does who joins in step 3."""
    table, learner = Table([W0]), Vector()

    def script() -> Script:
        yield join(W0)
        for _ in range(3):
            yield update(table, W0)
        yield table.change(W0, W1)
        yield join(W1)
        yield update(table, W0)

    role = server(worker_update_interval=2, polyak_alpha=0.5)
    table.play(role, learner, script())
    assert [work.parameters is not None for work in table.said("worker0", Work)] == [True, False, True, False, True]
    first = table.said("worker1", Work)[0]
    theta_4 = [-4.0, -4.0]
    assert learner.theta.tolist() == theta_4
    assert first.parameters is not None
    assert first.parameters.tolist() == [(-2.0 / 2 - 4.0) / 2] * 2, "blended again in step 4, when it joins the step"
    assert first.blend == 1.0


def test_running_statistics_travel_in_every_step() -> None:
    table, learner = Table([W0]), Vector(statistics=True)

    def script() -> Script:
        yield join(W0)
        for number in range(3):
            yield update(table, W0, buffers=torch.full((1,), float(number + 1), dtype=torch.float64))

    table.play(server(worker_update_interval=10), learner, script())
    works = table.said("worker0", Work)
    assert [work.parameters is not None for work in works] == [True, False, False, False]
    assert [None if work.buffers is None else work.buffers.tolist() for work in works] == [[0.0], [1.0], [2.0], [3.0]]


def test_parts_of_one_worker_do_not_use_up_receive_buffers() -> None:
    """Of its second part in a step nothing stays in the memory that it came in, running statistics included."""
    table, learner = Table([W0, W1]), Vector(statistics=True)
    memory = [torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)]

    def script() -> Script:
        for member in (W0, W1):
            yield join(member)
        yield update(table, W0, buffers=torch.ones(1, dtype=torch.float64))
        yield table.change(W0, W2)
        yield update(table, W0, gradient=memory[0], buffers=memory[1])
        for tensor in memory:
            tensor.fill_(9.0)
        yield join(W2)

    role = server()
    table.play(role, learner, script())
    assert learner.applied == [([1.0, 1.0], 1.0)]
    assert learner.statistics is not None
    assert learner.statistics.tolist() == [1.0]


def test_the_servers_own_share_is_computed_after_the_commit() -> None:
    """So a stop inside its own gradient finds weights and checkpoint of the same step."""
    table, learner = Table([W0]), Vector()
    seen: list[tuple[int, int]] = []
    gradient = learner.gradient

    async def noting(spans: list[Span], *, step: int, rank: int) -> object:
        seen.append((learner.version, len(table.steps)))
        return await gradient(spans, step=step, rank=rank)

    learner.gradient = noting  # type: ignore[method-assign, assignment]

    def script() -> Script:
        yield join(W0)
        for _ in range(3):
            own = [message for name, message in table.sent if name == "server"]
            yield Received(table.me, own[-1])
            yield update(table, W0)

    table.play(server(server_trains=True), learner, script())
    assert seen
    assert all(version == committed for version, committed in seen)
