"""Preallocated memory that payloads are received into, handed back by itself when nobody uses it any more."""

from __future__ import annotations

import queue
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

from smolcluster.comms.wire import DTYPE_BYTES, TensorSpec
from smolcluster.errors import PeerProtocolError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Layout(NamedTuple):
    """Type and size of a kind of tensor, agreed at join (``gradient``: float32, num_params elements)."""

    dtype: str
    numel: int
    dense_bytes: int | None = None
    """What it stands for would take so many bytes without compression; None: it is not compressed."""

    @property
    def saved_bytes(self) -> int:
        """Bytes that compression saves each time it travels."""
        return 0 if self.dense_bytes is None else self.dense_bytes - self.num_bytes

    @property
    def num_bytes(self) -> int:
        return self.numel * DTYPE_BYTES[self.dtype]


def verify(spec: TensorSpec, layouts: dict[str, Layout]) -> Layout:
    """The agreed layout of an announced tensor; PeerProtocolError before a single byte of it is allocated."""
    layout = layouts.get(spec.layout)
    if layout is None:
        raise PeerProtocolError("unknown layout", f"tensor {spec.layout!r} (known: {sorted(layouts)})")
    if (layout.dtype, layout.numel) != (spec.dtype, spec.numel):
        got, agreed = f"{spec.dtype}[{spec.numel}]", f"{layout.dtype}[{layout.numel}]"
        raise PeerProtocolError("wrong shape", f"{spec.layout} must be {agreed}, got {got}")
    return layout


class BufferPool:
    """At most ``limit`` buffers of one layout, made when first needed.

    A buffer that was taken comes back when the last tensor on it is gone (tensors keep the array that they
    were made from alive). So a message may be kept as long as one likes, and memory stays bounded: who
    keeps all of them stops the sender. Any thread may take.
    """

    def __init__(self, layout: Layout, limit: int) -> None:
        self.layout, self.limit = layout, limit
        self._made = 0
        self._lock = threading.Lock()
        # SimpleQueue.put may be called from a finaliser that runs at any moment; other queues may not.
        self._free: queue.SimpleQueue[NDArray[np.generic]] = queue.SimpleQueue()

    def take(self, within: float) -> NDArray[np.generic] | None:
        """A buffer (contents undefined); None when none has come back after ``within`` seconds."""
        base = self._next(within)
        if base is None:
            return None
        lent = base.view()
        weakref.finalize(lent, self._free.put, base).atexit = False
        return lent

    def _next(self, within: float) -> NDArray[np.generic] | None:
        import numpy as np

        try:
            return self._free.get_nowait()
        except queue.Empty:
            pass
        with self._lock:
            if self._made < self.limit:
                self._made += 1
                return np.empty(self.layout.numel, dtype=self.layout.dtype)
        try:
            return self._free.get(timeout=within)
        except queue.Empty:
            return None


def as_tensor(array: NDArray[np.generic]) -> Tensor:
    """The tensor on a lent buffer; it keeps the buffer lent."""
    import torch

    return torch.from_numpy(array)


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.detach().numpy().reshape(-1)).cast("B")  # type: ignore[arg-type]
