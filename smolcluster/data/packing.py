"""Documents to one stream of tokens: end-of-document, document, end-of-document, document ... end-of-document.

The stream begins with an end, so that every token of every document, the first included, is somebody's
successor: :class:`~smolcluster.data.dataset.Blocks` predicts each exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack(documents: Iterable[NDArray[Any]], eos_id: int, vocab_size: int) -> NDArray[Any]:
    """The stream, as uint16 where every id fits and as int32 otherwise; empty documents leave no trace."""
    import numpy as np

    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    end = np.asarray([eos_id], dtype=dtype)
    pieces = [end]
    for ids in documents:
        if len(ids):
            pieces += [ids.astype(dtype), end]
    return np.concatenate(pieces)
