"""Which events are news to a person, and in what words. The live view and the plain console say the same."""

from __future__ import annotations

from typing import NamedTuple

from smolcluster.tracking.fields import number, text, whole
from smolcluster.tracking.tracker import Event
from smolcluster.tracking.wording import accuracy, clean
from smolcluster.tracking.wording import number as figure

GOOD, INFO, WARN, BAD = "good", "info", "warn", "bad"
GRAVE_STATES = frozenset({"failed", "lost"})
GRAVE_KINDS = frozenset({"lost", "failed", "killed"})
WELCOME_KINDS = frozenset({"joined", "rejoined", "resumed"})
SILENT_KINDS = frozenset({"member"})
"""Journal entries that only repeat, in a role's words, what the controller's ``view`` has told."""
SAID = frozenset({"event", "kind", "node", "role", "rank", "t", "step", "reason", "peer"})
"""Fields of a journal event that its line already tells, or that belong to every event."""


class News(NamedTuple):
    """A line, how serious it is, and what it is counted under should it come again and again (empty: never)."""

    words: str
    tone: str
    topic: str


def news_of(event: Event) -> News | None:
    """What there is to say of ``event``, None where it is not worth a line. The words are safe to print."""
    tell = TELLERS.get(text(event.get("event")))
    found = tell(event) if tell is not None else None
    return found._replace(words=clean(found.words)) if found is not None else None


def quality(event: Event) -> str:
    """``loss 0.2301, accuracy 93.10 %``."""
    parts = [f"loss {figure(number(event.get('loss')))}"]
    if "accuracy" in event:
        parts.append(f"accuracy {accuracy(number(event.get('accuracy')))}")
    if "perplexity" in event:
        parts.append(f"perplexity {figure(number(event.get('perplexity')))}")
    return ", ".join(parts)


def _evaluation(event: Event) -> News:
    return News(f"evaluation{_at(event)}: {quality(event)}", INFO, "")


def _checkpoint(event: Event) -> News:
    best = " (best so far)" if event.get("best") else ""
    return News(f"checkpoint{_at(event)}{best}: {text(event.get('path'))}", GOOD if best else INFO, "")


def _journal(event: Event) -> News | None:
    """``peer`` is the node that it is about, where that is not the one that says it."""
    if event.get("kind") == "view":
        return News(f"{text(event.get('members'))} nodes take part: {text(event.get('reason'))}", INFO, "")
    if text(event.get("kind")) in SILENT_KINDS:
        return None
    kind, about = text(event.get("kind")), text(event.get("peer") or event.get("node"))
    reason = text(event.get("reason"))
    more = ", ".join(f"{key} {value}" for key, value in event.items() if key not in SAID and value is not None)
    words = f"{about} {kind}{_at(event)}" + (f": {reason}" if reason else "") + (f" ({more})" if more else "")
    tone = BAD if kind in GRAVE_KINDS else GOOD if kind in WELCOME_KINDS else WARN
    return News(words, tone, f"{about} {kind}")


def _state(event: Event) -> News | None:
    state = text(event.get("state"))
    if state not in GRAVE_STATES:
        return None
    detail = text(event.get("detail"))
    return News(f"{text(event.get('node'))} {state}" + (f": {detail}" if detail else ""), BAD, "")


def _link(event: Event) -> News | None:
    if event.get("up"):
        return None
    pair = f"{text(event.get('node'))} - {text(event.get('peer'))}"
    return News(f"link {pair} is down: {text(event.get('reason'))}", WARN, pair)


def _log(event: Event) -> News | None:
    if text(event.get("level")).upper() not in ("ERROR", "CRITICAL"):
        return None
    words = f"{text(event.get('node'))}: {text(event.get('message'))}"
    return News(words, BAD, words)


def _silent(event: Event) -> News:
    peer, node = text(event.get("peer")), text(event.get("node"))
    return News(f"{peer} {text(event.get('reason'))}, says {node}", WARN, f"{peer} silent")


def _at(event: Event) -> str:
    step = whole(event.get("step"))
    return f" at step {step:,}" if step is not None else ""


TELLERS = {
    "evaluation": _evaluation,
    "checkpoint": _checkpoint,
    "journal": _journal,
    "state": _state,
    "link": _link,
    "log": _log,
    "silent": _silent,
}
"""Kind of event -> the function that words it."""
