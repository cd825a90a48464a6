"""The wire format: what goes in comes out, and everything else is refused with the documented reason, unallocated."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.comms import wire
from smolcluster.comms.wire import HEADER, MAX_META_BYTES, Envelope, TensorSpec
from smolcluster.errors import LocalProtocolError, PeerProtocolError

LIMIT = 2**40
whole = st.integers(-1, 2**62 - 1)
names = st.text(max_size=256)
specs = st.builds(TensorSpec, names, st.sampled_from(sorted(wire.DTYPE_BYTES)), st.integers(0, 2**30))
plain = st.recursive(
    st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=50) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)
envelopes = st.builds(
    Envelope,
    names,
    whole,
    names,
    whole,
    whole,
    whole,
    st.lists(plain, max_size=10),
    st.lists(specs, max_size=8).map(tuple),
)


def decoded(data: bytes, limit: int = LIMIT) -> tuple[wire.Header, Envelope]:
    header = wire.parse_header(data[: HEADER.size], limit)
    assert len(data) == HEADER.size + header.meta_bytes
    return header, wire.parse_meta(memoryview(data)[HEADER.size :], header.payload_bytes)


@given(st.integers(0, 255), envelopes)
def test_round_trip(kind: int, envelope: Envelope) -> None:
    header, back = decoded(wire.encode(kind, envelope))
    assert back == envelope
    assert header.kind == kind
    assert header.payload_bytes == sum(spec.numel * wire.DTYPE_BYTES[spec.dtype] for spec in envelope.tensors)


def test_the_bytes_of_a_frame_are_those_in_the_documentation() -> None:
    """Byte for byte, so that another language's implementation can be held against it."""
    envelope = Envelope("r", 1, "w0", 1, 0, 5, [7, 0.5], (TensorSpec("gradient", "float32", 3),))
    meta = bytes.fromhex(
        "98 a172 01 a27730 01 00 05 92 07 cb3fe0000000000000 91 93 a86772616469656e74 a7666c6f61743332 03"
    )
    header = b"SMOL" + bytes([1, 20, 0, 0]) + len(meta).to_bytes(4, "big") + (12).to_bytes(8, "big")
    assert wire.encode(20, envelope) == header + meta
    text = (Path(__file__).parents[2] / "docs" / "wire_format.md").read_text()
    shown = "".join(line for line in text.splitlines() if line.startswith(("    53 4d 4f 4c", "    98 a1")))
    assert bytes.fromhex(shown.replace(" ", "")) == header + meta


good = Envelope("run", 1, "worker0", 1, 0, 0, [], (TensorSpec("gradient", "float32", 4),))
HEAD = wire.encode(18, good)[: HEADER.size]


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"X", "malformed"),
        (3, b"\x00", "malformed"),
        (4, b"\x00", "wrong version"),
        (4, b"\x02", "wrong version"),
        (6, b"\x00\x01", "wrong version"),
        (8, struct.pack("!I", MAX_META_BYTES + 1), "oversized"),
        (8, b"\xff" * 4, "oversized"),
        (12, struct.pack("!Q", LIMIT + 1), "oversized"),
        (12, struct.pack("!Q", 2**63), "oversized"),
        (12, b"\xff" * 8, "oversized"),
    ],
)
def test_a_bad_header_ends_the_stream(offset: int, value: bytes, reason: str) -> None:
    data = HEAD[:offset] + value + HEAD[offset + len(value) :]
    with pytest.raises(PeerProtocolError) as caught:
        wire.parse_header(data, LIMIT)
    assert (caught.value.reason, caught.value.fatal) == (reason, True)


def test_limits_are_inclusive() -> None:
    data = HEADER.pack(b"SMOL", 1, 18, 0, MAX_META_BYTES, LIMIT)
    assert wire.parse_header(data, LIMIT) == (18, MAX_META_BYTES, LIMIT)


PARTS: list[Any] = ["run", 1, "worker0", 1, 0, 0, [], [["gradient", "float32", 4]]]


def changed(index: int, value: Any) -> list[Any]:
    return [*PARTS[:index], value, *PARTS[index + 1 :]]


