"""SNLI: 570,000 pairs of sentences and how they relate (Bowman et al., 2015), as text for a language model."""

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

NAME = "stanfordnlp/snli"
LABELS = ("entailment", "neutral", "contradiction")
COLUMNS = ("premise", "hypothesis", "label")


@dataclass(frozen=True, kw_only=True)
class SNLI:
    """Premise, hypothesis and label, one document per pair; validation is the official validation set."""

    kind: ClassVar[str] = "tokens"

    path: Annotated[str | None, LocalPath()] = None
    """A local copy: a folder in the hub's layout, or with train.parquet and validation.parquet; null: the hub."""
    revision: str = "main"
    """Branch, tag or commit of the hub's data set; what has been read once is not asked for again."""
    tokenizer: Annotated[str, LocalPath()] = "openai-community/gpt2"
    """A hub name, a local folder with tokenizer.json, bytes, or bpe:<n> (trained on the training pairs)."""
    num_samples: Annotated[int | None, Range(ge=1, unit="blocks of tokens")] = None
    """Use only the first so many training samples; null: all."""
    epochs: Annotated[int | None, Range(ge=1, unit="epochs")] = 20
    """Passes over the training set where train.epochs is null."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return tokenizers.problems(self.tokenizer)

    def missing(self) -> Iterable[Problem]:
        yield from hub.missing("data.path", self.path)
        yield from tokenizers.missing(self.tokenizer)

    def load(self, context: Context) -> Dataset:
        """The data set, tokens from the cache where they are there."""
        return token_dataset(
            option="snli",
            key=cache.identity(Path(self.path).expanduser()) if self.path else [NAME, self.revision],
            read=lambda: self._read(context),
            tokenizer=self.tokenizer,
            num_samples=self.num_samples,
            context=context,
        )

    def _read(self, context: Context) -> Texts:
        train, validation = hub.splits(
            NAME,
            option="snli",
            columns={"train": COLUMNS, "validation": COLUMNS},
            context=context,
            revision=self.revision,
            path=self.path,
        )
        return Texts(pairs(*train), pairs(*validation))


def pairs(premises: Iterable[str], hypotheses: Iterable[str], labels: Iterable[int]) -> list[str]:
    r"""One text per pair; pairs without an agreed label (-1) are left out.

    >>> pairs(["A man runs."], ["A man sleeps."], [2])
    ['Premise: A man runs.\nHypothesis: A man sleeps.\nLabel: contradiction']
    """
    return [
        f"Premise: {premise}\nHypothesis: {hypothesis}\nLabel: {LABELS[label]}"
        for premise, hypothesis, label in zip(premises, hypotheses, labels, strict=True)
        if label >= 0
    ]
