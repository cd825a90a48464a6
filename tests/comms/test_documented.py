"""docs/wire_format.md says what the code says: reasons, messages, constants and the example of memory."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from smolcluster import messages
from smolcluster.comms import buffers, chunks, curve, link, peers, session, wire
from smolcluster.comms.transport import tcp
from smolcluster.comms.transport.tcp import Tcp
from smolcluster.messages import BY_CODE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "wire_format.md").read_text(encoding="utf-8")
SOURCES = [*sorted((ROOT / "smolcluster" / "comms").rglob("*.py")), ROOT / "smolcluster" / "messages.py"]
KINDS = {"int": "int", "float": "float", "str": "text", "tuple[int, ...]": "list"}


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    _, _, rest = PAGE.partition(f"\n## {title}\n")
    assert rest, title
    return rest.partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the tables of a section, without their heads."""
    lines = [line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in cells] for cells in lines if not set("".join(cells)) <= set("-")][1:]


def reasons_in(tree: ast.AST) -> set[str]:
    """Constant reasons that something is refused under."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            position = {"PeerProtocolError": 0, "_count": 0, "refused": 1}.get(name)
            arguments: list[Any] = [] if position is None else node.args[position : position + 1]
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):  # a verdict and why
            arguments = [*node.value.elts[1:]] if "Admission." in ast.unparse(node.value) else []
        else:
            arguments = []
        found |= {each.value for each in arguments if isinstance(each, ast.Constant) and each.value}
    return found


def test_every_reason_is_in_the_table_and_every_one_there_is_in_the_code() -> None:
    in_code = set[str]().union(*(reasons_in(ast.parse(file.read_text(encoding="utf-8"))) for file in SOURCES))
    in_table = {cells[0].strip("`") for cells in rows("Refusals")}
    assert in_table == in_code
    assert len(in_code) > 20


def test_a_reason_is_found_in_all_the_ways_in_which_it_may_stand_there() -> None:
    text = (
        'raise PeerProtocolError("a", "x")\nself._count("b", "x")\nsink.refused(p, "c", "x")\n'
        'def f(): return Admission.DROP, "d"'
    )
    assert reasons_in(ast.parse(text)) == {"a", "b", "c", "d"}


def described(code: int) -> list[str]:
    """The row of a message."""
    cls = BY_CODE[code]
    plain, tensors = [], []
    for field in dataclasses.fields(cls):
        if "layout" in field.metadata:
            tensors.append(f"`{field.metadata['layout']}`" + "?" * field.metadata["optional"])
        else:
            plain.append(f"`{field.name}` {KINDS[str(field.type)]}")
    return [str(code), f"`{cls.__name__}`", cls.sender, ", ".join(plain), ", ".join(tensors)]


def test_messages_and_control_frames_are_those_of_the_code() -> None:
    assert rows("Messages") == [described(code) for code in sorted(BY_CODE)]
    control = {cells[1]: int(cells[0]) for cells in rows("Control frames")}
    assert control == {name: getattr(wire, name) for name in control}
    assert set(control.values()) == wire.CONTROL
    assert not wire.CONTROL & BY_CODE.keys()
    types = {cells[0].strip("`"): int(cells[1]) for cells in rows("Tensors") if cells[0].strip("`") in wire.DTYPE_BYTES}
    assert types == wire.DTYPE_BYTES


HOMES = (wire, session, chunks, curve, tcp, peers, messages, link, importlib.import_module("smolcluster.comms.pair"))


@pytest.mark.parametrize("cells", rows("Limits") + rows("Deadlines"), ids=lambda cells: cells[2])
def test_numbers_are_those_of_the_code(cells: list[str]) -> None:
    name = cells[2].strip("`")
    number = float(re.split(r" ", cells[1].replace(",", ""))[0])
    if name.startswith("comms."):
        assert getattr(Tcp(), name.removeprefix("comms.")) == number
    else:
        values = {getattr(home, name) for home in HOMES if name in vars(home)}
        assert number in values, f"{name} is {values}"
        assert len(values) == 1 or name == "CHUNK_BYTES", "TCP has a CHUNK_BYTES of its own"


def test_offsets_are_those_of_the_structs() -> None:
    for title, struct in (("A frame", wire.HEADER), ("ZeroMQ", curve.PREFIX)):
        fields = [cells for cells in rows(title) if cells[0].isdigit() and cells[1].isdigit()]
        ends = [int(start) + int(size) for start, size, *_ in fields]
        assert [int(start) for start, *_ in fields] == [0, *ends[:-1]]
        assert ends[-1] == struct.size


def test_the_example_of_memory_is_the_formula() -> None:
    numel = 1_000_000
    layouts = [buffers.Layout("float32", numel)] * 2
    held = sum(layout.num_bytes for layout in layouts)
    judging = wire.MAX_META_BYTES + (4 << 20) + link.CHUNK_BYTES
    receive = peers.BUFFERS_PER_PEER * held + peers.MAX_WAITING * (192 << 10) + judging
    send = max(session.MAX_QUEUED_BYTES, session.QUEUED_PAYLOADS * held) + session.MAX_QUEUED_FRAMES * 2048
    zmq = 2 * chunks.WINDOW * (chunks.CHUNK_BYTES + wire.MAX_META_BYTES)
    text = " ".join(section("Memory per peer").split())
    assert f"L = {held:,}, receive = {receive:,}, send = {send:,} bytes" in text
    assert f"at most {zmq:,} bytes" in text
    assert f"2 L + 64 x {192 << 10:,} + {judging:,}" in text
