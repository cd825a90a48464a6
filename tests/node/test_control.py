"""Events on their way to a controller that does not read: what matters is never lost, the rest is counted."""

from __future__ import annotations

import json
import os

from smolcluster.node.control import MAX_QUEUED_EVENTS, Events


def test_what_is_decisive_is_delivered_and_the_rest_is_counted() -> None:
    reading, writing = os.pipe()
    report = Events(writing)
    for number in range(MAX_QUEUED_EVENTS + 5000):
        report("metrics", step=number, filling="x" * 50)
    for number in range(100):
        report("journal", number=number)
    report("failed", reason="the end")
    with os.fdopen(reading) as stream:
        lines = [json.loads(stream.readline())]
        while lines[-1]["event"] != "failed":
            lines.append(json.loads(stream.readline()))
        report.close()
    assert [line["number"] for line in lines if line["event"] == "journal"] == list(range(100))
    dropped = [int(line["message"].split()[0]) for line in lines if line["event"] == "log"]
    kept = sum(line["event"] == "metrics" for line in lines)
    assert sum(dropped) == MAX_QUEUED_EVENTS + 5000 - kept > 0
