"""Any text of the user's: a file, or every file of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from smolcluster.data import cache
from smolcluster.data import tokenizer as tokenizers
from smolcluster.data.corpus import Texts, hold_out, token_dataset
from smolcluster.data.dataset import Context, Dataset
from smolcluster.errors import DataError, Problem
from smolcluster.spec.schema import LocalPath, Range

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Text:
    """UTF-8 text, one document per file; a share of it is held out for validation."""

    kind: ClassVar[str] = "tokens"

    path: Annotated[str, LocalPath()]
    """A file, or a folder whose files are read in the order of their names. Must be there on every node."""
    pattern: str = "*"
    """Which files of a folder (and of the folders in it) are read, as a glob: *.txt; hidden ones never are."""
    validation_share: Annotated[float, Range(gt=0, lt=1, unit="of all characters")] = 0.1
    """Held out for validation: whole files where that comes out even, else the end of every file."""
    tokenizer: Annotated[str, LocalPath()] = "bpe:512"
    """A hub name, a local folder with tokenizer.json, bytes, or bpe:<n> (trained on the training part)."""
    num_samples: Annotated[int | None, Range(ge=1, unit="blocks of tokens")] = None
    """Use only the first so many training samples; null: all."""
    epochs: Annotated[int | None, Range(ge=1, unit="epochs")] = None
    """Passes over the training set where train.epochs is null; null: one of the two must be set."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return tokenizers.problems(self.tokenizer)

    def missing(self) -> Iterable[Problem]:
        if not Path(self.path).expanduser().exists():
            yield Problem(key="data.path", value=self.path, rule="must be a file or a folder on this machine")
        yield from tokenizers.missing(self.tokenizer)

    def load(self, context: Context) -> Dataset:
        """The data set, tokens from the cache where they are there."""
        path = Path(self.path).expanduser()
        files = text_files(path, self.pattern)
        return token_dataset(
            option="text",
            key=[cache.identity(path, files), self.validation_share],
            read=lambda: self._read(files),
            tokenizer=self.tokenizer,
            num_samples=self.num_samples,
            context=context,
        )

    def _read(self, files: list[Path]) -> Texts:
        return hold_out([read_text(file) for file in files], self.validation_share)


def text_files(path: Path, pattern: str) -> list[Path]:
    """The files that ``path`` stands for, in the order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"data.path={path}: no such file or folder on this node")
    names = [file.relative_to(path) for file in path.rglob(pattern) if file.is_file()]
    shown = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    if not shown:
        raise DataError(f"data.path={path}: no file matches data.pattern={pattern}")
    return [path / name for name in shown]


def read_text(file: Path) -> str:
    """The content, line ends as \\n whatever the system."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 at byte {error.start}; convert it, or leave it out (data.pattern)"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
