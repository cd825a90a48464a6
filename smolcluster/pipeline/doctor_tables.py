"""What the doctor says: machines, links, and the forecast, as tables; and progress while it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.table import Table
from rich.text import Text

from smolcluster.pipeline.diagnosis import Findings, Link, Row, rate, words_of
from smolcluster.tracking.tables import show
from smolcluster.tracking.wording import NOTHING, byte_count, clean

if TYPE_CHECKING:
    from smolcluster.cluster.session import Check
    from smolcluster.spec.run import RunSpec

STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}
WORDS = {"ok": "well", "warn": "look", "bad": "not fit"}


class Progress:
    """A console that tells of each thing that has been measured."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def start(self, run: object, *, began: float | None = None) -> None:
        return

    def on_event(self, event: Mapping[str, Any]) -> None:
        words = told(event)
        if words:
            self._stream.write(clean(words) + "\n")
            self._stream.flush()

    def note(self, words: str) -> None:
        self._stream.write(clean(words) + "\n")

    def stop(self, summary: Mapping[str, Any] | None = None) -> None:
        return


def told(event: Mapping[str, Any]) -> str:
    """A line of progress, or empty."""
    name = event.get("node")
    match (event.get("event"), event.get("kind"), event.get("what")):
        case ("state", _, _):
            return f"{name}: {event.get('state')} {event.get('detail') or ''}" if event.get("state") == "lost" else ""
        case ("journal", "prepared", _):
            return f"{event.get('peer')}: {event.get('reason')}"
        case ("journal", "started", _):
            return f"{event.get('peer')}: starting"
        case (_, "measured", "compute together" | "compute alone" as what):
            return f"{name}: forward and backward {event['gradient_s'] * 1e3:.1f} ms ({what.split()[1]})"
        case (_, "measured", "carried"):
            return f"{event.get('sender')} -> {name}: {event['bytes_per_s'] * 8e-6:,.0f} Mbit/s"
        case (_, "measured", "failed"):
            link = f" -> {event['peer']}" if event.get("peer") else ""
            return f"{event.get('source')}{link}: {event.get('task')}: {event.get('reason')}"
    return ""


def worst(checks: Sequence[Check]) -> str:
    """The verdict on a machine."""
    verdicts = {check.verdict for check in checks}
    return next(verdict for verdict in ("bad", "warn", "ok") if verdict in verdicts)


def show_machines(stream: TextIO, checks: Mapping[str, Sequence[Check]]) -> None:
    """A row for each machine, and under it what is wrong and what to do."""
    columns = ("reached", "machine", "Python", "packages", "memory", "disk", "clock")
    shown = Table(title="Machines", title_justify="left")
    for column in ("node", *columns, ""):
        shown.add_column(column)
    for name, found in checks.items():
        cells = {check.what: Text(clean(check.found), STYLES[check.verdict]) for check in found}
        verdict = worst(found)
        row = [cells.get(column, Text(NOTHING, "dim")) for column in columns]
        shown.add_row(name, *row, Text(WORDS[verdict], STYLES[verdict]))
    show(stream, shown)
    for name, found in checks.items():
        for check in found:
            if check.remedy:
                show(stream, Text(f"{name}: {clean(check.remedy, 400)}", STYLES[check.verdict]))


def show_survey(stream: TextIO, spec: RunSpec, findings: Findings) -> None:
    """What nodes compute, and what links carry."""
    title = f"Nodes: {spec.choices.get('model')} on {spec.choices.get('data')}, {spec.batch_size} samples"
    nodes = Table(title=title, title_justify="left")
    for column in ("node", "device", "threads", "forward+backward", "samples/s", "while all compute", "GFLOP/s"):
        nodes.add_column(column, justify="left" if column in ("node", "device") else "right")
    for name, found in findings.nodes.items():
        hardware = findings.hardware.get(name, {})
        alone, together = found.get("gradient_s"), found.get("together_s")
        nodes.add_row(
            name,
            clean(hardware.get("device", NOTHING)),
            str(hardware.get("threads", NOTHING)),
            _ms(alone),
            rate(spec.batch_size / alone) if alone else NOTHING,
            _ms(together),
            f"{found['flops'] / alone / 1e9:.1f}" if alone and found.get("flops") else NOTHING,
        )
    show(stream, nodes)
    links = Table(title="Links", title_justify="left")
    for column in ("from", "to", "round trip", "bandwidth", ""):
        links.add_column(column, justify="right" if column in ("round trip", "bandwidth") else "left")
    for link in findings.links:
        links.add_row(*_link(link))
    for name, channel in findings.inlets.items():
        links.add_row("all workers", name, NOTHING, _mbit(channel.bytes_per_s), Text("at the same time", "dim"))
    for name, channel in findings.outlets.items():
        links.add_row(name, "all workers", NOTHING, _mbit(channel.bytes_per_s), Text("at the same time", "dim"))
    show(stream, links)
    if any(link.reason for link in findings.links):
        words = "where a link does not come about: let TCP through the target's firewall (cluster.port fixes the port)"
        show(stream, Text(words, STYLES["bad"]))


def _link(link: Link) -> Sequence[str | Text]:
    verdict = Text(clean(link.reason, 120), STYLES["bad"]) if link.reason else Text("well", STYLES["ok"])
    speed = NOTHING if link.channel is None else _mbit(link.channel.bytes_per_s)
    return link.source, link.target, _ms(link.round_trip_s), speed, verdict


def show_forecast(stream: TextIO, spec: RunSpec, rows: Sequence[Row], warnings: Sequence[str]) -> None:
    """What a step would take, and whether that is worth it."""
    title = f"Forecast: {spec.choices.get('model')}, {spec.batch_size} samples per worker and step"
    caption = "against: samples/s, against the node that is fastest alone; simulated with what was measured"
    shown = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in ("", "step", "samples/s", "wire/step", "against"):
        shown.add_column(column, justify="right" if column else "left")
    for row in rows:
        what = f"{row.nodes[0]} alone" if row.algo == "single" else words_of(row)
        if row.step_time_s is None or row.samples_per_s is None:
            shown.add_row(what, NOTHING, NOTHING, NOTHING, Text(clean(row.reason, 80), "yellow"))
            continue
        ratio = row.ratio_to_single
        against = NOTHING if ratio is None else f"{ratio:.2f}x"
        style = "" if ratio is None or row.algo == "single" else STYLES["ok" if ratio >= 1 else "warn"]
        wire = byte_count(row.wire_bytes_per_step) if row.wire_bytes_per_step else NOTHING
        shown.add_row(what, _ms(row.step_time_s), rate(row.samples_per_s), wire, Text(against, style))
    show(stream, shown)
    for words in warnings:
        show(stream, Text(f"warning: {words}" if words is warnings[0] else words, STYLES["warn"]))


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _mbit(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8e-6:,.1f} Mbit/s"
