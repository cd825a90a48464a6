from pathlib import Path

import numpy as np
import pytest
import torch

from smolcluster.data.custom import Custom
from smolcluster.data.dataset import Context, Dataset
from smolcluster.errors import DataError

X, Y = np.arange(12, dtype=np.float64).reshape(4, 3), np.array([0, 1, 2, 1])


@pytest.fixture
def load(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The data set of a function that returns what the test gives it."""
    (tmp_path / "their_data.py").write_text("given = None\ndef read(extra=None):\n    return given\n")
    monkeypatch.syspath_prepend(tmp_path)
    import importlib
    import sys

    monkeypatch.delitem(sys.modules, "their_data", raising=False)
    module = importlib.import_module("their_data")

    def run(given: object, **fields: object) -> Dataset:
        module.given = given  # type: ignore[attr-defined]
        return Custom(target="their_data:read", **fields).load(context)  # type: ignore[arg-type]

    return run


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_arrays_and_tensors(load, convert) -> None:  # type: ignore[no-untyped-def]
    found = load(((convert(X), convert(Y)), (convert(X[:1]), convert(Y[:1]))), num_samples=3, kwargs={"extra": 1})
    inputs, targets = found.train.batch([2, 0])
    assert inputs.tolist() == X[[2, 0]].tolist()
    assert (inputs.dtype, targets.tolist()) == (np.float32, [2, 0])
    assert (len(found.train), len(found.validation)) == (3, 1)
    assert (found.info.kind, found.info.input_shape, found.info.num_classes) == ("features", (3,), 3)


def test_texts(load) -> None:  # type: ignore[no-untyped-def]
    found = load((["ab", "c"], ["d"]), tokenizer="bytes")
    assert found.train.batch([0]).inputs[0, :6].tolist() == [256, 97, 98, 256, 99, 256]
    assert found.info.vocab_size == 257
    assert load((["ab", "d"], ["d"]), tokenizer="bytes").fingerprint != found.fingerprint


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_token_ids(load, kind) -> None:  # type: ignore[no-untyped-def]
    found = load(([kind([3, 1]), kind([2])], [kind([4, 4])]))
    assert found.train.batch([0]).inputs[0, :4].tolist() == [5, 3, 1, 5]
    assert (found.info.vocab_size, found.info.seq_length, found.tokenizer) == (6, 16, None)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (None, r"must return \(train, validation\).*got a NoneType"),
        ((X, Y, X), r"must return \(train, validation\).*got a tuple of 3 \(ndarray, ndarray, ndarray\)"),
        (((X, Y), ["text"]), r"must return \(train, validation\)"),
        ((["text"], []), r"must return \(train, validation\).*and a list of 0 \(\)"),
        (((X, Y[:2]), (X, Y)), r"targets must have shape \(4,\), one per input; got shape \(2,\)"),
        (((X, Y - 1), (X, Y)), r"targets must be whole numbers from 0; got int64, smallest -1"),
        (((X, Y / 2), (X, Y)), r"targets must be whole numbers from 0; got float64"),
        (((X[:, 0], Y), (X, Y)), r"inputs must be numbers of shape \[n, \.\.\.\]; got float64 \(4,\)"),
        (((X.astype(str), Y), (X, Y)), r"inputs must be numbers of shape"),
        (((X + np.inf, Y), (X, Y)), r"inputs must be finite"),
        (((X, Y), (X[:, :2], Y)), r"one shape; got \(3,\) and \(2,\)"),
        (([[1, 2.5]], [[1]]), r"a document must be a list of whole numbers from 0"),
        (([[1, -2]], [[1]]), r"a document must be a list of whole numbers from 0"),
        (([["a"]], [[1]]), r"a document must be a list of whole numbers from 0"),
    ],
)
def test_what_has_another_shape_is_refused_with_the_rule(load, given, rule) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=rf"^data\.target=their_data:read: .*{rule}"):
        load(given)


def test_problems_are_found_before_anything_is_imported() -> None:
    found = list(Custom(target="no module", tokenizer="bpe:1").problems(None))  # type: ignore[arg-type]
    assert [problem.key for problem in found] == ["data.target", "data.tokenizer"]
