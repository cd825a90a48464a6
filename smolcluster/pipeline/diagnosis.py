"""From what a survey has found to figures, forecasts and verdicts. Pure: no machine is asked here."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from smolcluster.cluster.controller import roster
from smolcluster.errors import SmolclusterError
from smolcluster.sim.figures import Channel, Figures, LinkFigures, NodeFigures
from smolcluster.spec.build import option
from smolcluster.spec.validate import combinations
from smolcluster.tracking.wording import NOTHING

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

MBIT = 1e6 / 8
MAX_LARGER = 64
"""A batch so many times as large is the largest that is tried where the cluster is slower than one machine."""
NARROW = 1.15
"""Several streams that carry less than so many times what one of them does share the narrow place."""
MEMORY_SHARE = 0.75
"""Part of a machine's memory that training may use."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One direction between two nodes. ``channel`` None: nothing came through, for the ``reason``."""

    source: str
    target: str
    round_trip_s: float | None = None
    channel: Channel | None = None
    reason: str = ""

    @property
    def mbit_per_s(self) -> float | None:
        return None if self.channel is None else self.channel.bytes_per_s / MBIT


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the events of a survey say."""

    nodes: Mapping[str, Mapping[str, float]]
    """Name -> ``gradient_s``, ``together_s``, ``apply_s`` ... and ``flops`` of a batch."""
    links: Sequence[Link]
    hardware: Mapping[str, Mapping[str, Any]]
    samples: Mapping[str, Any] = field(default_factory=dict)
    num_params: int = 0
    inlets: Mapping[str, Channel] = field(default_factory=dict)
    outlets: Mapping[str, Channel] = field(default_factory=dict)
    failures: Sequence[str] = ()
    overheads: Sequence[float] = ()
    """Seconds of each step of the rehearsal, beyond what its slowest worker computed."""

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Findings:
        """From the lines of a survey's ``events.jsonl``."""
        nodes: dict[str, dict[str, float]] = defaultdict(dict)
        hardware, samples, failures, num_params = {}, {}, [], 0
        rounds: dict[int, float] = {}
        parts: dict[int, list[float]] = defaultdict(list)
        places: dict[str, tuple[bool, int]] = {}
        trips: dict[tuple[str, str], float] = {}
        reasons: dict[tuple[str, str], str] = {}
        streams: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for event in events:
            name = str(event.get("node"))
            if event.get("event") == "ready":
                hardware[name], num_params = event.get("hardware") or {}, int(event.get("params") or 0)
                places[name] = (event.get("role") != "server", int(event.get("rank") or 0))
            match event.get("what") if event.get("kind") == "measured" else None:
                case "compute together":
                    nodes[name]["together_s"] = event["gradient_s"]
                case "compute alone":
                    keys = ("gradient_s", "apply_s", "snapshot_s", "load_s", "pass_s", "flops")
                    nodes[name].update({key: event[key] for key in keys})
                case "reached":
                    trips[name, event["peer"]] = event["round_trip_s"]
                case "round":
                    rounds[event["number"]] = event["seconds"]
                case "part":
                    parts[event["number"]].append(event["seconds"])
                case "carried":
                    streams[event["number"]].append(event)
                case "samples":
                    samples = {key: event[key] for key in ("num_samples", "max_items", "tensor_bytes")}
                case "failed" if event["peer"]:
                    reasons.setdefault((event["source"], event["peer"]), str(event["reason"]))
                case "failed":
                    failures.append(f"{event['source']}: {event['task']}: {event['reason']}")
        alone: dict[tuple[str, str], list[Channel]] = defaultdict(list)
        for event, *others in streams.values():
            if not others:
                alone[event["sender"], event["node"]].append(channel_of(event))
        singles = {pair: median(found) for pair, found in alone.items()}
        doors = [found for found in streams.values() if len(found) > 1]
        return cls(
            nodes={name: nodes[name] for name in sorted(nodes, key=lambda name: places[name])},
            links=[
                Link(
                    source=one, target=other, round_trip_s=trips.get((one, other)),
                    channel=singles.get((one, other)), reason=reasons.get((one, other), ""),
                )
                for one, other in sorted({*trips, *reasons, *singles}, key=lambda pair: [places[name] for name in pair])
            ],
            hardware=hardware,
            samples=samples,
            num_params=num_params,
            inlets={es[0]["node"]: door_of(es, singles) for es in doors if len({e["node"] for e in es}) == 1},
            outlets={es[0]["sender"]: door_of(es, singles) for es in doors if len({e["sender"] for e in es}) == 1},
            failures=failures,
            overheads=[seconds - max(parts[number]) for number, seconds in rounds.items() if parts[number]],
        )  # fmt: skip

    def figures(self, batch_size: int) -> Figures:
        """What a simulation needs."""
        return Figures(
            num_params=self.num_params,
            batch_size=min(batch_size, int(self.samples["num_samples"])),
            nodes={
                name: NodeFigures(
                    **{key: value for key, value in found.items() if key not in ("flops", "together_s")},
                    together_s=found.get("together_s", found["gradient_s"]),
                )
                for name, found in self.nodes.items()
                if "gradient_s" in found
            },
            links={
                (link.source, link.target): LinkFigures(round_trip_s=link.round_trip_s, channel=link.channel)
                for link in self.links
                if link.channel is not None and link.round_trip_s is not None
            },
            inlets=self.inlets,
            outlets=self.outlets,
            **self.samples,
        )


