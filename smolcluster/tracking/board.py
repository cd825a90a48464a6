"""What the console shows of a run at a moment: a picture in numbers, kept up by its events. Draws nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from smolcluster.tracking.counts import Traffic
from smolcluster.tracking.fields import finite, number, table, text, whole
from smolcluster.tracking.news import News, news_of
from smolcluster.tracking.tracker import Event, NodeInfo, RunInfo

MAX_NEWS = 50
"""Lines of news that are kept: more than any screen shows."""
LOOK_BACK = 4
"""What repeats one of so many latest lines is counted there."""
MAX_POINTS = 512
"""The loss curve is thinned to half when it has so many points."""
OVER = frozenset({"finished", "failed", "lost"})
"""States in which a node does nothing more."""
PACE_EVERY_S, PACE_WINDOW = 1.0, 30
"""The time left is reckoned from the steps of the last half minute, looked at once a second."""
RATE_WINDOW = 21
"""A node's wire speed is a mean over so many of its reports: ten seconds, since a step may take some."""


@dataclass
class NodeView:
    """One row of the table of nodes."""

    info: NodeInfo
    state: str = ""
    host: str = ""
    device: str = ""
    links: dict[str, bool] = field(default_factory=dict)
    step: int | None = None
    samples_per_s: float | None = None
    wait_share: float | None = None
    heard: float | None = None
    """When it last said anything."""
    reports: deque[tuple[float, int, int]] = field(default_factory=lambda: deque(maxlen=RATE_WINDOW))

    @property
    def wire_per_s(self) -> tuple[float | None, float | None]:
        """Bytes sent and received per second of late; None before there are two reports."""
        if len(self.reports) < 2 or self.reports[-1][0] <= self.reports[0][0]:
            return None, None
        (began, *before), (ended, *after) = self.reports[0], self.reports[-1]
        sent, received = ((b - a) / (ended - began) for a, b in zip(before, after, strict=True))
        return max(0.0, sent), max(0.0, received)

    def silent_s(self, now: float) -> float:
        """Seconds since it was last heard of; 0 where it has nothing to say (not started, or over)."""
        return 0.0 if self.heard is None or self.state in OVER else max(0.0, now - self.heard)


@dataclass
class Curve:
    """A series of numbers of any length, in at most ``MAX_POINTS`` points: means of 1, 2, 4 ... values each."""

    points: list[float] = field(default_factory=list)
    span: int = 1
    part: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.part.append(value)
        if len(self.part) < self.span:
            return
        self.points.append(sum(self.part) / self.span)
        self.part.clear()
        if len(self.points) >= MAX_POINTS:
            self.points = [(a + b) / 2 for a, b in zip(self.points[::2], self.points[1::2], strict=True)]
            self.span *= 2


@dataclass(frozen=True)
class Headline:
    """A line of news, when it came last, and how often it came."""

    at: float
    news: News
    times: int = 1


