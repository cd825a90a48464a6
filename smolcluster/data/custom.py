"""The user's own data: a function that returns a training and a validation part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from smolcluster.data import packing, target
from smolcluster.data import tokenizer as tokenizers
from smolcluster.data.corpus import Texts, of_streams, required_length, token_dataset
from smolcluster.data.dataset import Context, DataInfo, Dataset, Features
from smolcluster.errors import DataError, Problem
from smolcluster.spec.schema import Importable, LocalPath, Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smolcluster.spec.run import RunSpec

SHAPES = (
    "must return (train, validation), each either a pair of arrays or tensors (inputs [n, ...], targets [n] of whole "
    "numbers), or a list of texts, or a list of documents that are lists of token ids"
)


@dataclass(frozen=True, kw_only=True)
class Custom:
    """What ``target(**kwargs)`` returns: two parts, each (inputs, targets), or texts, or lists of token ids."""

    kind: ClassVar[str] = "any"

    target: Annotated[str, Importable()]
    """The function, as package.module:function; it must be importable, and return the same, on every node."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""
    tokenizer: Annotated[str, LocalPath()] = "bpe:512"
    """For texts: a hub name, a local folder with tokenizer.json, bytes, or bpe:<n> (trained on the training texts)."""
    num_samples: Annotated[int | None, Range(ge=1, unit="samples")] = None
    """Use only the first so many training samples; null: all."""
    epochs: Annotated[int | None, Range(ge=1, unit="epochs")] = None
    """Passes over the training set where train.epochs is null; null: one of the two must be set."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        yield from target.problems("data.target", self.target)
        yield from tokenizers.problems(self.tokenizer)

    def missing(self) -> Iterable[Problem]:
        yield from target.missing("data.target", self.target)
        yield from tokenizers.missing(self.tokenizer)

    def load(self, context: Context) -> Dataset:
        """The data set; DataError, with the rule, where the function returns something else."""
        parts = target.call("data.target", self.target, self.kwargs)
        if not isinstance(parts, (tuple, list)) or len(parts) != 2:
            raise self._wrong(SHAPES, _shown(parts))
        if all(_is_pair(part) for part in parts):
            return self._features(parts)
        if all(_all(part, str) for part in parts):
            return self._texts(Texts(*map(list, parts)), context)
        if all(_all(part, (list, tuple)) or _all_arrays(part) for part in parts):
            return self._ids(parts, context)
        raise self._wrong(SHAPES, " and ".join(map(_shown, parts)))

    def _features(self, pairs: Sequence[Any]) -> Dataset:
        parts = [self._feature_part(*pair) for pair in pairs]
        shapes = [part.inputs.shape[1:] for part in parts]
        if shapes[0] != shapes[1]:
            raise self._wrong("inputs of training and validation must have one shape", f"{shapes[0]} and {shapes[1]}")
        num_classes = 1 + max(int(part.targets.max(initial=0)) for part in parts)
        info = DataInfo(kind="features", input_shape=shapes[0], num_classes=num_classes)
        return Dataset.of(parts, info, num_samples=self.num_samples)

    def _feature_part(self, inputs: Any, targets: Any) -> Features:
        import numpy as np

        x, y = _array(inputs), _array(targets)
        if x.ndim < 2 or x.dtype.kind not in "fiub":
            raise self._wrong("inputs must be numbers of shape [n, ...]", f"{x.dtype} {x.shape}")
        if y.shape != x.shape[:1]:
            raise self._wrong(f"targets must have shape {x.shape[:1]}, one per input", f"shape {y.shape}")
        if y.dtype.kind not in "iub" or y.min(initial=0) < 0:
            raise self._wrong("targets must be whole numbers from 0", f"{y.dtype}, smallest {y.min(initial=0)}")
        if not np.isfinite(x).all():
            raise self._wrong("inputs must be finite", "inf or nan")
        return Features(inputs=x, targets=y)

    def _texts(self, texts: Texts, context: Context) -> Dataset:
        return token_dataset(
            option="custom",
            key=[hashlib.sha256(json.dumps(texts).encode()).hexdigest()],
            read=lambda: texts,
            tokenizer=self.tokenizer,
            num_samples=self.num_samples,
            context=context,
        )

    def _ids(self, lists: Sequence[Any], context: Context) -> Dataset:
        """Documents of ready token ids; one id above the highest is made the end of a document."""
        seq_length = required_length("custom", context)
        parts = [[self._document(ids) for ids in part] for part in lists]
        end = 1 + max((int(ids.max()) for part in parts for ids in part if len(ids)), default=0)
        streams = [packing.pack(part, end, end + 1) for part in parts]
        return of_streams(streams, end + 1, seq_length, self.num_samples, None)

    def _document(self, ids: Any) -> NDArray[Any]:
        import numpy as np

        document = _array(ids)
        if not len(document):
            return np.empty(0, dtype=np.int64)
        if document.ndim != 1 or document.dtype.kind not in "iu" or document.min() < 0:
            raise self._wrong("a document must be a list of whole numbers from 0", _shown(ids))
        return document

    def _wrong(self, rule: str, got: str) -> DataError:
        return DataError(f"data.target={self.target}: {rule}; got {got}")


def _array(value: Any) -> NDArray[Any]:
    """An array, or a tensor on any device, as a numpy array."""
    import numpy as np

    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _is_pair(part: Any) -> bool:
    """(inputs, targets), and not a list of two documents."""
    return _all_arrays(part) and len(part) == 2 and (isinstance(part, tuple) or part[0].ndim > 1)


def _all_arrays(part: Any) -> bool:
    return isinstance(part, (tuple, list)) and bool(part) and all(hasattr(item, "shape") for item in part)


def _all(part: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(part, (tuple, list)) and bool(part) and all(isinstance(item, kinds) for item in part)


def _shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(item).__name__ for item in value[:3])})"
    return f"a {type(value).__name__}"
