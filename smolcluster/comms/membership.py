"""Whether a frame may come in, judged by the view alone: a pure function that returns its reason.

The controller is the single authority on who takes part. Every change makes a new generation; a node that is
restarted is a new member, with the generation it joined in on its certificate and on each of its frames.
"""

from __future__ import annotations

from enum import Enum

from smolcluster.ports import Member, View


class Admission(Enum):
    """What to do with a frame."""

    ACCEPT = "accept"
    DROP = "drop"
    WAIT = "wait"


def admit(view: View, sender: str, joined: int, generation: int) -> tuple[Admission, str]:
    """Judge a frame of ``sender``, who says to have joined in ``joined`` and to know ``generation``.

    WAIT means that the sender knows a view that has not reached us yet.

    >>> view = View(generation=3, members=(Member(name="w0", role="worker", rank=0, joined=2),))
    >>> admit(view, "w0", 2, 3)[0], admit(view, "w0", 1, 1)[1]
    (<Admission.ACCEPT: 'accept'>, 'old generation')
    """
    member = view.get(sender)
    if generation > view.generation:
        return Admission.WAIT, "future generation"
    if member is None:
        return Admission.DROP, "not a member"
    if joined != member.joined or generation < member.joined:
        return Admission.DROP, "old generation"
    return Admission.ACCEPT, ""


def changes(before: View, after: View) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(lost, joined): names of the members that went and came. A restarted member is in both."""
    old = {(member.name, member.joined) for member in before.members}
    new = {(member.name, member.joined) for member in after.members}
    return tuple(sorted(name for name, _ in old - new)), tuple(sorted(name for name, _ in new - old))


def dialler(a: Member, b: Member, unreachable: frozenset[str] = frozenset()) -> Member:
    """Which of two members opens the connections between them.

    One that nobody can reach (behind a firewall) dials; else workers dial the server, and of two workers the
    one with the higher rank dials. Both connections of a pair, one per direction, are opened by the same side.
    """
    if (a.name in unreachable) != (b.name in unreachable):
        return a if a.name in unreachable else b
    if a.role != b.role:
        return b if a.role == "server" else a
    return max(a, b, key=lambda member: (member.rank, member.name))