def calibrated(spec: RunSpec, findings: Findings) -> Figures:
    """The figures of ``findings``, with what a step without tensors took in the rehearsal beyond what they explain."""
    figures = findings.figures(spec.batch_size)
    workers = [name for name in spec.cluster.worker_names if name in figures.nodes]
    server = figures.nodes.get(spec.cluster.server_name)
    if not findings.overheads or not workers or server is None:
        return figures
    trip = max((link.round_trip_s for link in figures.links.values()), default=0.0)
    beyond = statistics.median(findings.overheads) - (trip + server.snapshot_s + server.apply_s)
    return replace(figures, handling_s=max(0.0, beyond) / len(workers))


def channel_of(event: Mapping[str, Any]) -> Channel:
    """What came through in one stream."""
    return Channel(**{key: event[key] for key in ("bytes_per_s", "burst_bytes", "peak_per_s")})


def door_of(events: Sequence[Mapping[str, Any]], singles: Mapping[tuple[str, str], Channel]) -> Channel:
    """A node's way out or in, from streams that went through it at the same time.

    Where all together carry hardly more than the best of them alone, the door is the narrow place, and what came
    through alone tells what it is like. Else each link has a narrow place of its own, and the door is as wide as all.
    """
    alone = [singles[pair] for event in events if (pair := (event["sender"], event["node"])) in singles]
    rate = sum(event["bytes_per_s"] for event in events)
    best = max((channel.bytes_per_s for channel in alone), default=0.0)
    if rate < NARROW * best:
        return median([channel for channel in alone if best < NARROW * channel.bytes_per_s])
    return Channel(
        bytes_per_s=rate,
        burst_bytes=sum(channel.burst_bytes for channel in alone),
        peak_per_s=sum(channel.peak for channel in alone),
    )


def median(channels: Sequence[Channel]) -> Channel:
    """What one link is like, or several that are alike, from all that was seen of them."""
    keys = ("bytes_per_s", "burst_bytes", "peak_per_s")
    return Channel(**{key: statistics.median(getattr(channel, key) for channel in channels) for key in keys})


# --- forecasts -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the forecast. ``reason`` says why there is none for this algorithm."""

    algo: str
    settings: Mapping[str, Any]
    nodes: Sequence[str]
    step_time_s: float | None = None
    samples_per_s: float | None = None
    wire_bytes_per_step: float | None = None
    ratio_to_single: float | None = None
    """Samples per second against the best single node."""
    reason: str = ""

    @property
    def plain(self) -> dict[str, Any]:
        return asdict(self)


def forecasts(spec: RunSpec, cases: Sequence[str], figures: Figures) -> list[Row]:
    """Every algorithm, and what of it makes less traffic, on this cluster; single nodes first, the best on top."""
    rows = []
    for case in cases:
        algo: Any = spec.algo if spec.choices.get("algo") == case else option("algo", case)
        for settings in ({}, *([algo.sparing] if algo.sparing else [])):
            varied = replace(spec, algo=replace(algo, **settings), choices={**spec.choices, "algo": case})
            if case == "single":
                rows += [alone(varied, name, figures) for name in figures.nodes]
            else:
                rows.append(forecast(varied, figures, settings))
    single = best_single(rows)
    if single is None:
        return rows
    return [compared(row, single) for row in sorted(rows, key=lambda row: row.algo != "single")]


def best_single(rows: Iterable[Row]) -> Row | None:
    """The node that is fastest by itself."""
    known = [row for row in rows if row.algo == "single" and row.samples_per_s]
    return max(known, key=lambda row: row.samples_per_s or 0.0, default=None)


def compared(row: Row, single: Row) -> Row:
    assert single.samples_per_s
    return replace(row, ratio_to_single=row.samples_per_s / single.samples_per_s) if row.samples_per_s else row


