"""WikiText-2: 2 million words of Wikipedia's best articles (Merity et al., 2016), from the hub or a local copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from smolcluster.data import cache, hub
from smolcluster.data import tokenizer as tokenizers
from smolcluster.data.corpus import Texts, token_dataset
from smolcluster.data.dataset import Context, Dataset
from smolcluster.errors import Problem
from smolcluster.spec.schema import LocalPath, Range

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

NAME = "Salesforce/wikitext"
CONFIG = "wikitext-2-raw-v1"


@dataclass(frozen=True, kw_only=True)
class WikiText2:
    """Wikipedia articles, one document each; validation is the official validation set."""

    kind: ClassVar[str] = "tokens"

    path: Annotated[str | None, LocalPath()] = None
    """A local copy: a folder in the hub's layout, or with train.parquet and validation.parquet; null: the hub."""
    revision: str = "main"
    """Branch, tag or commit of the hub's data set; what has been read once is not asked for again."""
    tokenizer: Annotated[str, LocalPath()] = "openai-community/gpt2"
    """A hub name, a local folder with tokenizer.json, bytes, or bpe:<n> (trained on the training articles)."""
    num_samples: Annotated[int | None, Range(ge=1, unit="blocks of tokens")] = None
    """Use only the first so many training samples; null: all."""
    epochs: Annotated[int | None, Range(ge=1, unit="epochs")] = 30
    """Passes over the training set where train.epochs is null."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return tokenizers.problems(self.tokenizer)

    def missing(self) -> Iterable[Problem]:
        yield from hub.missing("data.path", self.path)
        yield from tokenizers.missing(self.tokenizer)

    def load(self, context: Context) -> Dataset:
        """The data set, tokens from the cache where they are there."""
        return token_dataset(
            option="wikitext2",
            key=cache.identity(Path(self.path).expanduser()) if self.path else [NAME, CONFIG, self.revision],
            read=lambda: self._read(context),
            tokenizer=self.tokenizer,
            num_samples=self.num_samples,
            context=context,
        )

    def _read(self, context: Context) -> Texts:
        (train,), (validation,) = hub.splits(
            NAME,
            option="wikitext2",
            columns={"train": ["text"], "validation": ["text"]},
            context=context,
            config=CONFIG,
            revision=self.revision,
            path=self.path,
        )
        return Texts(articles(train), articles(validation))


def articles(rows: Iterable[str]) -> list[str]:
    """The rows of the data set, which are lines, joined to articles.

    >>> articles([" = A = \\n", "", " text \\n", " = = Part = = \\n", " = B = \\n"])
    [' = A = \\n text \\n = = Part = = \\n', ' = B = \\n']
    """
    found: list[list[str]] = [[]]
    for row in rows:
        if row.startswith(" = ") and not row.startswith(" = = "):
            found.append([])
        found[-1].append(row)
    return [text for article in found if (text := "".join(article))]
