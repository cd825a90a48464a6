import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from smolcluster.data.dataset import Context, Dataset
from smolcluster.data.digits import Digits, _table
from smolcluster.errors import DataError

COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
"""Scans of each digit, as scikit-learn documents them."""


def everything(found: Dataset) -> tuple[np.ndarray, np.ndarray]:
    parts = [part.batch(np.arange(len(part))) for part in (found.train, found.validation)]
    return np.concatenate([part.inputs for part in parts]), np.concatenate([part.targets for part in parts])


def test_all_scans_are_there_once(context: Context) -> None:
    found = Digits().load(context)
    inputs, targets = everything(found)
    assert (len(found.train), len(found.validation)) == (1438, 359)
    assert [Counter(targets.tolist())[digit] for digit in range(10)] == COUNTS
    table = _table()
    rows = sorted(map(tuple, (inputs * 16).astype(int).tolist()))
    assert rows == sorted(map(tuple, table[:, :64].tolist()))
    assert (inputs.min(), inputs.max(), inputs.dtype) == (0.0, 1.0, np.float32)


def test_the_values_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    np.testing.assert_array_equal(_table(), np.column_stack([pixels, digits]))


def test_the_split_is_shuffled_and_never_changes(context: Context) -> None:
    first, again = Digits().load(context), Digits().load(replace(context, seed=7))
    assert first.fingerprint == again.fingerprint
    assert set(first.train.batch(np.arange(100)).targets.tolist()) == set(range(10))
    assert first.train.batch(range(8)).targets.tolist() != _table()[:8, 64].tolist()


def test_num_samples_takes_the_first_after_the_split(context: Context) -> None:
    whole, part = Digits().load(context), Digits(num_samples=10).load(context)
    assert (len(part.train), len(part.validation)) == (10, 359)
    np.testing.assert_array_equal(part.train.batch(range(10)).inputs, whole.train.batch(range(10)).inputs)
    assert part.fingerprint != whole.fingerprint


@pytest.mark.parametrize(("share", "num_held"), [(0.5, 898), (0.0001, 1)])
def test_the_share_held_out(context: Context, share: float, num_held: int) -> None:
    assert len(Digits(validation_share=share).load(context).validation) == num_held


def test_what_a_model_is_told(context: Context) -> None:
    info = Digits().load(context).info
    assert (info.kind, info.input_shape, info.num_classes, info.seq_length) == ("features", (64,), 10, None)


def test_scikit_learn_is_not_imported() -> None:
    code = (
        "import sys; from smolcluster.data.digits import _table; assert _table().shape == (1797, 65); "
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_scikit_learn(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        Digits().load(context)
