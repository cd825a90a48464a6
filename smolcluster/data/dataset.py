"""What a data set is to the rest of the house: two sets of samples, what they look like, and a fingerprint.

Samples come in two kinds. *Features* are arrays with one label each; *tokens* are a stream of text from which
every sample is a block. Both give a batch as a pair of numpy arrays, gathered without a loop over samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from smolcluster.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smolcluster.data.tokenizer import Tokenizer

IGNORE = -100
"""Target of a position that must not count: torch's own ``ignore_index``."""


class Batch(NamedTuple):
    """``inputs`` are float32 (features) or int64 (tokens), ``targets`` int64; :data:`IGNORE` where there is none."""

    inputs: NDArray[Any]
    targets: NDArray[Any]


class Samples(Protocol):
    """Numbered samples, ``0 .. len - 1``. Reading changes nothing: any number of threads may gather."""

    def __len__(self) -> int: ...

    def batch(self, ids: Sequence[int] | NDArray[Any]) -> Batch:
        """The samples with these ids, in this order."""

    def first(self, num_samples: int) -> Samples:
        """The first so many samples (all, where there are fewer)."""

    def parts(self) -> tuple[tuple[str, NDArray[Any]], ...]:
        """(description, array) of everything that decides what :meth:`batch` returns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Arrays with labels. ``inputs`` may be stored as small integers; a batch is ``inputs / divisor`` in float32."""

    inputs: NDArray[Any]  # [n, ...]
    targets: NDArray[Any]  # [n]
    divisor: float = 1.0

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, ids: Sequence[int] | NDArray[Any]) -> Batch:
        import numpy as np

        inputs = self.inputs[ids].astype(np.float32)
        if self.divisor != 1:
            inputs /= np.float32(self.divisor)
        return Batch(inputs, self.targets[ids].astype(np.int64))

    def first(self, num_samples: int) -> Features:
        return Features(inputs=self.inputs[:num_samples], targets=self.targets[:num_samples], divisor=self.divisor)

    def parts(self) -> tuple[tuple[str, NDArray[Any]], ...]:
        return (f"inputs / {self.divisor!r}", self.inputs), ("targets", self.targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """A stream of tokens, cut into blocks of ``seq_length`` that overlap by one token.

    Block ``i`` reads ``stream[i * seq_length : (i + 1) * seq_length]`` and predicts each token's successor, so
    every token but the first is a target exactly once. The last block may reach past the end of the
    stream: its inputs repeat the last token there, and the targets are :data:`IGNORE`.
    """

    stream: NDArray[Any]  # [num_tokens], uint16 or int32
    seq_length: int

    def __len__(self) -> int:
        return max(0, -(-(len(self.stream) - 1) // self.seq_length))

    def batch(self, ids: Sequence[int] | NDArray[Any]) -> Batch:
        import numpy as np

        last = len(self.stream) - 1
        starts = np.asarray(ids, dtype=np.int64)[:, None] * self.seq_length
        positions = starts + np.arange(self.seq_length + 1)  # [batch, seq_length + 1]
        tokens = self.stream[np.minimum(positions, last)].astype(np.int64)
        targets = np.where(positions[:, 1:] <= last, tokens[:, 1:], IGNORE)
        return Batch(np.ascontiguousarray(tokens[:, :-1]), targets)

    def first(self, num_samples: int) -> Blocks:
        return Blocks(stream=self.stream[: num_samples * self.seq_length + 1], seq_length=self.seq_length)

    def parts(self) -> tuple[tuple[str, NDArray[Any]], ...]:
        return ((f"blocks of {self.seq_length}", self.stream),)


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a model must know of the data: the shape of one input, and how many classes or tokens there are."""

    kind: Literal["features", "tokens"]
    input_shape: tuple[int, ...]
    num_classes: int | None = None
    vocab_size: int | None = None
    seq_length: int | None = None

    @property
    def num_outputs(self) -> int:
        """Size of the last dimension of the logits."""
        return self.num_classes or self.vocab_size or 0


@dataclass(frozen=True, kw_only=True)
class Context:
    """What loading depends on besides the data component itself.

    ``cache`` is a folder that outlives the run and may be shared by processes; ``say`` takes a line for a
    person who waits.
    """

    seq_length: int | None
    seed: int
    cache: Path
    say: Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A training and a validation part; ``fingerprint`` is equal on two nodes iff they read the same samples."""

    train: Samples
    validation: Samples
    info: DataInfo
    fingerprint: str
    tokenizer: Tokenizer | None = None

    @classmethod
    def of(
        cls,
        parts: Sequence[Samples],
        info: DataInfo,
        *,
        num_samples: int | None,
        tokenizer: Tokenizer | None = None,
    ) -> Dataset:
        """The finished data set of (train, validation): ``train`` cut to ``num_samples``, no part empty."""
        train, validation = parts
        train = train if num_samples is None else train.first(num_samples)
        for name, part in (("training", train), ("validation", validation)):
            if not len(part):
                raise DataError(f"the {name} set is empty: at least one sample (two tokens of text) is needed")
        digest = fingerprint(info, train, validation)
        return cls(train=train, validation=validation, info=info, fingerprint=digest, tokenizer=tokenizer)


def fingerprint(info: DataInfo, *parts: Samples) -> str:
    """sha256 (hex) over the description and the content of ``parts``, independent of byte order and storage."""
    import numpy as np

    digest = hashlib.sha256(repr(info).encode())
    for samples in parts:
        for description, array in samples.parts():
            little = array.dtype.newbyteorder("<")
            digest.update(f"{description} {little.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype=little).reshape(-1).data)
    return digest.hexdigest()
