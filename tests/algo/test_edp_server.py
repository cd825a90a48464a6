"""EDP's server, message by message: the formula of its step, and what it does about who is late, lies or leaves."""

from __future__ import annotations

import pytest
import torch

from smolcluster.aggregator.mean import Mean
from smolcluster.algo.edp import EDP, Server
from smolcluster.data.order import Course
from smolcluster.errors import RunFailed
from smolcluster.messages import Finish, Grant, Join, Params, Pull, Push
from smolcluster.ports import AlgorithmState, Member, Received, Span
from tests.algo.scripted import Script, Table, Vector, worker

W0, W1 = worker(0), worker(1)
COURSE = Course(num_samples=12, global_batch=2, epochs=1)


def server(state: AlgorithmState | None = None, **config: object) -> Server:
    return Server(EDP(**config), COURSE, Mean(), state)  # type: ignore[arg-type]


def join(member: Member) -> Received:
    return Received(member, Join(fingerprint="same"))


def push(
    member: Member, lease: int, version: int, gradient: tuple[float, float] = (1.0, 1.0), **other: object
) -> Received:
    told = {"num_samples": 2, "num_items": 2, "loss": 0.5, "compute_s": 0.1, "wait_s": 0.1, **other}
    flat = torch.tensor(gradient, dtype=torch.float64)
    return Received(member, Push(lease=lease, version=version, gradient=flat, **told))  # type: ignore[arg-type]


def test_the_step_is_the_formula() -> None:
    """G = sum n phi g / sum n phi and eta sum n phi / sum n, with phi = 1 / (1 + s), worked out by hand."""
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        yield join(W0)
        yield join(W1)
        yield push(W0, 0, 0)
        yield push(W0, 1, 0)
        yield push(W0, 4, 1, (3.0, 0.0))  # s = 0, n = 2
        yield push(W1, 2, 0, (0.0, 6.0), num_items=1)  # s = 1, n = 1

    table.play(server(staleness_scaling="inverse", gradient_accumulation_size=2), learner, script())
    assert learner.applied[0] == ([1.0, 1.0], 1.0)
    gradient, lr_scale = learner.applied[1]
    assert gradient == pytest.approx([2 * 3.0 / 2.5, 0.5 * 6.0 / 2.5], rel=1e-12)
    assert lr_scale == pytest.approx(2.5 / 3, rel=1e-12)
    assert table.steps[1].details["staleness"] == {"mean": 0.5, "max": 1, "histogram": {"0": 3, "1": 1}}


def test_without_scaling_old_gradients_count_fully() -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        yield join(W0)
        yield join(W1)
        yield push(W0, 0, 0)
        yield push(W1, 2, 0, (0.0, 6.0))

    table.play(server(), learner, script())
    assert learner.applied == [([1.0, 1.0], 1.0), ([0.0, 6.0], 1.0)]


def test_who_is_too_old_gets_the_weights_and_the_batch_is_consumed() -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        yield join(W0)
        yield join(W1)
        yield push(W0, 0, 0)
        yield push(W1, 2, 0)

    table.play(server(max_staleness=0), learner, script())
    assert learner.version == 1
    told = table.said("worker1", Params)[-1]
    assert (told.version, told.reason) == (1, "stale")
    assert told.parameters is not None
    assert told.parameters.tolist() == [-1.0, -1.0]
    assert [event["samples"] for event in table.journal("rejected")] == [2]


@pytest.mark.parametrize(
    ("lie", "verdict"),
    [
        ({"num_samples": 3}, "malformed"),
        ({"num_items": 0}, "malformed"),
        ({"num_items": 3}, "malformed"),
        ({"version": -1}, "malformed"),
        ({"version": 1}, "future"),
        ({"loss": float("nan")}, "nonfinite"),
        ({"gradient": (float("inf"), 0.0)}, "nonfinite"),
        ({"compute_s": float("nan")}, "malformed"),
        ({"lease": 7}, "malformed"),
        ({"lease": 2}, "malformed"),
    ],
    ids=str,
)
def test_a_lie_changes_nothing_but_its_count(lie: dict[str, object], verdict: str) -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        yield join(W0)
        yield join(W1)
        yield push(W0, **{"lease": 0, "version": 0, **lie})  # type: ignore[arg-type]

    role = server()
    table.play(role, learner, script())
    assert learner.version == 0
    assert [event["verdict"] for event in table.journal("rejected")] == [verdict]
    assert role.counts[f"rejected_{verdict}"] == role.counts["pushes"] == 1


