"""Text to token ids and back: raw bytes, a byte-level BPE of our own, or any tokenizer of the hub's layout.

A tokenizer other than ``bytes`` lives in a folder with ``tokenizer.json`` and ``tokenizer_config.json``; that
is also what :meth:`Tokenizer.save` writes, and what ``transformers.AutoTokenizer.from_pretrained`` reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from smolcluster.data import cache, hub
from smolcluster.errors import DataError, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

END = "<|endoftext|>"
"""End-of-document token of the tokenizers made here, as GPT-2 has it."""
FILES = ("tokenizer.json", "tokenizer_config.json")
DOCUMENTS_AT_ONCE = 1024
"""Documents per call of the library, which uses all cores within a call."""
SMALLEST_BPE = 257
LARGEST_BPE = 262_144


class Tokenizer(Protocol):
    """Reversible: ``decode`` of a document's ids is the document, except where a hub's tokenizer normalises."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int:
        """The id that separates documents."""

    def encode_documents(self, documents: Iterable[str]) -> Iterator[NDArray[Any]]:
        """The ids of each document, without any special token; text that spells one is ordinary text."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def save(self, folder: Path) -> None:
        """Write :data:`FILES` into ``folder``."""


class ByteTokenizer:
    """One token per UTF-8 byte (0 to 255) and one that ends a document (256)."""

    vocab_size = 257
    eos_id = 256

    def encode_documents(self, documents: Iterable[str]) -> Iterator[NDArray[Any]]:
        import numpy as np

        for document in documents:
            yield np.frombuffer(document.encode(), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(END.encode() if i == self.eos_id else bytes([i]) for i in ids).decode(errors="replace")

    def save(self, folder: Path) -> None:
        from tokenizers import AddedToken, Tokenizer, models

        alphabet = _byte_alphabet()
        tokenizer = Tokenizer(models.BPE(vocab={alphabet[i]: i for i in range(256)}, merges=[]))
        _make_byte_level(tokenizer)
        tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
        _write(tokenizer, folder)


class FileTokenizer:
    """The tokenizer of a folder that holds :data:`FILES`."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.folder = folder
        self._tokenizer = Tokenizer.from_file(str(folder / FILES[0]))
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.eos_id = self._end()

    def encode_documents(self, documents: Iterable[str]) -> Iterator[NDArray[Any]]:
        import numpy as np

        for some in _batches(documents, DOCUMENTS_AT_ONCE):
            for encoding in self._tokenizer.encode_batch_fast(some, add_special_tokens=False):
                yield np.asarray(encoding.ids, dtype=np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        for name in FILES:
            shutil.copyfile(self.folder / name, folder / name)

    def _end(self) -> int:
        token = json.loads((self.folder / FILES[1]).read_text(encoding="utf-8")).get("eos_token")
        text = token.get("content") if isinstance(token, dict) else token
        found = None if text is None else self._tokenizer.token_to_id(text)
        if found is None:
            raise DataError(f"data.tokenizer: {self.folder} names no eos_token, which must separate the documents")
        return int(found)


def problems(spec: str) -> Iterable[Problem]:
    """What is wrong with the value of a ``tokenizer`` field."""
    number = spec.removeprefix("bpe:")
    if not spec:
        rule = "must be a hub name, a local folder, bytes or bpe:<n>"
        yield Problem(key="data.tokenizer", value=spec, rule=rule, nearest="bpe:512")
    elif number != spec and not (number.isdecimal() and SMALLEST_BPE <= int(number) <= LARGEST_BPE):
        rule = f"bpe:<n> must have n from {SMALLEST_BPE} (all bytes and the end of a document) to {LARGEST_BPE}"
        yield Problem(key="data.tokenizer", value=spec, rule=rule, nearest="bpe:512")


def missing(spec: str) -> Iterable[Problem]:
    """Whether the folder that ``spec`` names is on this machine, where it surely names one."""
    if spec.startswith((".", "/", "~")) and not Path(spec).expanduser().is_dir():
        rule = "must be a folder on this machine, a hub name, bytes or bpe:<n>"
        yield Problem(key="data.tokenizer", value=spec, rule=rule, nearest="bpe:512")


def key(spec: str) -> list[Any]:
    """What tells this tokenizer from others in the cache (``bpe`` depends on the documents, too)."""
    folder = Path(spec).expanduser()
    return [spec, cache.identity(folder) if folder.is_dir() else None]


def make(spec: str, documents: Sequence[str], folder: Path) -> Tokenizer:
    """The tokenizer that ``spec`` asks for, its files written to ``folder``; ``bpe`` is trained on ``documents``."""
    local = Path(spec).expanduser()
    if spec == "bytes":
        ByteTokenizer().save(folder)
    elif spec.startswith("bpe:"):
        _train(int(spec.removeprefix("bpe:")), documents, folder)
    elif all((local / name).is_file() for name in FILES):
        FileTokenizer(local).save(folder)
    else:
        _convert(spec, local, folder)
    return load(spec, folder)


def load(spec: str, folder: Path) -> Tokenizer:
    """The tokenizer that :func:`make` has written to ``folder``."""
    return ByteTokenizer() if spec == "bytes" else FileTokenizer(folder)


def _train(vocab_size: int, documents: Sequence[str], folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    _make_byte_level(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    _write(tokenizer, folder)


def _convert(spec: str, local: Path, folder: Path) -> None:
    """Let transformers read what it knows to read, from the hub or a local folder, and save it as :data:`FILES`."""
    if not local.is_dir() and spec.startswith((".", "/", "~")):
        raise DataError(f"data.tokenizer={spec}: no such folder")

    def read() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(local) if local.is_dir() else spec, trust_remote_code=False)

    instead = "data.tokenizer=<local folder>, bpe:512 or bytes"
    tokenizer = hub.load(read, what=f"data.tokenizer={spec}", instead=instead, local=local.is_dir())
    tokenizer.save_pretrained(str(folder))
    for file in folder.iterdir():
        if file.name not in FILES:
            file.unlink()


def _make_byte_level(tokenizer: Any) -> None:
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()


def _write(tokenizer: Any, folder: Path) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
    }
    # written here: where the disk is full, its own save raises what is no OSError
    (folder / FILES[0]).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (folder / FILES[1]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2's ``bytes_to_unicode``)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


def _batches(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    some: list[str] = []
    for document in documents:
        some.append(document)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some
