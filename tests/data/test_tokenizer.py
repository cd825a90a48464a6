import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.data import tokenizer as tokenizers
from smolcluster.data.tokenizer import ByteTokenizer
from smolcluster.errors import DataError
from tests.real_data import REAL, with_real

TEXT = ["the cat sat on the mat\n" * 20, "Ünïcödé, 漢字 and\ttabs", "<|endoftext|> is spelled out here"]
FOLDERS = [folder for folder in [REAL / "gpt2-tokenizer"] if folder.is_dir()]


@given(st.text(st.characters(codec="utf-8"), max_size=50))
def test_bytes_are_the_ids(text: str) -> None:
    tokenizer = ByteTokenizer()
    (ids,) = tokenizer.encode_documents([text])
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_bytes_end_a_document_with_256() -> None:
    assert (ByteTokenizer.vocab_size, ByteTokenizer.eos_id) == (257, 256)
    assert ByteTokenizer().decode([104, 105, 256]) == "hi<|endoftext|>"


def test_bpe_is_reversible_and_shorter(tmp_path: Path) -> None:
    tokenizer = tokenizers.make("bpe:280", TEXT, tmp_path)
    ids = list(tokenizer.encode_documents(TEXT))
    assert [tokenizer.decode(document) for document in ids] == TEXT
    assert tokenizer.vocab_size == 280
    assert len(ids[0]) < len(TEXT[0]) / 2
    assert all(tokenizer.eos_id not in document for document in ids)
    assert max(document.max() for document in ids) < 280


def test_bpe_takes_what_it_was_not_trained_on(tmp_path: Path) -> None:
    tokenizer = tokenizers.make("bpe:257", ["abc"], tmp_path)
    (ids,) = tokenizer.encode_documents(["мир 🚀\x00"])
    assert len(ids) == len("мир 🚀\x00".encode())
    assert tokenizer.decode(ids) == "мир 🚀\x00"


def test_bpe_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tokenizers.make("bpe:300", TEXT, tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_more_documents_than_one_call_takes_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "DOCUMENTS_AT_ONCE", 3)
    tokenizer = tokenizers.make("bpe:257", ["a"], tmp_path)
    documents = [f"{i}" for i in range(10)]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_documents(documents)] == documents


@pytest.mark.parametrize("spec", ["bytes", "bpe:300", *map(str, FOLDERS)])
def test_what_is_saved_is_what_transformers_loads(spec: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "made").mkdir()
    (tmp_path / "saved").mkdir()
    ours = tokenizers.make(spec, TEXT, tmp_path / "made")
    ours.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "the cat, Ünïcödé\n"
    (ids,) = ours.encode_documents([text])
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids.tolist()
    assert theirs.decode(ids.tolist()) == text
    assert theirs.eos_token_id == ours.eos_id
    assert len(theirs) == ours.vocab_size


@with_real("gpt2-tokenizer")
def test_the_real_tokenizer_of_gpt2(tmp_path: Path) -> None:
    tokenizer = tokenizers.make(str(REAL / "gpt2-tokenizer"), [], tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    (ids,) = tokenizer.encode_documents(["Hello, my dog is cute"])
    assert ids.tolist() == [15496, 11, 616, 3290, 318, 13779]
    assert 50256 not in next(tokenizer.encode_documents(["<|endoftext|>"]))


def test_a_tokenizer_in_another_layout_is_converted(tmp_path: Path) -> None:
    """vocab.json and merges.txt, as older models have them."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    letters = [*"abc", "ab", "<|endoftext|>"]
    (old / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (old / "merges.txt").write_text("#version: 0.2\na b\n")
    (old / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = tokenizers.make(str(old), [], new)
    assert next(tokenizer.encode_documents(["abc"])).tolist() == [3, 2]
    assert tokenizer.eos_id == 4
    assert sorted(file.name for file in new.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_no_end_of_document_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tokenizers.make("bpe:257", ["a"], tmp_path / "a")
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="names no eos_token"):
        tokenizers.make(str(tmp_path / "a"), [], tmp_path / "b")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer=.*nowhere: no such folder"):
        tokenizers.make(str(tmp_path / "nowhere"), [], tmp_path)


@pytest.mark.usefixtures("no_hub")
def test_a_hub_out_of_reach_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        tokenizers.make("nobody/nothing", [], tmp_path)
    assert str(caught.value) == (
        "data.tokenizer=nobody/nothing: cannot be loaded (the hub is out of reach, https://huggingface.co: "
        "ConnectError: no route); choose data.tokenizer=<local folder>, bpe:512 or bytes"
    )


@pytest.mark.parametrize("spec", ["", "bpe:", "bpe:256", "bpe:x", "bpe:999999999"])
def test_a_wrong_spec_is_a_problem(spec: str) -> None:
    (problem,) = tokenizers.problems(spec)
    assert problem.key == "data.tokenizer"
    assert problem.nearest == "bpe:512"
    assert not list(tokenizers.problems(problem.nearest))


@pytest.mark.parametrize("spec", ["bytes", "bpe:257", "openai-community/gpt2", "./folder"])
def test_a_right_spec_is_none(spec: str) -> None:
    assert not list(tokenizers.problems(spec))


def test_the_key_follows_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    before = tokenizers.key(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    assert tokenizers.key(str(tmp_path)) != before
    assert tokenizers.key("bpe:300") == ["bpe:300", None]


def test_ids_are_arrays(tmp_path: Path) -> None:
    for tokenizer in (ByteTokenizer(), tokenizers.make("bpe:257", ["a"], tmp_path)):
        (ids,) = tokenizer.encode_documents(["abc"])
        assert isinstance(ids, np.ndarray)
        assert ids.shape == (3,)
