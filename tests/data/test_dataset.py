from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.data.dataset import IGNORE, Blocks, DataInfo, Dataset, Features, fingerprint
from smolcluster.errors import DataError

INFO = DataInfo(kind="tokens", input_shape=(4,), vocab_size=100, seq_length=4)
FEATURES = DataInfo(kind="features", input_shape=(3,), num_classes=2)


@given(num_tokens=st.integers(2, 200), seq_length=st.integers(1, 40))
def test_every_token_but_the_first_is_a_target_exactly_once(num_tokens: int, seq_length: int) -> None:
    stream = np.arange(num_tokens, dtype=np.uint16)
    blocks = Blocks(stream=stream, seq_length=seq_length)
    inputs, targets = blocks.batch(np.arange(len(blocks)))
    counted = targets != IGNORE
    assert targets[counted].tolist() == list(range(1, num_tokens))
    assert (inputs[counted] + 1 == targets[counted]).all()
    assert inputs.shape == targets.shape == (len(blocks), seq_length)


def test_padding_is_masked_and_only_at_the_end() -> None:
    blocks = Blocks(stream=np.array([5, 6, 7, 8, 9, 10], dtype=np.uint16), seq_length=4)
    inputs, targets = blocks.batch([1, 0])
    assert inputs.tolist() == [[9, 10, 10, 10], [5, 6, 7, 8]]
    assert targets.tolist() == [[10, IGNORE, IGNORE, IGNORE], [6, 7, 8, 9]]
    assert (inputs.dtype, targets.dtype) == (np.int64, np.int64)
    assert inputs.flags.c_contiguous
    assert targets.flags.c_contiguous


def test_a_stream_of_one_token_has_no_samples() -> None:
    assert len(Blocks(stream=np.array([5], dtype=np.uint16), seq_length=4)) == 0


@given(num_tokens=st.integers(2, 100), seq_length=st.integers(1, 20), num_samples=st.integers(1, 30))
def test_the_first_blocks_are_a_prefix(num_tokens: int, seq_length: int, num_samples: int) -> None:
    blocks = Blocks(stream=np.arange(num_tokens, dtype=np.int32), seq_length=seq_length)
    first = blocks.first(num_samples)
    assert len(first) == min(num_samples, len(blocks))
    ids = np.arange(len(first))
    np.testing.assert_array_equal(first.batch(ids).targets, blocks.batch(ids).targets)


def test_features_are_gathered_in_order_and_divided() -> None:
    features = Features(inputs=np.array([[0, 16], [8, 4], [2, 1]], np.uint8), targets=np.array([7, 8, 9]), divisor=16)
    inputs, targets = features.batch([2, 0, 0])
    assert inputs.tolist() == [[0.125, 0.0625], [0.0, 1.0], [0.0, 1.0]]
    assert targets.tolist() == [9, 7, 7]
    assert (inputs.dtype, targets.dtype) == (np.float32, np.int64)
    assert len(features) == 3
    assert features.first(2).batch([1]).targets.tolist() == [8]


def test_a_batch_is_a_copy() -> None:
    features = Features(inputs=np.ones((2, 2), np.float32), targets=np.zeros(2, np.int64))
    features.batch([0, 1]).inputs[:] = 5
    assert features.inputs.max() == 1


def test_the_fingerprint_is_of_the_content_not_of_its_storage() -> None:
    stream = np.arange(10, dtype="<u2")
    same = [stream.copy(), np.arange(20, dtype="<u2")[:10], stream.astype(">u2"), np.stack([stream, stream], 1)[:, 0]]
    prints = {fingerprint(INFO, Blocks(stream=other, seq_length=4)) for other in same}
    assert prints == {fingerprint(INFO, Blocks(stream=stream, seq_length=4))}
    assert len(prints.pop()) == 64


def test_the_fingerprint_tells_different_data_apart() -> None:
    x, y = np.arange(6, dtype=np.uint8).reshape(2, 3), np.array([0, 1], dtype=np.uint8)
    part, other = Features(inputs=x, targets=y, divisor=2), Features(inputs=x, targets=y[::-1], divisor=2)
    prints = [
        fingerprint(FEATURES, part, other),
        fingerprint(FEATURES, other, part),
        fingerprint(FEATURES, part, part),
        fingerprint(replace(FEATURES, num_classes=3), part, other),
        fingerprint(FEATURES, replace(part, divisor=3), other),
        fingerprint(FEATURES, replace(part, inputs=x.T.reshape(2, 3)), other),
        fingerprint(FEATURES, replace(part, inputs=x.reshape(2, 3, 1)), other),
        fingerprint(INFO, Blocks(stream=y, seq_length=4)),
        fingerprint(INFO, Blocks(stream=y, seq_length=5)),
    ]
    assert len(set(prints)) == len(prints)


def test_num_samples_cuts_the_training_part_only() -> None:
    part = Features(inputs=np.zeros((5, 3), np.float32), targets=np.zeros(5, np.int64))
    found = Dataset.of([part, part], FEATURES, num_samples=2)
    assert (len(found.train), len(found.validation)) == (2, 5)
    assert found.fingerprint != Dataset.of([part, part], FEATURES, num_samples=None).fingerprint


def test_an_empty_part_is_refused() -> None:
    part = Features(inputs=np.zeros((5, 3), np.float32), targets=np.zeros(5, np.int64))
    with pytest.raises(DataError, match="the validation set is empty"):
        Dataset.of([part, part.first(0)], FEATURES, num_samples=None)


def test_the_number_of_outputs_is_that_of_classes_or_tokens() -> None:
    assert (FEATURES.num_outputs, INFO.num_outputs) == (2, 100)
