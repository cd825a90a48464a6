"""The wire format: a fixed header, a small msgpack part, raw tensor bytes. No sockets here, and no pickle.

A frame (docs/wire_format.md)::

    0      4        5      6       8           12             20
    | SMOL | version | kind | flags | meta bytes | payload bytes | meta (msgpack) | payload |

All numbers are big-endian; lengths are 64-bit where a payload is meant. ``kind`` is a message code, or one
of the control frames below. The meta part is a list of eight: run id, generation, sender, the generation
that the sender joined in, sequence number, acknowledged sequence number, plain fields, and the tensors that
follow as (layout, type, number of elements). Sizes are checked against what was agreed at join *before*
anything is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from smolcluster.errors import LocalProtocolError, PeerProtocolError

MAGIC = b"SMOL"
VERSION = 1
HEADER = struct.Struct("!4sBBHIQ")
MAX_META_BYTES = 64 * 1024
"""The largest meta part. Ours stay under 1 KB; a list field of 4,096 numbers would take 36 KB."""

HELLO, WELCOME, HEARTBEAT, REFUSED, GOODBYE = 1, 2, 3, 4, 5
"""Control frames: who dials and where to resume; accepted; alive and acknowledging; not accepted; going away."""
CONTROL = frozenset({HELLO, WELCOME, HEARTBEAT, REFUSED, GOODBYE})

DTYPE_BYTES = {"float32": 4, "float64": 8, "uint8": 1}
"""The element types that may travel."""


class Header(NamedTuple):
    """The fixed part of a frame."""

    kind: int
    meta_bytes: int
    payload_bytes: int


class TensorSpec(NamedTuple):
    """What a frame says of a tensor that follows."""

    layout: str
    dtype: str
    numel: int

    @property
    def num_bytes(self) -> int:
        return self.numel * DTYPE_BYTES[self.dtype]


class Envelope(NamedTuple):
    """The meta part of a frame."""

    run: str
    generation: int
    sender: str
    joined: int
    seq: int
    ack: int
    plain: list[Any]
    tensors: tuple[TensorSpec, ...] = ()


def encode(kind: int, envelope: Envelope) -> bytes:
    """Header and meta of a frame; the payload goes behind them as it is."""
    meta: bytes = msgpack.packb([*envelope[:7], [list(spec) for spec in envelope.tensors]], use_bin_type=True)
    if len(meta) > MAX_META_BYTES:
        raise LocalProtocolError(f"frame of kind {kind}: meta part of {len(meta)} bytes (limit {MAX_META_BYTES})")
    payload = sum(spec.num_bytes for spec in envelope.tensors)
    return HEADER.pack(MAGIC, VERSION, kind, 0, len(meta), payload) + meta


def parse_header(data: bytes | bytearray | memoryview, max_payload_bytes: int) -> Header:
    """The header in the first 20 bytes; every fault is fatal, since the next frame could not be found."""
    magic, version, kind, flags, meta_bytes, payload_bytes = HEADER.unpack(data)
    if magic != MAGIC:
        raise PeerProtocolError("malformed", f"frame starts with {bytes(magic)!r}, not {MAGIC!r}", fatal=True)
    if version != VERSION or flags != 0:
        raise PeerProtocolError("wrong version", f"version {version}, flags {flags} (we speak {VERSION})", fatal=True)
    if meta_bytes > MAX_META_BYTES:
        raise PeerProtocolError("oversized", f"meta part of {meta_bytes} bytes (limit {MAX_META_BYTES})", fatal=True)
    if payload_bytes > max_payload_bytes:
        detail = f"payload of {payload_bytes} bytes (limit {max_payload_bytes})"
        raise PeerProtocolError("oversized", detail, fatal=True)
    return Header(kind, meta_bytes, payload_bytes)


def parse_meta(data: bytes | bytearray | memoryview, payload_bytes: int) -> Envelope:
    """The checked meta part. Types and bounds are certain afterwards; what they mean is for others to judge."""
    try:
        parts = msgpack.unpackb(
            data, raw=False, strict_map_key=True, max_array_len=4096, max_map_len=0, max_ext_len=0, max_bin_len=0
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise PeerProtocolError("malformed", f"meta part is not msgpack: {error}") from None
    if type(parts) is not list or len(parts) != 8:
        raise PeerProtocolError("malformed", "meta part is not a list of eight")
    run, generation, sender, joined, seq, ack, plain, raw_tensors = parts
    texts, numbers = (run, sender), (generation, joined, seq, ack)
    if not all(type(text) is str and len(text) <= 256 for text in texts):
        raise PeerProtocolError("malformed", "run id and sender must be texts of at most 256 characters")
    if not all(type(number) is int and -1 <= number < 2**62 for number in numbers):
        raise PeerProtocolError("malformed", "generation, joined, seq and ack must be whole numbers")
    if type(plain) is not list or type(raw_tensors) is not list or len(raw_tensors) > 8:
        raise PeerProtocolError("malformed", "plain fields and tensors must be lists")
    tensors = tuple(_tensor_spec(raw) for raw in raw_tensors)
    if sum(spec.num_bytes for spec in tensors) != payload_bytes:
        raise PeerProtocolError("wrong size", f"{payload_bytes} payload bytes do not hold {list(tensors)}")
    return Envelope(run, generation, sender, joined, seq, ack, plain, tensors)


def _tensor_spec(raw: Any) -> TensorSpec:
    if type(raw) is list and len(raw) == 3:
        layout, dtype, numel = raw
        known = type(layout) is str and type(dtype) is str and dtype in DTYPE_BYTES
        if known and type(numel) is int and 0 <= numel < 2**48:
            return TensorSpec(layout, dtype, numel)
    raise PeerProtocolError("malformed", "a tensor is described by [layout, type, number of elements]")


def tls_overhead(num_bytes: int) -> int:
    """Bytes that TLS 1.3 adds to ``num_bytes`` written at once: 22 for each record of at most 16 KiB."""
    return 22 * -(-num_bytes // 16384)


def total(specs: Sequence[TensorSpec]) -> int:
    """Payload bytes of these tensors."""
    return sum(spec.num_bytes for spec in specs)
