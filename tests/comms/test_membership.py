"""Who may talk, judged by the view alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.comms.membership import Admission, admit, changes, dialler
from smolcluster.ports import Member, View

SERVER = Member(name="s", role="server", rank=0, joined=1)
VIEW = View(generation=7, members=(SERVER, Member(name="w", role="worker", rank=0, joined=5)))


@pytest.mark.parametrize(
    ("sender", "joined", "generation", "verdict", "reason"),
    [
        ("w", 5, 7, Admission.ACCEPT, ""),
        ("w", 5, 5, Admission.ACCEPT, ""),
        ("s", 1, 1, Admission.ACCEPT, ""),
        ("w", 5, 4, Admission.DROP, "old generation"),
        ("w", 4, 7, Admission.DROP, "old generation"),
        ("w", 6, 7, Admission.DROP, "old generation"),
        ("x", 5, 7, Admission.DROP, "not a member"),
        ("w", 5, 8, Admission.WAIT, "future generation"),
        ("w", 4, 8, Admission.WAIT, "future generation"),
        ("x", 8, 8, Admission.WAIT, "future generation"),
        ("w", -1, -1, Admission.DROP, "old generation"),
    ],
)
def test_admission(sender: str, joined: int, generation: int, verdict: Admission, reason: str) -> None:
    assert admit(VIEW, sender, joined, generation) == (verdict, reason)


def test_changes_name_who_went_and_who_came_and_a_restarted_member_is_both() -> None:
    a, b, c = (Member(name=name, role="worker", rank=i, joined=1) for i, name in enumerate("abc"))
    again = Member(name="b", role="worker", rank=1, joined=3)
    before, after = View(generation=1, members=(a, b)), View(generation=3, members=(again, c))
    assert changes(before, after) == (("a", "b"), ("b", "c"))
    assert changes(after, after) == ((), ())
    assert changes(View(generation=0, members=()), before) == ((), ("a", "b"))


members = st.builds(
    Member, name=st.sampled_from("abcd"), role=st.sampled_from(["server", "worker"]), rank=st.integers(0, 3)
)


@given(members, members, st.frozensets(st.sampled_from("abcd")))
def test_both_sides_agree_on_who_dials(a: Member, b: Member, unreachable: frozenset[str]) -> None:
    if a.name == b.name:
        return
    who = dialler(a, b, unreachable)
    assert who == dialler(b, a, unreachable)
    assert who in (a, b)
    if (a.name in unreachable) != (b.name in unreachable):
        assert who.name in unreachable


def test_who_dials() -> None:
    w0, w1 = (Member(name=f"w{rank}", role="worker", rank=rank) for rank in range(2))
    assert dialler(SERVER, w0) == w0
    assert dialler(w0, w1) == w1
    assert dialler(SERVER, w0, frozenset({"s"})) == SERVER
    assert dialler(SERVER, w0, frozenset({"s", "w0"})) == w0, "both unreachable: as if none were"
