from pathlib import Path

import numpy as np
import pytest

from smolcluster.data.dataset import IGNORE, Context
from smolcluster.data.text import Text, read_text, text_files
from smolcluster.data.tokenizer import ByteTokenizer
from smolcluster.errors import DataError


def everything(data: Text, context: Context) -> str:
    found = data.load(context)
    parts = [part.batch(np.arange(len(part))).targets for part in (found.train, found.validation)]
    return "".join(ByteTokenizer().decode(targets[targets != IGNORE]) for targets in parts)


def test_one_file(context: Context, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(f"{i}\n" for i in range(100)))
    text = everything(Text(path=str(file), tokenizer="bytes"), context)
    assert text.replace("<|endoftext|>", "") == file.read_text()
    found = Text(path=str(file), tokenizer="bytes").load(context)
    assert found.tokenizer is not None
    assert found.tokenizer.decode(found.validation.batch([0]).targets[0, :9]) == "90\n91\n92\n"


def test_the_files_of_a_folder_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt", ".git/d.txt", "e.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [file.relative_to(tmp_path).as_posix() for file in text_files(tmp_path, "*.txt")]
    assert names == ["a.txt", "b.txt", "sub/c.txt"]
    assert len(text_files(tmp_path, "*")) == 4


def test_a_changed_file_is_read_again(context: Context, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\nthree\n" * 10)
    data = Text(path=str(file), tokenizer="bytes")
    before = data.load(context).fingerprint
    assert data.load(context).fingerprint == before
    file.write_text("one\ntwo\nthree\n" * 11)
    assert data.load(context).fingerprint != before


def test_line_ends_are_the_same_on_every_system(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    assert read_text(tmp_path / "a.txt") == "one\ntwo\n"


def test_what_is_not_utf8_is_named(context: Context, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 at byte 3"):
        Text(path=str(tmp_path)).load(context)


def test_what_is_not_there_is_named(context: Context, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder on this node"):
        Text(path=str(tmp_path / "nowhere")).load(context)
    with pytest.raises(DataError, match=r"no file matches data\.pattern=\*\.md"):
        Text(path=str(tmp_path), pattern="*.md").load(context)


def test_a_wrong_tokenizer_is_a_problem() -> None:
    (problem,) = Text(path="x", tokenizer="bpe:3").problems(None)  # type: ignore[arg-type]
    assert problem.key == "data.tokenizer"
