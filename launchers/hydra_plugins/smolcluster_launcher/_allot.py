"""Which machines of a cluster a job of a sweep gets while others run beside it. Pure functions of names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class Allotment(NamedTuple):
    """Who is the server and who are the workers of one job."""

    server: str
    workers: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (self.server, *self.workers)


class Verdict(NamedTuple):
    """What a job gets now (None: it has to wait), and why."""

    allotment: Allotment | None
    reason: str


def allot(nodes: Sequence[str], asked: Allotment, busy: Collection[str], *, shared: bool) -> Verdict:
    """Machines for a job that asks for ``asked``, of the cluster's ``nodes``, while those in ``busy`` are in use.

    ``shared``: a machine may have several jobs at a time. Otherwise the job gets what it asks for where that is
    free, and in place of what is not the first machines that are free and asked for by nobody in this job.

    >>> allot("abcdef", Allotment("a", ("b", "c")), {"a", "b", "c"}, shared=False).allotment
    Allotment(server='d', workers=('e', 'f'))
    >>> allot("abcd", Allotment("a", ("b", "c")), {"a"}, shared=False).allotment
    Allotment(server='d', workers=('b', 'c'))
    >>> allot("abc", Allotment("a", ("b", "c")), {"a"}, shared=False)
    Verdict(allotment=None, reason='2 of 3 machines are free, 3 are needed')
    """
    if shared or not set(asked.names) & set(busy):
        return Verdict(asked, "as configured")
    free = [name for name in nodes if name not in busy]
    if len(free) < len(asked.names):
        return Verdict(None, f"{len(free)} of {len(nodes)} machines are free, {len(asked.names)} are needed")
    spare = [name for name in free if name not in asked.names]
    given = [name if name in free else spare.pop(0) for name in asked.names]
    return Verdict(Allotment(given[0], tuple(given[1:])), "instead of machines that are in use")


def never(nodes: Sequence[str], asked: Allotment, max_concurrent: int, *, shared: bool) -> str:
    """Why no two jobs can ever run side by side; empty where they can.

    >>> never("abc", Allotment("a", ("b", "c")), 2, shared=False)[:58]
    'the cluster has 3 machines and a job takes 3 of them: jobs'
    """
    if shared or max_concurrent == 1 or len(nodes) >= 2 * len(asked.names):
        return ""
    return (
        f"the cluster has {len(nodes)} machines and a job takes {len(asked.names)} of them: jobs run one after another "
        "(hydra.launcher.share_nodes=true lets them share)"
    )
