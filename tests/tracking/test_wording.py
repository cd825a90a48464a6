import doctest
import importlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.tracking import wording


@pytest.mark.parametrize("name", ["fields", "jsonl", "logs", "plots", "tracker", "wandb", "wording"])
def test_examples_in_the_documentation(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"smolcluster.tracking.{name}"))
    assert found.attempted > 0
    assert found.failed == 0


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")), st.integers(1, 50))
def test_cleaned_text_steers_no_terminal(value: str, limit: int) -> None:
    cleaned = wording.clean(value, limit)
    assert len(cleaned) <= limit
    assert not [character for character in cleaned if unicodedata.category(character).startswith("C")]
    cleaned.encode("utf-8")


def test_cleaning_leaves_other_scripts_alone() -> None:
    assert wording.clean("größe Σ 東京") == "größe Σ 東京"


@given(st.lists(st.floats()), st.integers(1, 40))
def test_a_sparkline_fits_and_shows_its_extremes(values: list[float], width: int) -> None:
    line = wording.sparkline(values, width)
    assert len(line) <= width
    assert set(line) <= set(wording.BARS)


def test_a_sparkline_of_equal_values_is_flat() -> None:
    assert wording.sparkline([3.0] * 5, 3) == "▁▁▁"


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_960, "100 kB"), (999_600, "1.0 MB"), (5e15, "5000 TB")],
)
def test_bytes(size: float, words: str) -> None:
    assert wording.byte_count(size) == words


def test_what_is_not_there_is_a_dash() -> None:
    found = {
        wording.number(None),
        wording.count(None),
        wording.byte_count(None),
        wording.megabytes(None),
        wording.share(float("nan")),
        wording.accuracy(None),
        wording.duration(float("inf")),
    }
    assert found == {"–"}
