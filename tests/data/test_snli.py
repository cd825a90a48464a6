from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smolcluster.data.dataset import IGNORE, Context
from smolcluster.data.snli import SNLI, pairs
from smolcluster.data.tokenizer import ByteTokenizer
from smolcluster.errors import DataError


@pytest.fixture
def path(tmp_path: Path, write: Callable[..., None]) -> str:
    folder = tmp_path / "copy"
    write(
        folder / "train.parquet",
        premise=["A man runs.", "A dog.", "It rains."],
        hypothesis=["He moves.", "?", "It is dry."],
        label=[0, -1, 2],
    )
    write(folder / "validation.parquet", premise=["A"], hypothesis=["B"], label=[1])
    return str(folder)


def test_pairs_without_a_label_are_left_out(context: Context, path: str) -> None:
    found = SNLI(path=path, tokenizer="bytes").load(context)
    targets = found.train.batch(np.arange(len(found.train))).targets
    assert ByteTokenizer().decode(targets[targets != IGNORE]) == (
        "Premise: A man runs.\nHypothesis: He moves.\nLabel: entailment<|endoftext|>"
        "Premise: It rains.\nHypothesis: It is dry.\nLabel: contradiction<|endoftext|>"
    )


def test_the_three_labels() -> None:
    texts = pairs("abc", "def", [0, 1, 2])
    assert [text.rpartition(" ")[2] for text in texts] == ["entailment", "neutral", "contradiction"]


@pytest.mark.usefixtures("no_hub")
def test_without_a_network(context: Context) -> None:
    with pytest.raises(DataError, match=r"^data=snli \(stanfordnlp/snli\): .*out of reach"):
        SNLI().load(context)