def test_weights_that_a_worker_has_do_not_travel_again() -> None:
    table, learner = Table([W0]), Vector()

    def script() -> Script:
        yield join(W0)
        yield Received(W0, Pull(version=0))
        yield push(W0, 0, 0)
        yield Received(W0, Pull(version=0))

    table.play(server(), learner, script())
    assert [params.parameters is not None for params in table.said("worker0", Params)] == [True, False, True]


def test_nothing_is_granted_to_a_successor_that_has_not_joined() -> None:
    """The old worker's last push is still in the mailbox when the view has another worker of its name already."""
    table, learner = Table([W0]), Vector()

    def script() -> Script:
        yield join(W0)
        told = len(table.sent)
        changed = table.change(worker(0, joined=2))
        yield push(W0, 0, 0)
        assert table.sent[told:] == []
        yield changed
        assert table.sent[told:] == []
        yield join(worker(0, joined=2))
        params, first, second = (message for _, message in table.sent[told:])
        assert isinstance(params, Params)
        assert [grant.leases[0] for grant in (first, second) if isinstance(grant, Grant)] == [1, 2], (
            "what was taken back"
        )

    table.play(server(), learner, script())
    assert learner.version == 1


def test_leases_of_a_worker_that_answers_nothing_go_to_one_that_has_none() -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        yield join(W1)
        yield join(W0)
        for lease in (2, 3, 4, 5):
            yield push(W0, lease, learner.version)
        yield None  # until max_wait_s: leases 0 and 1 are worker1's, who says nothing
        assert [grant.leases[0] for grant in table.said("worker0", Grant)][-2:] == [0, 1]
        yield push(W1, 0, 0)
        assert table.said("worker1", Params)[-1].reason == "late"
        yield push(W0, 0, learner.version)
        yield push(W0, 1, learner.version)

    role = server()
    table.play(role, learner, script())
    assert learner.version == 6
    assert table.said("worker0", Finish), "the run ends well"
    assert role.counts["rejected_late"] == 1
    assert sorted(span for step in table.steps for span in step.spans) == [Span(0, i, i + 2) for i in range(0, 12, 2)]


def test_when_nobody_answers_the_run_ends_and_names_them() -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        yield join(W0)
        yield join(W1)
        yield None

    with pytest.raises(RunFailed, match="no push for 600 s; pushes of worker0, worker1"):
        table.play(server(), learner, script())


def test_a_long_evaluation_is_nobodys_silence() -> None:
    table, learner = Table([W0], commit_s=5000.0), Vector()

    def script() -> Script:
        yield join(W0)
        for lease in range(6):
            yield push(W0, lease, learner.version)

    table.play(server(), learner, script())
    assert learner.version == 6


def test_another_fingerprint_is_sent_home_and_gets_no_leases() -> None:
    table, learner = Table([W0, W1]), Vector()

    def script() -> Script:
        yield join(W0)
        yield Received(W1, Join(fingerprint="other"))
        yield table.change(W1)

    table.play(server(), learner, script())
    assert table.said("worker1", Finish)[0].reason.startswith("worker1 has built another model or data")
    assert table.said("worker1", Grant) == []


def test_a_lease_keeps_its_number_over_a_restart() -> None:
    """Its number seeds dropout and rounding, so a resumed run draws the same."""
    table, learner = Table([W0]), Vector()

    def script() -> Script:
        yield join(W0)
        yield push(W0, 0, 0)
        yield push(W0, 1, 1)

    table.play(server(), learner, script())
    again = Table([W0])

    def rejoin() -> Script:
        yield join(W0)

    again.play(server(table.states[-1]), learner, rejoin())
    leases = [grant.leases for grant in table.said("worker0", Grant)]
    assert [grant.leases for grant in again.said("worker0", Grant)] == leases[2:4]


def test_statistics_do_not_use_up_receive_buffers() -> None:
    """What waits in the buffer must own its memory."""
    table, learner = Table([W0, W1]), Vector(statistics=True)
    came = [torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)]

    def script() -> Script:
        yield join(W0)
        first = push(W0, 0, 0).message
        assert isinstance(first, Push)
        yield Received(W0, Push(**{**vars(first), "gradient": came[0], "buffers": came[1]}))
        for tensor in came:
            tensor.zero_()  # the next message lands there
        yield push(W0, 1, 0, buffers=torch.full((1,), 3.0, dtype=torch.float64))

    table.play(server(gradient_accumulation_size=2), learner, script())
    assert learner.applied == [([1.0, 1.0], 1.0)]
    assert learner.statistics is not None
    assert learner.statistics.tolist() == [2.0]
