"""Text that is on every machine with Python: the standard library's own documentation and sources.

First the topics of ``help()`` (chapters of the language reference), then well-known modules, in a fixed order, up
to ``max_bytes``. The text differs a little between versions of Python, even in the last number. All nodes of a run
have that of the machine that the run is started from: it is sent to the others.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from smolcluster.data import cache
from smolcluster.data import tokenizer as tokenizers
from smolcluster.data.corpus import Texts, hold_out, token_dataset
from smolcluster.data.dataset import Context, Dataset
from smolcluster.data.text import read_text
from smolcluster.errors import DataError, Problem
from smolcluster.spec.schema import LocalPath, Range

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

# fmt: off
MODULES = (
    "argparse", "ast", "asyncio/events", "asyncio/locks", "asyncio/queues", "asyncio/streams", "asyncio/tasks",
    "base64", "bdb", "bisect", "calendar", "cmd", "code", "codecs", "codeop", "collections/__init__",
    "concurrent/futures/_base", "concurrent/futures/process", "concurrent/futures/thread", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "difflib", "dis", "email/header", "email/message", "enum", "filecmp",
    "fileinput", "fnmatch", "fractions", "functools", "getopt", "gettext", "glob", "graphlib", "gzip", "hashlib",
    "heapq", "hmac", "html/parser", "http/client", "http/cookies", "http/server", "inspect", "io", "json/decoder",
    "json/encoder", "linecache", "logging/__init__", "logging/config", "logging/handlers", "lzma", "mimetypes",
    "multiprocessing/connection", "multiprocessing/managers", "multiprocessing/pool", "numbers", "operator", "os",
    "platform", "posixpath", "pprint", "profile", "pstats", "queue", "random", "reprlib", "sched", "secrets",
    "selectors", "shlex", "shutil", "socket", "socketserver", "statistics", "string", "subprocess", "symtable",
    "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace", "traceback", "tracemalloc", "types", "typing",
    "unittest/case", "unittest/loader", "unittest/main", "urllib/parse", "urllib/request", "urllib/robotparser",
    "uuid", "warnings", "wave", "weakref", "webbrowser", "xmlrpc/client", "zipapp",
)
# fmt: on
"""Modules of pure Python that every version since 3.11 has, on every system."""
APART = "\0"
NAME = "pydocs.txt"


@dataclass(frozen=True, kw_only=True)
class PyDocs:
    """The standard library's documentation and sources, one document per topic and module."""

    kind: ClassVar[str] = "tokens"

    path: Annotated[str | None, LocalPath()] = None
    """A text that another machine's Python has written, documents apart by NUL; null: this machine's own."""
    max_bytes: Annotated[int, Range(ge=10_000, le=10_000_000, unit="bytes")] = 2_400_000
    """Stop after so much text (there are some 3 MB). The default makes an epoch of the seeds' GPT, 64 blocks of 128
    tokens a step, take about three minutes on one core."""
    validation_share: Annotated[float, Range(gt=0, lt=1, unit="of all characters")] = 0.1
    """Held out for validation: whole documents, drawn in an order that never changes."""
    tokenizer: Annotated[str, LocalPath()] = "bpe:512"
    """A hub name, a local folder with tokenizer.json, bytes, or bpe:<n> (trained on the training part)."""
    num_samples: Annotated[int | None, Range(ge=1, unit="blocks of tokens")] = None
    """Use only the first so many training samples; null: all."""
    epochs: Annotated[int | None, Range(ge=1, unit="epochs")] = 1
    """Passes over the training set where train.epochs is null."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return tokenizers.problems(self.tokenizer)

    def missing(self) -> Iterable[Problem]:
        if self.path is not None and not Path(self.path).expanduser().is_file():
            yield Problem(key="data.path", value=self.path, rule="must be a file on this machine")
        yield from tokenizers.missing(self.tokenizer)

    def pinned(self, folder: Path) -> Mapping[str, Path]:
        """The text as a file, for machines whose Python may be another one."""
        if self.path is not None:
            return {}
        text = APART.join(self.documents()).encode()
        context = Context(seq_length=None, seed=0, cache=folder, say=lambda line: None)

        def write(entry: Path) -> None:
            (entry / NAME).write_bytes(text)

        key = hashlib.sha256(text).hexdigest()
        return {"path": cache.entry("pydocs-text", [key], context, write) / NAME}

    def documents(self) -> list[str]:
        """One per topic and module, ``max_bytes`` in all."""
        if self.path is None:
            return list(within(self.max_bytes, standard_library()))
        text = Path(self.path).expanduser().read_bytes().decode()
        return list(within(self.max_bytes, text.split(APART)))

    def load(self, context: Context) -> Dataset:
        """The data set; the text is read and hashed at each start, tokens come from the cache where they are there."""
        documents = self.documents()
        digest = hashlib.sha256(APART.join(documents).encode()).hexdigest()

        def read() -> Texts:
            return hold_out(documents, self.validation_share)

        return token_dataset(
            option="pydocs",
            key=[digest, self.validation_share],
            read=read,
            tokenizer=self.tokenizer,
            num_samples=self.num_samples,
            context=context,
        )


def standard_library() -> Iterator[str]:
    """The topics of ``help()`` by name, then :data:`MODULES`; what this Python does not have is left out."""
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    folder = Path(sysconfig.get_path("stdlib"))
    files = [file for name in MODULES if (file := folder / f"{name}.py").is_file()]
    if not files:
        raise DataError(f"data=pydocs: no sources in {folder}; choose data=text data.path=<file>, or data=digits")
    yield from map(read_text, files)


def within(max_bytes: int, documents: Iterable[str]) -> Iterator[str]:
    """Documents up to ``max_bytes`` of UTF-8, the last one cut to fit.

    >>> list(within(5, ["abc", "def", "g"]))
    ['abc', 'de']
    """
    left = max_bytes
    for document in documents:
        piece = document.encode()[:left]
        left -= len(piece)
        yield piece.decode(errors="ignore")
        if not left:
            return
