"""scikit-learn's handwritten digits: 1,797 real scans of 8 x 8 pixels, on every machine that can run this.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (the test part). Read straight
from the file that scikit-learn ships, without importing scikit-learn.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from smolcluster.data.dataset import Context, DataInfo, Dataset, Features
from smolcluster.errors import DataError, Problem
from smolcluster.spec.schema import Range
from smolcluster.spec.seeds import derive

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smolcluster.spec.run import RunSpec

NUM_PIXELS = 64
BRIGHTEST = 16
"""A pixel counts the dots that are set in a square of 4 x 4."""


@dataclass(frozen=True, kw_only=True)
class Digits:
    """8 x 8 scans of handwritten digits, inputs of 64 values in 0..1, ten classes."""

    kind: ClassVar[str] = "features"

    validation_share: Annotated[float, Range(gt=0, lt=1, unit="of all samples")] = 0.2
    """Held out for validation, drawn in an order that never changes."""
    num_samples: Annotated[int | None, Range(ge=1, unit="samples")] = None
    """Use only the first so many training samples; null: all."""
    epochs: Annotated[int | None, Range(ge=1, unit="epochs")] = 40
    """Passes over the training set where train.epochs is null."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def load(self, context: Context) -> Dataset:
        """The data set; some 30 ms."""
        import numpy as np

        table = _table()
        order = np.random.Generator(np.random.Philox(key=derive(0, "digits"))).permutation(len(table))
        num_held = max(1, round(self.validation_share * len(table)))
        parts = [
            Features(inputs=table[ids, :NUM_PIXELS], targets=table[ids, NUM_PIXELS], divisor=BRIGHTEST)
            for ids in (order[num_held:], order[:num_held])
        ]
        info = DataInfo(kind="features", input_shape=(NUM_PIXELS,), num_classes=10)
        return Dataset.of(parts, info, num_samples=self.num_samples)


def _table() -> NDArray[Any]:
    """One row per scan, shape ``[1797, 65]``, uint8: the pixels and the digit."""
    import numpy as np

    found = importlib.util.find_spec("sklearn")
    path = Path(found.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if found else None
    if path is None or not path.is_file():
        raise DataError("data=digits: scikit-learn's digits.csv.gz is not there; pip install scikit-learn")
    text = gzip.decompress(path.read_bytes()).replace(b"\n", b",").rstrip(b",")
    return np.fromstring(text, dtype=np.uint8, sep=",").reshape(-1, NUM_PIXELS + 1)
