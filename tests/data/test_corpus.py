from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.data.corpus import Texts, hold_out, token_dataset
from smolcluster.data.dataset import Context
from smolcluster.errors import DataError


@given(st.lists(st.text("ab\n", max_size=60), max_size=30), st.floats(0.05, 0.5))
def test_nothing_is_lost_and_nothing_is_in_both(documents: list[str], share: float) -> None:
    train, validation = hold_out(documents, share)
    assert sorted("".join(train + validation)) == sorted("".join(documents))
    held, size = sum(map(len, validation)), sum(map(len, documents))
    assert held <= 2 * share * size + len(documents)
    assert held >= share * size / 2 - len(documents)


def test_whole_documents_where_there_are_many() -> None:
    documents = [f"document {i:03}" for i in range(100)]
    train, validation = hold_out(documents, 0.1)
    assert len(validation) == 10
    assert sorted(train + validation) == documents
    assert validation == sorted(validation) != documents[:10]
    assert hold_out(documents, 0.1) == Texts(train, validation)


def test_the_end_of_each_where_there_are_few() -> None:
    lines = "".join(f"line {i}\n" for i in range(10))
    assert hold_out([lines, lines], 0.1) == Texts([lines[:-7], lines[:-7]], ["line 9\n", "line 9\n"])


def test_a_line_break_far_away_does_not_move_the_cut() -> None:
    assert hold_out(["\n" + "a" * 9], 0.2) == Texts(["\n" + "a" * 7], ["aa"])


def test_a_text_without_line_breaks_is_cut_anywhere() -> None:
    assert hold_out(["abcdefghij"], 0.2) == Texts(["abcdefgh"], ["ij"])


def load(texts: Texts, context: Context) -> None:
    token_dataset(option="text", key=["k"], read=lambda: texts, tokenizer="bytes", num_samples=None, context=context)


def test_no_text_is_an_error(context: Context) -> None:
    with pytest.raises(DataError, match="data=text: there is no text to train on"):
        load(Texts(["", ""], ["a"]), context)


def test_no_validation_text_is_an_error(context: Context) -> None:
    with pytest.raises(DataError, match="the validation set is empty"):
        load(Texts(["abc"], []), context)


def test_a_model_without_a_length_is_an_error(context: Context) -> None:
    with pytest.raises(DataError, match=r"model\.max_seq_len"):
        load(Texts(["abc"], ["a"]), replace(context, seq_length=None))


def test_one_cache_entry_serves_every_length(context: Context) -> None:
    load(Texts(["abc"], ["a"]), context)
    unread: Texts = None  # type: ignore[assignment]
    load(unread, replace(context, seq_length=5))
