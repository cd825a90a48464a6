from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smolcluster.data import pydocs
from smolcluster.data.dataset import Context
from smolcluster.data.pydocs import MODULES, PyDocs, standard_library, within
from smolcluster.errors import DataError


def test_topics_then_modules_in_a_fixed_order() -> None:
    from pydoc_data.topics import topics

    documents = list(standard_library())
    assert documents[: len(topics)] == [topics[name] for name in sorted(topics)]
    assert len(documents) - len(topics) > 0.9 * len(MODULES)
    assert "class ArgumentParser" in documents[len(topics)]
    assert sum(len(document.encode()) for document in documents) > 2_500_000


def test_exactly_so_many_bytes() -> None:
    assert list(within(4, ["ab", "", "cdef", "g"])) == ["ab", "", "cd"]
    assert list(within(3, ["aé"])) == ["aé"]
    assert list(within(2, ["aé", "b"])) == ["a"]
    assert list(within(100, ["a", "b"])) == ["a", "b"]


def test_other_machines_are_sent_the_text_of_this_one(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    here = PyDocs(max_bytes=60_000, tokenizer="bytes")
    (file,) = here.pinned(context.cache).values()
    assert here.pinned(context.cache) == {"path": file}, "the same text is written once"
    with pytest.raises(DataError, match="cannot write to the data cache"):
        here.pinned(file)
    fingerprint = here.load(context).fingerprint
    monkeypatch.setattr(pydocs, "MODULES", ("os",))
    monkeypatch.setattr(pydocs, "standard_library", lambda: iter(["another Python's documentation\n" * 3000]))
    there = replace(here, path=str(file))
    assert here.load(context).fingerprint != fingerprint
    assert there.load(context).fingerprint == fingerprint
    assert there.pinned(context.cache) == {}
    assert [p.key for p in replace(here, path=str(file.with_name("gone"))).missing()] == ["data.path"]


def test_the_same_each_time_and_reversible(context: Context) -> None:
    data = PyDocs(max_bytes=60_000, tokenizer="bpe:300")
    first, again = data.load(context), data.load(context)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != PyDocs(max_bytes=50_000, tokenizer="bpe:300").load(context).fingerprint
    assert first.info.vocab_size == 300
    assert first.tokenizer is not None
    text = first.tokenizer.decode(first.train.batch(np.arange(20)).inputs.reshape(-1).tolist())
    assert text.removeprefix("<|endoftext|>") in "".join(standard_library())
    share = len(first.validation) / (len(first.train) + len(first.validation))
    assert 0.04 < share < 0.12


def test_a_python_without_sources(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"no sources in .*; choose data=text"):
        PyDocs().load(context)
