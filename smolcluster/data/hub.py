"""The Hugging Face hub, reached or not within seconds.

Left alone, the hub's libraries repeat every request that fails for 23 s. So the hub is asked once, with a
deadline; where it does not answer, they are told to use their own cache only, and what is not in there is a
:class:`~smolcluster.errors.DataError` of one line that names the choices which need no network.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from smolcluster.data.dataset import Context
from smolcluster.errors import DataError, Problem

T = TypeVar("T")
DEADLINE_S = 6.0
"""How long the hub may take to answer the first request, name resolution included."""
OFFLINE_CHOICES = "data=digits, data=pydocs, or data=text data.path=<file>"


def load(read: Callable[[], T], *, what: str, instead: str, local: bool = False) -> T:
    """The result of ``read``, a call of a library that may use the hub (not where ``local``); else DataError.

    ``what`` names what is loaded and ``instead`` what can be chosen where that fails.
    """
    reason = "" if local else unreachable()
    try:
        if not reason:
            return read()
        with _offline():
            return read()
    except Exception as error:
        cause = f"the hub is out of reach, {reason}" if reason else _brief(error)
        raise DataError(f"{what}: cannot be loaded ({cause}); choose {instead}") from error


def splits(
    name: str,
    *,
    option: str,
    columns: Mapping[str, Sequence[str]],
    context: Context,
    config: str | None = None,
    revision: str = "main",
    path: str | None = None,
) -> list[list[Any]]:
    """The wanted ``columns`` of each split (split -> column names) of a data set on the hub, or of a copy in ``path``.

    A copy is a folder in the hub's layout, or one with ``<split>.parquet`` files.
    """
    source = Path(path).expanduser() if path else None
    if source is not None and not source.is_dir():
        raise DataError(f"data.path={path}: no such folder; choose a local copy of {name}, or {OFFLINE_CHOICES}")
    what = f"data={option} ({source or name})"
    instead = f"data.path=<local copy>, or {OFFLINE_CHOICES}"
    context.say(f"reading {what}")

    def read() -> Any:
        import datasets

        if source is None:
            return datasets.load_dataset(name, config, revision=revision)
        inner = source / config if config and (source / config).is_dir() else source
        return datasets.load_dataset(str(inner), cache_dir=str(context.cache / "datasets"))

    with _no_bars():
        found = load(read, what=what, instead=instead, local=source is not None)
    return [_columns(found, split, wanted, what) for split, wanted in columns.items()]


def _columns(found: Any, split: str, wanted: Sequence[str], what: str) -> list[Any]:
    if split not in found:
        raise DataError(f"{what}: has no split {split!r} (found: {', '.join(found)})")
    missing = [column for column in wanted if column not in found[split].column_names]
    if missing:
        raise DataError(f"{what}: split {split!r} has no column {missing} (found: {found[split].column_names})")
    return [found[split][column] for column in wanted]


def missing(key: str, path: str | None) -> Iterable[Problem]:
    """Whether the local copy that the key ``key`` names is on this machine."""
    if path is not None and not Path(path).expanduser().is_dir():
        yield Problem(key=key, value=path, rule="must be a folder on this machine; null: the hub")


def unreachable() -> str:
    """Why the hub does not answer, or an empty string. Asks once, within :data:`DEADLINE_S`."""
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(_ask()), name="hub-probe", daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    return outcome[0] if outcome else f"no answer within {DEADLINE_S:g} s"


def _ask() -> str:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=DEADLINE_S / 2)
    except Exception as error:  # noqa: BLE001 the session's library, and so its errors, differ between versions
        return f"{constants.ENDPOINT}: {_brief(error)}"
    return ""


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's libraries use their own caches only; they know the flag as a constant, read from the environment."""
    from huggingface_hub import constants

    modules: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, flag in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = flag


@contextmanager
def _no_bars() -> Iterator[None]:
    """No progress bars: a node's output goes to its controller line by line."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _brief(error: BaseException) -> str:
    """An error in one short line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]