def alone(spec: RunSpec, name: str, figures: Figures) -> Row:
    """``algo=single`` on one node of the cluster."""
    (member,) = roster(spec)
    own = replace(figures, nodes={member.name: figures.nodes[name]}, links={}, inlets={}, outlets={})
    return replace(forecast(spec, own, {}), nodes=[name])


def forecast(spec: RunSpec, figures: Figures, settings: Mapping[str, Any]) -> Row:
    """One algorithm, by running its roles in virtual time."""
    from smolcluster.sim.run import simulate

    members = roster(spec)
    row = Row(algo=spec.choices["algo"], settings=settings, nodes=[member.name for member in members])
    encoded = spec.algo.gradient_bytes(figures.num_params)
    sizes = {**figures.tensor_bytes, **({"gradient": encoded} if encoded else {})}
    if problems := [problem for problem in combinations(spec) if problem.key.startswith("algo")]:
        return replace(row, reason=str(problems[0]))
    if missing := [member.name for member in members if member.name not in figures.nodes]:
        return replace(row, reason=f"{', '.join(missing)} could not be measured")
    try:
        found = simulate(spec, members, replace(figures, tensor_bytes=sizes))
    except SmolclusterError as error:
        return replace(row, reason=str(error))
    except KeyError as error:
        one, other = error.args[0]
        return replace(row, reason=f"the link from {one} to {other} could not be measured")
    return replace(
        row,
        step_time_s=found.step_s,
        samples_per_s=found.samples_per_s,
        wire_bytes_per_step=found.wire_bytes_per_step if len(members) > 1 else 0.0,
    )


def advice(spec: RunSpec, rows: Sequence[Row], figures: Figures) -> list[str]:
    """A plain warning where the cluster would be slower than its best node, and what would help."""
    chosen = spec.choices.get("algo", "")
    row = next((row for row in rows if row.algo == chosen and not row.settings), None)
    single = best_single(rows)
    if row is None or single is None or not row.samples_per_s or (row.ratio_to_single or 0.0) >= 1.0:
        return []
    speeds = f"{rate(row.samples_per_s)} against {rate(single.samples_per_s)} samples/s"
    lines = [f"algo={chosen} on this cluster would be slower than {single.nodes[0]} alone: {speeds}"]
    best = max((each for each in rows if each.algo != "single"), key=lambda each: each.ratio_to_single or 0.0)
    if (best.ratio_to_single or 0.0) > 1.0:
        lines.append(f"faster would be {words_of(best)}: {best.ratio_to_single:.2f}x of {single.nodes[0]} alone")
    size = worthwhile(spec, figures)
    if size is not None:
        lines.append(f"algo={chosen} would be faster than one machine from about train.batch_size={size} on")
    return lines


def rate(per_s: float | None) -> str:
    """Samples per second, for people.

    >>> rate(53810.2), rate(3.14159)
    ('53,810', '3.1')
    """
    return NOTHING if per_s is None else f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}"


def words_of(row: Row) -> str:
    """``algo=edp algo.use_quantization=true``."""
    settings = (f"algo.{key}={str(value).lower()}" for key, value in row.settings.items())
    return " ".join([f"algo={row.algo}", *settings])


def worthwhile(spec: RunSpec, figures: Figures) -> int | None:
    """The smallest doubling of the batch with which the cluster is faster than one node; None where none tried is."""
    factor = 2
    while factor <= MAX_LARGER:
        size = spec.batch_size * factor
        larger = replace(spec, train=replace(spec.train, batch_size=size))
        rows = forecasts(larger, ["single", spec.choices["algo"]], figures)
        if any((row.ratio_to_single or 0.0) > 1.0 for row in rows if row.algo != "single" and not row.settings):
            return size
        factor *= 2
    return None


# --- the file --------------------------------------------------------------------------------------------


def measured_cluster(spec: RunSpec, findings: Findings) -> dict[str, Any]:
    """``spec.cluster`` as plain data, with what was measured of each node in the keys that placing models reads."""
    plain: dict[str, Any] = spec.plain()["cluster"]
    for name, node in (plain.get("nodes") or {}).items():
        found, hardware = findings.nodes.get(name, {}), findings.hardware.get(name, {})
        if found.get("flops") and found.get("gradient_s"):
            node["flops_per_second"] = float(f"{found['flops'] / found['gradient_s']:.4g}")
        if hardware.get("memory_bytes"):
            node["memory_gb"] = float(f"{hardware['memory_bytes'] * MEMORY_SHARE / 1e9:.3g}")
        carried = [link.mbit_per_s for link in findings.links if name in (link.source, link.target)]
        known = [speed for speed in carried if speed is not None]
        if known:
            node["bandwidth_mbps"] = float(f"{min(known):.4g}")
    return plain