class Board:
    """Takes events in the order in which they come; :attr:`nodes`, :attr:`last` and the rest are to be read."""

    def __init__(self, run: RunInfo, started: float) -> None:
        self.run, self.started = run, started
        self.nodes = {node.name: NodeView(node, host=node.host, device=node.device) for node in run.nodes}
        self.last: Event = {}
        """The latest metrics event."""
        self.validation: Event = {}
        """The latest evaluation."""
        self.best: Event = {}
        """The evaluation with the lowest loss."""
        self.losses = Curve()
        self.traffic = Traffic()
        self.news: deque[Headline] = deque(maxlen=MAX_NEWS)
        self._pace: deque[tuple[float, int]] = deque(maxlen=PACE_WINDOW)

    def on_event(self, event: Event) -> News | None:
        """Take ``event`` in; what there is to tell of it, if anything."""
        take = {
            "metrics": self._on_metrics,
            "node": self._on_node,
            "state": self._on_state,
            "ready": self._on_ready,
            "link": self._on_link,
            "evaluation": self._on_evaluation,
        }.get(text(event.get("event")))
        if take is not None:
            take(event)
        now = finite(event.get("t")) or self.started
        if text(event.get("node")) in self.nodes:
            self.nodes[text(event.get("node"))].heard = now
        news = None if self._is_farewell(event) else news_of(event)
        if news is not None:
            self._add(now, news)
        return news

    def note(self, at: float, words: str) -> None:
        """Something that this process has to say."""
        self._add(at, News(words, "info", ""))

    @property
    def step(self) -> int:
        return whole(self.last.get("step")) or 0

    @property
    def num_steps(self) -> int | None:
        return whole(self.last.get("num_steps"))

    def seconds_left(self, now: float) -> float | None:
        """Till the last step at the pace of late; None before there is a pace."""
        if self.num_steps is None or len(self._pace) < 2:
            return None
        (began, first), (ended, last) = self._pace[0], self._pace[-1]
        if last <= first or ended <= began:
            return None
        left = (self.num_steps - last) * (ended - began) / (last - first) - (now - ended)
        return max(0.0, left)

    def _on_metrics(self, event: Event) -> None:
        self.last = event
        loss = finite(event.get("loss"))
        if loss is not None:
            self.losses.add(loss)
        self.traffic.see(text(event.get("node")), table(event.get("wire")))
        now = finite(event.get("t")) or 0.0
        if not self._pace or now - self._pace[-1][0] >= PACE_EVERY_S:
            self._pace.append((now, self.step))

    def _on_node(self, event: Event) -> None:
        view = self._view(event)
        view.step = whole(event.get("step"))
        view.samples_per_s = number(event.get("samples_per_s"))
        view.wait_share = number(event.get("wait_share"))
        self.traffic.see(view.info.name, event)
        sent, received = self.traffic.of(view.info.name)
        if sent is not None and received is not None:
            view.reports.append((finite(event.get("t")) or 0.0, sent, received))

    def _on_state(self, event: Event) -> None:
        view = self._view(event)
        view.state = text(event.get("state"))
        if view.state == "starting":
            self.traffic.restart(view.info.name)
            view.links.clear()
        if view.state in OVER:
            view.samples_per_s = view.wait_share = None
            view.reports.clear()

    def _on_ready(self, event: Event) -> None:
        view = self._view(event)
        view.device = text(table(event.get("hardware")).get("device")) or view.device

    def _on_link(self, event: Event) -> None:
        """A link has two ends, of which one alone may tell."""
        view, peer, up = self._view(event), text(event.get("peer")), bool(event.get("up"))
        view.links[peer] = up
        if peer in self.nodes:
            self.nodes[peer].links[view.info.name] = up

    def _on_evaluation(self, event: Event) -> None:
        self.validation = event
        loss, best = finite(event.get("loss")), finite(self.best.get("loss"))
        if loss is not None and (best is None or loss < best):
            self.best = event

    def _is_farewell(self, event: Event) -> bool:
        """A link to a node that is through ends as it should."""
        ends = (self.nodes.get(text(event.get(key))) for key in ("node", "peer"))
        return event.get("event") == "link" and any(end is not None and end.state in OVER for end in ends)

    def _view(self, event: Event) -> NodeView:
        name = text(event.get("node"))
        if name not in self.nodes:
            rank, host = whole(event.get("rank")) or 0, text(event.get("host")) or name
            info = NodeInfo(name=name, role=text(event.get("role")), rank=rank, host=host)
            self.nodes[name] = NodeView(info, host=host)
        return self.nodes[name]

    def _add(self, at: float, news: News) -> None:
        """What repeats one of the latest lines is counted there, so that it does not push out the others."""
        latest = list(self.news)[-LOOK_BACK:] if news.topic else []
        same = next((line for line in latest if line.news.topic == news.topic), None)
        if same is not None:
            self.news.remove(same)
        self.news.append(Headline(at, news, same.times + 1 if same is not None else 1))
