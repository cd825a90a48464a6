"""Text to a data set of tokens: held out, tokenised, packed, and kept in the cache for the next start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smolcluster.data import cache, packing
from smolcluster.data import tokenizer as tokenizers
from smolcluster.data.dataset import Blocks, Context, DataInfo, Dataset
from smolcluster.errors import DataError
from smolcluster.spec.seeds import derive

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Texts(NamedTuple):
    """The documents of the training and of the validation part."""

    train: list[str]
    validation: list[str]


def token_dataset(
    *,
    option: str,
    key: Sequence[Any],
    read: Callable[[], Texts],
    tokenizer: str,
    num_samples: int | None,
    context: Context,
) -> Dataset:
    """The data set of ``read()``'s documents, blocks as long as the model's sequence.

    ``key`` holds the plain values that decide what ``read`` returns; where the cache has an entry for them
    (and for the tokenizer), nothing is read.
    """
    seq_length = required_length(option, context)

    def build(folder: Path) -> None:
        texts = read()
        context.say(f"data={option}: tokenising {sum(map(len, texts))} documents with {tokenizer}")
        _tokenise(option, texts, tokenizer, folder)

    entry = cache.entry(option, [*key, *tokenizers.key(tokenizer)], context, build)
    made = tokenizers.load(tokenizer, entry)
    return of_streams(_streams(entry), made.vocab_size, seq_length, num_samples, made)


def of_streams(
    streams: Sequence[NDArray[Any]],
    vocab_size: int,
    seq_length: int,
    num_samples: int | None,
    tokenizer: tokenizers.Tokenizer | None,
) -> Dataset:
    """The data set of two packed streams, training and validation."""
    info = DataInfo(kind="tokens", input_shape=(seq_length,), vocab_size=vocab_size, seq_length=seq_length)
    parts = [Blocks(stream=stream, seq_length=seq_length) for stream in streams]
    return Dataset.of(parts, info, num_samples=num_samples, tokenizer=tokenizer)


def required_length(option: str, context: Context) -> int:
    """The sequence length, which token data cannot do without."""
    if context.seq_length is None:
        raise DataError(f"data={option} gives tokens: the model must say its sequence length (model.max_seq_len)")
    return context.seq_length


def hold_out(documents: Sequence[str], share: float) -> Texts:
    """``share`` of the characters for validation: whole documents, drawn in an order that never changes.

    Where whole documents cannot come near that (few, or very unequal), it is the end of every document instead,
    cut at a line break where one is near.
    """
    wanted = share * sum(map(len, documents))
    held: set[int] = set()
    size = 0
    for i in sorted(range(len(documents)), key=lambda i: derive(0, "hold-out", i)):
        if documents[i] and size + len(documents[i]) <= wanted:
            held.add(i)
            size += len(documents[i])
    if 2 * size < wanted:
        return _tails(documents, share)
    train = [document for i, document in enumerate(documents) if i not in held]
    return Texts(train, [documents[i] for i in sorted(held)])


def _tails(documents: Sequence[str], share: float) -> Texts:
    train, validation = [], []
    for document in documents:
        cut = round(len(document) * (1 - share))
        farthest = max(0, round(len(document) * (1 - 2 * share)))
        cut = document.rfind("\n", farthest, cut) + 1 or cut
        train.append(document[:cut])
        validation.append(document[cut:])
    return Texts(train, validation)


def _tokenise(option: str, texts: Texts, spec: str, folder: Path) -> None:
    """Fill a cache entry: the tokenizer's files and one stream per part."""
    import numpy as np

    if not any(texts.train):
        raise DataError(f"data={option}: there is no text to train on")
    tokenizer = tokenizers.make(spec, texts.train, folder)
    for part, documents in texts._asdict().items():
        stream = packing.pack(tokenizer.encode_documents(documents), tokenizer.eos_id, tokenizer.vocab_size)
        np.save(folder / f"{part}.npy", stream)


def _streams(entry: Path) -> list[NDArray[Any]]:
    """The streams of an entry, read from disk as they are needed."""
    import numpy as np

    return [np.load(entry / f"{part}.npy", mmap_mode="r") for part in Texts._fields]
