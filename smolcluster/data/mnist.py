"""MNIST: 70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes, Burges), from the hub or a local copy.

Decoded once; later starts read arrays from the cache and need neither the network nor an image library.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from smolcluster.data import cache, hub
from smolcluster.data.dataset import Context, DataInfo, Dataset, Features
from smolcluster.errors import DataError, Problem
from smolcluster.spec.schema import LocalPath, Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smolcluster.spec.run import RunSpec

NAME = "ylecun/mnist"
SHAPE = (28, 28)
PARTS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class MNIST:
    """28 x 28 handwritten digits, inputs in 0..1, ten classes; validation is the official test set."""

    kind: ClassVar[str] = "features"

    path: Annotated[str | None, LocalPath()] = None
    """A local copy: a folder in the hub's layout, or with train.parquet and test.parquet; null: the hub."""
    revision: str = "main"
    """Branch, tag or commit of the hub's data set; what has been read once is not asked for again."""
    num_samples: Annotated[int | None, Range(ge=1, unit="samples")] = None
    """Use only the first so many training samples; null: all."""
    epochs: Annotated[int | None, Range(ge=1, unit="epochs")] = 2
    """Passes over the training set where train.epochs is null."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def missing(self) -> Iterable[Problem]:
        return hub.missing("data.path", self.path)

    def load(self, context: Context) -> Dataset:
        """The data set, decoded images from the cache where they are there."""
        import numpy as np

        key = cache.identity(Path(self.path).expanduser()) if self.path else [NAME, self.revision]
        entry = cache.entry("mnist", key, context, lambda folder: self._decode(folder, context))
        parts = [
            Features(
                inputs=np.load(entry / f"{part}-images.npy", mmap_mode="r"),
                targets=np.load(entry / f"{part}-labels.npy"),
                divisor=255.0,
            )
            for part in PARTS
        ]
        info = DataInfo(kind="features", input_shape=SHAPE, num_classes=10)
        return Dataset.of(parts, info, num_samples=self.num_samples)

    def _decode(self, folder: Path, context: Context) -> None:
        import numpy as np

        columns = dict.fromkeys(PARTS, ("image", "label"))
        found = hub.splits(
            NAME, option="mnist", columns=columns, context=context, revision=self.revision, path=self.path
        )
        for part, (images, labels) in zip(PARTS, found, strict=True):
            context.say(f"data=mnist: decoding {len(labels)} images")
            np.save(folder / f"{part}-images.npy", _pixels(images, part))
            np.save(folder / f"{part}-labels.npy", np.asarray(labels, dtype=np.uint8))


def _pixels(images: Any, part: str) -> NDArray[Any]:
    """Shape ``[n, 28, 28]``, uint8."""
    import numpy as np
    from PIL import Image

    pixels = np.empty((len(images), *SHAPE), dtype=np.uint8)
    for i, found in enumerate(images):
        image = Image.open(io.BytesIO(found["bytes"])) if isinstance(found, dict) else found
        if image.size != SHAPE or image.mode != "L":
            raise DataError(f"data=mnist: {part} image {i} is {image.size} {image.mode}, must be {SHAPE} L (grey)")
        pixels[i] = np.asarray(image)
    return pixels
