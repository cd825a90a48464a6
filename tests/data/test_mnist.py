import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smolcluster.data import hub
from smolcluster.data.dataset import Context
from smolcluster.data.mnist import MNIST
from smolcluster.errors import DataError
from tests.real_data import REAL, with_real


def picture(value: int, size: tuple[int, int] = (28, 28)) -> bytes:
    pixels = np.full(size, value, dtype=np.uint8)
    pixels[0, 1] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def struct(value: int, size: tuple[int, int] = (28, 28)) -> dict[str, object]:
    return {"bytes": picture(value, size), "path": None}


@pytest.fixture
def plain(tmp_path: Path, write: Callable[..., None]) -> Path:
    """Images as a struct of bytes and path, without a word on what they are."""
    folder = tmp_path / "plain"
    write(folder / "train.parquet", image=[struct(10), struct(20), struct(30)], label=[1, 2, 3])
    write(folder / "test.parquet", image=[struct(40)], label=[4])
    return folder


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Images as the ``datasets`` library writes them, under the hub's names of files."""
    import datasets

    folder = tmp_path / "annotated"

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    folder.joinpath("mnist").mkdir(parents=True)
    for part, values in (("train", [10, 20, 30]), ("test", [40])):
        images = [Image.open(io.BytesIO(picture(value))) for value in values]
        rows = datasets.Dataset.from_dict({"image": images, "label": [v // 10 for v in values]}, features=features)
        rows.to_parquet(folder / "mnist" / f"{part}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("layout", ["plain", "annotated"])
def test_images_and_labels(layout: str, context: Context, request: pytest.FixtureRequest) -> None:
    found = MNIST(path=str(request.getfixturevalue(layout))).load(context)
    inputs, targets = found.train.batch([2, 0])
    assert inputs.shape == (2, 28, 28)
    assert inputs[:, 5, 5].tolist() == pytest.approx([30 / 255, 10 / 255])
    assert inputs[:, 0, 1].tolist() == [1.0, 1.0]
    assert targets.tolist() == [3, 1]
    assert found.validation.batch([0]).targets.tolist() == [4]
    assert (found.info.kind, found.info.input_shape, found.info.num_classes) == ("features", (28, 28), 10)


def test_the_second_start_reads_arrays(context: Context, plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = MNIST(path=str(plain))
    first = data.load(context)
    monkeypatch.setattr(hub, "splits", None)
    assert data.load(context).fingerprint == first.fingerprint


def test_a_changed_copy_is_read_again(context: Context, plain: Path, write: Callable[..., None]) -> None:
    first = MNIST(path=str(plain)).load(context)
    write(plain / "test.parquet", image=[struct(50)], label=[5])
    os.utime(plain / "test.parquet", ns=(1, 1))
    second = MNIST(path=str(plain)).load(context)
    assert second.validation.batch([0]).targets.tolist() == [5]
    assert second.fingerprint != first.fingerprint


def test_num_samples(context: Context, plain: Path) -> None:
    found = MNIST(path=str(plain), num_samples=2).load(context)
    assert (len(found.train), len(found.validation)) == (2, 1)


def test_images_of_another_size_are_refused(context: Context, plain: Path, write: Callable[..., None]) -> None:
    write(plain / "train.parquet", image=[struct(10, (8, 8))], label=[1])
    with pytest.raises(DataError, match=r"data=mnist: train image 0 is \(8, 8\) L, must be \(28, 28\) L"):
        MNIST(path=str(plain)).load(context)


def test_a_missing_column_or_split_is_named(context: Context, plain: Path, write: Callable[..., None]) -> None:
    for part in ("train", "test"):
        write(plain / f"{part}.parquet", picture=[struct(10)], label=[1])
    with pytest.raises(DataError, match=r"split 'train' has no column \['image'\] \(found: \['picture', 'label'\]\)"):
        MNIST(path=str(plain)).load(context)
    (plain / "test.parquet").unlink()
    write(plain / "train.parquet", image=[struct(10)], label=[1])
    with pytest.raises(DataError, match=r"has no split 'test' \(found: train\)"):
        MNIST(path=str(plain)).load(context)


@pytest.mark.usefixtures("no_hub")
def test_without_a_network(context: Context) -> None:
    with pytest.raises(DataError, match=r"^data=mnist \(ylecun/mnist\): .*out of reach.*data=digits"):
        MNIST().load(context)


@with_real("mnist")
def test_the_real_images(context: Context) -> None:
    found = MNIST(path=str(REAL / "mnist")).load(context)
    assert (len(found.train), len(found.validation)) == (8000, 2000)
    inputs, targets = found.train.batch(np.arange(8000))
    assert 0.12 < inputs.mean() < 0.14
    assert np.bincount(targets, minlength=10).min() > 600
