"""The control plane at the node's end: events to a controller that does not read, commands in pieces, silence."""

from __future__ import annotations

import json
import os
import threading

from smolcluster.node.control import MAX_LINE_BYTES, MAX_QUEUED_EVENTS, Commands, Events


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


def test_commands_come_in_pieces_and_end_with_the_stream() -> None:
    reading, writing = os.pipe()
    commands = Commands(reading)
    os.write(writing, b'{"op": "a"}\n{"op"')
    assert commands.read_one(5) == {"op": "a"}
    assert commands.read_one(0.01) is None, "silence in mid-command"
    os.write(writing, b': "b"}\n"no mapping"\n')
    assert commands.read_one(5) == {"op": "b"}
    assert commands.read_one(5) is None, "what is no command ends it"
    os.close(writing)
    assert commands.read_one(5) is None
    os.close(reading)


def test_a_command_without_an_end_is_not_kept_for_ever() -> None:
    reading, writing = os.pipe()
    commands = Commands(reading)
    writer = threading.Thread(target=_write, args=(writing, MAX_LINE_BYTES + 1))
    writer.start()
    assert commands.read_one(20) is None
    writer.join()
    os.close(reading)


def _write(descriptor: int, count: int) -> None:
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(b"x" * count)
