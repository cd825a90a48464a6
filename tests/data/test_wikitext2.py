from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from smolcluster.data import hub
from smolcluster.data.dataset import IGNORE, Context
from smolcluster.data.tokenizer import ByteTokenizer
from smolcluster.data.wikitext2 import WikiText2, articles
from smolcluster.errors import DataError
from tests.real_data import REAL, with_real

ROWS = ["", " = A = \n", "", " One . \n", " = = Part = = \n", " Two . \n", " = B = \n", " Three . \n"]


@pytest.fixture
def path(tmp_path: Path, write: Callable[..., None]) -> str:
    folder = tmp_path / "clone" / "wikitext-2-raw-v1"
    write(folder / "train.parquet", text=ROWS)
    write(folder / "validation.parquet", text=[" = C = \n", " Four . \n"])
    return str(folder)


def test_rows_become_articles() -> None:
    assert articles(ROWS) == [" = A = \n One . \n = = Part = = \n Two . \n", " = B = \n Three . \n"]
    assert articles(["no heading\n", "", ""]) == ["no heading\n"]
    assert articles([]) == []


def test_every_token_in_order_with_ends_between(context: Context, path: str) -> None:
    found = WikiText2(path=path, tokenizer="bytes").load(context)
    inputs, targets = found.train.batch(np.arange(len(found.train)))
    read = [inputs[0, 0], *targets[targets != IGNORE]]
    end = "<|endoftext|>"
    assert ByteTokenizer().decode(read) == end + end.join(articles(ROWS)) + end
    held = found.validation.batch(np.arange(len(found.validation)))
    assert ByteTokenizer().decode(held.targets[held.targets != IGNORE]) == " = C = \n Four . \n" + end
    assert (found.info.kind, found.info.vocab_size, found.info.seq_length) == ("tokens", 257, 16)
    assert found.info.input_shape == (16,)


def test_the_folder_of_a_clone_is_found(context: Context, path: str) -> None:
    direct = WikiText2(path=path, tokenizer="bytes").load(context)
    clone = WikiText2(path=str(Path(path).parent), tokenizer="bytes").load(context)
    assert clone.fingerprint == direct.fingerprint


def test_the_second_start_reads_nothing(context: Context, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = WikiText2(path=path, tokenizer="bpe:260")
    first = data.load(context)
    monkeypatch.setattr(hub, "splits", None)
    again = data.load(context)
    assert again.fingerprint == first.fingerprint
    assert again.tokenizer is not None
    assert again.tokenizer.vocab_size == first.info.vocab_size == 260


def test_the_tokenizer_is_part_of_the_key(context: Context, path: str) -> None:
    prints = {
        WikiText2(path=path, tokenizer=spec).load(context).fingerprint for spec in ("bytes", "bpe:257", "bpe:260")
    }
    assert len(prints) == 3


@pytest.mark.usefixtures("no_hub")
def test_without_a_network(context: Context) -> None:
    with pytest.raises(DataError, match=r"^data=wikitext2 \(Salesforce/wikitext\): .*out of reach.*data=pydocs"):
        WikiText2().load(context)


@with_real("wikitext2", "gpt2-tokenizer")
def test_the_real_articles_with_the_real_tokenizer(context: Context) -> None:
    data = WikiText2(path=str(REAL / "wikitext2"), tokenizer=str(REAL / "gpt2-tokenizer"), num_samples=100)
    found = data.load(context)
    assert len(found.train) == 100
    assert found.info.vocab_size == 50257
    assert found.tokenizer is not None
    assert found.tokenizer.decode(found.train.batch([0]).inputs[0, :8]).startswith("<|endoftext|> = Robert <unk> =")