BAD_META: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "malformed"),
    "half of it": (msgpack.packb(PARTS)[:-3], "malformed"),
    "more behind it": (msgpack.packb(PARTS) + b"\x00", "malformed"),
    "reserved byte": (b"\xc1", "malformed"),
    "not utf-8": (b"\x98\xa2\xff\xfe" + msgpack.packb(PARTS)[5:], "malformed"),
    "a map": (msgpack.packb({"run": 1}), "malformed"),
    "a number": (msgpack.packb(7), "malformed"),
    "seven parts": (msgpack.packb(PARTS[:7]), "malformed"),
    "nine parts": (msgpack.packb([*PARTS, 0]), "malformed"),
    "binary data": (msgpack.packb(changed(6, [b"x"])), "malformed"),
    "an extension": (msgpack.packb(changed(6, [msgpack.ExtType(5, b"xyz")])), "malformed"),
    "a time": (msgpack.packb(changed(6, [msgpack.Timestamp(1, 2)])), "malformed"),
    "a map inside": (msgpack.packb(changed(6, [{"a": 1}])), "malformed"),
    "4097 numbers": (msgpack.packb(changed(6, [0] * 4097)), "malformed"),
    "announces 2^32 - 1 elements": (b"\xdd\xff\xff\xff\xff", "malformed"),
    "announces a text of 2^32 - 1 bytes": (b"\x98\xdb\xff\xff\xff\xff", "malformed"),
    "nested 30,000 deep": (b"\x91" * 30_000 + b"\x00", "malformed"),
    "run is a number": (msgpack.packb(changed(0, 5)), "malformed"),
    "run is too long": (msgpack.packb(changed(0, "r" * 257)), "malformed"),
    "sender is a list": (msgpack.packb(changed(2, ["worker0"])), "malformed"),
    "sender is nil": (msgpack.packb(changed(2, None)), "malformed"),
    "generation is a float": (msgpack.packb(changed(1, 1.0)), "malformed"),
    "generation is a truth value": (msgpack.packb(changed(1, True)), "malformed"),
    "generation is -2": (msgpack.packb(changed(1, -2)), "malformed"),
    "generation is 2^62": (msgpack.packb(changed(1, 2**62)), "malformed"),
    "joined is a text": (msgpack.packb(changed(3, "1")), "malformed"),
    "seq is -2": (msgpack.packb(changed(4, -2)), "malformed"),
    "seq is 2^64 - 1": (msgpack.packb(changed(4, 2**64 - 1)), "malformed"),
    "ack is nil": (msgpack.packb(changed(5, None)), "malformed"),
    "plain is a text": (msgpack.packb(changed(6, "x")), "malformed"),
    "tensors is a number": (msgpack.packb(changed(7, 3)), "malformed"),
    "nine tensors": (msgpack.packb(changed(7, PARTS[7] * 9)), "malformed"),
    "a tensor is a text": (msgpack.packb(changed(7, ["gradient"])), "malformed"),
    "a tensor of two parts": (msgpack.packb(changed(7, [["gradient", "float32"]])), "malformed"),
    "a layout that is a list": (msgpack.packb(changed(7, [[["gradient"], "float32", 4]])), "malformed"),
    "an unknown type": (msgpack.packb(changed(7, [["gradient", "float16", 8]])), "malformed"),
    "a type that is a list": (msgpack.packb(changed(7, [["gradient", [], 4]])), "malformed"),
    "a type that is a number": (msgpack.packb(changed(7, [["gradient", 4, 4]])), "malformed"),
    "a negative size": (msgpack.packb(changed(7, [["gradient", "float32", -4]])), "malformed"),
    "a size of 2^48": (msgpack.packb(changed(7, [["gradient", "float32", 2**48]])), "malformed"),
    "a size that is a float": (msgpack.packb(changed(7, [["gradient", "float32", 4.0]])), "malformed"),
    "no tensor for the payload": (msgpack.packb(changed(7, [])), "wrong size"),
    "a tensor too small": (msgpack.packb(changed(7, [["gradient", "float32", 3]])), "wrong size"),
    "a tensor too large": (msgpack.packb(changed(7, [["gradient", "float64", 4]])), "wrong size"),
    "two tensors where there is room for one": (msgpack.packb(changed(7, PARTS[7] * 2)), "wrong size"),
}


@pytest.mark.parametrize("what", BAD_META)
def test_a_bad_meta_part_is_refused_and_the_stream_goes_on(what: str) -> None:
    data, reason = BAD_META[what]
    with pytest.raises(PeerProtocolError) as caught:
        wire.parse_meta(memoryview(data), 16)
    assert (caught.value.reason, caught.value.fatal) == (reason, False)


def test_the_meta_that_the_variants_are_made_from_is_good() -> None:
    assert wire.parse_meta(msgpack.packb(PARTS), 16).tensors == (TensorSpec("gradient", "float32", 4),)


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        wire.parse_meta(data, 0)
    except PeerProtocolError as error:
        assert error.reason in ("malformed", "wrong size")


@given(envelopes.filter(lambda e: len(msgpack.packb([*e[:7], list(map(list, e.tensors))])) < 2000), st.data())
def test_any_bit_flip_is_parsed_or_refused(envelope: Envelope, data: st.DataObject) -> None:
    frame = bytearray(wire.encode(18, envelope))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        header = wire.parse_header(frame[: HEADER.size], LIMIT)
        wire.parse_meta(frame[HEADER.size : HEADER.size + header.meta_bytes], header.payload_bytes)
    except PeerProtocolError as error:
        assert error.reason in ("malformed", "wrong version", "oversized", "wrong size")


@pytest.mark.parametrize(
    "what", ["announces 2^32 - 1 elements", "announces a text of 2^32 - 1 bytes", "a size of 2^48"]
)
def test_nothing_is_allocated_for_what_is_only_announced(what: str) -> None:
    data, _ = BAD_META[what]
    tracemalloc.start()
    try:
        with pytest.raises(PeerProtocolError):
            wire.parse_meta(data, 16)
        with pytest.raises(PeerProtocolError):
            wire.parse_header(HEADER.pack(b"SMOL", 1, 18, 0, 2**32 - 1, 2**63), LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000


def test_we_do_not_send_what_nobody_would_take() -> None:
    with pytest.raises(LocalProtocolError, match=r"frame of kind 18: meta part of \d+ bytes \(limit 65536\)"):
        wire.encode(18, good._replace(plain=["x" * MAX_META_BYTES]))


def test_overhead_of_tls() -> None:
    assert [wire.tls_overhead(n) for n in (0, 1, 16384, 16385, 1 << 20)] == [0, 22, 22, 44, 64 * 22]


def test_total() -> None:
    assert wire.total([TensorSpec("a", "float64", 3), TensorSpec("b", "uint8", 5), TensorSpec("c", "float32", 2)]) == 37
