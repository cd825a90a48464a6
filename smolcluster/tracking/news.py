"""Which events are news to a person, and in what words. The live view and the plain console say the same."""

from __future__ import annotations

import re
from typing import NamedTuple

from smolcluster.tracking.fields import number, text, whole
from smolcluster.tracking.tracker import Event
from smolcluster.tracking.wording import accuracy, clean
from smolcluster.tracking.wording import number as figure

GOOD, INFO, WARN, BAD = "good", "info", "warn", "bad"
GRAVE_STATES = frozenset({"failed", "lost"})
PHRASES = {
    "started": ("{who} is started", INFO),
    "joined": ("{who} joined{at}", GOOD),
    "lost": ("others do what {who} had to do{at}", INFO),
    "dropped": ("{who} was too slow{at}, its part is left out", WARN),
    "late": ("{who} answered too late{at}", WARN),
    "refused": ("something that {who} sent was refused{at}", WARN),
    "rejected": ("something that {who} sent was refused{at}", WARN),
    "prepared": ("{who}", INFO),
    "not fetched": ("what {who} has saved is not here yet", WARN),
    "killed": ("{who} is killed", BAD),
    "failed": ("{who} failed{at}", BAD),
    "resumed": ("goes on from {who}", GOOD),
    "stopping": ("stopping", INFO),
}
"""Kind of a journal entry -> how it is told, and how serious it is. Others are told by their names, as warnings."""
SILENT_KINDS = frozenset({"member"})
"""Journal entries that only repeat, in a role's words, what the controller's ``view`` has told."""
REASON_TOLD = frozenset({"joined", "lost"})
"""Their reasons another line has told before."""
SAID = frozenset({"event", "kind", "node", "role", "rank", "t", "step", "reason", "peer", "joined", "samples"})
"""Fields of a journal event that its line already tells, or that belong to every event."""


NO_BRACES = str.maketrans("{}", "()")
LOSS = re.compile(r"\w: ")
"""What the reason of a view has that tells of a loss: the node's name before what happened to it."""


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
    kind, about = text(event.get("kind")), text(event.get("peer") or event.get("node"))
    if kind == "view":
        return _view(event)
    if kind in SILENT_KINDS or (kind == "lost" and not event.get("samples")):
        return None
    phrase, tone = PHRASES.get(kind, (f"{{who}} {clean(kind).translate(NO_BRACES)}{{at}}", WARN))
    reason = "" if kind in REASON_TOLD else text(event.get("reason"))
    facts = [f"{event['samples']} samples"] if event.get("samples") else []
    facts += [f"{key} {value}" for key, value in event.items() if key not in SAID and value is not None]
    words = phrase.format(who=about, at=_at(event)) + (f": {reason}" if reason else "")
    return News(words + (f" ({', '.join(facts)})" if facts else ""), tone, f"{about} {kind}")


def _view(event: Event) -> News:
    """Who takes part from now on. Why somebody does not any more, the line of its loss has told."""
    members, reason = whole(event.get("members")), text(event.get("reason"))
    told = f": {reason}" if reason and not LOSS.search(reason) else " from now on"
    return News(f"{members} {'node takes' if members == 1 else 'nodes take'} part{told}", INFO, "")


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
