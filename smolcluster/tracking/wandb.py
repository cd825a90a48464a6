"""Weights & Biases, in a thread of its own: its start and its uploads may take seconds, a run waits for neither.

Events go through a bounded queue; what does not fit is counted and said at the end. Files lie in
``<run>/wandb/``. The key is W&B's own business: it is looked for, never read into anything that is written.
"""

from __future__ import annotations

import logging
import netrc
import os
import queue
import re
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from smolcluster.errors import Problem
from smolcluster.spec.schema import Range
from smolcluster.tracking.series import Thinning, scalars, step_of
from smolcluster.tracking.tracker import Event, RunInfo, Tracker, TrackerFailed, run_name

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

MAX_WAITING = 20_000
"""Events in the queue: some minutes of a fast run, about 20 MB."""
START_S = 20.0
"""W&B gets so many seconds to start; after that the run goes on offline."""
PRIVATE = re.compile(r"(.*_)?(key|password|secret)|token|.*(api|auth)_token|identity|ssh")
"""A field of the configuration whose name is like this is not sent."""
DEFAULT_SERVER = "https://api.wandb.ai"

logger = logging.getLogger(__name__)
Mode: TypeAlias = Literal["online", "offline", "disabled"]
MODES: Mapping[str, Mode] = {"online": "online", "offline": "offline", "disabled": "disabled"}


@dataclass(frozen=True, kw_only=True)
class Wandb:
    """Weights & Biases besides the run's directory."""

    project: str | None = None
    """Null: ``smolcluster``, and ``smolcluster-gpt-<data>`` for language models."""
    entity: str | None = None
    """The user or team that the project belongs to; null: the key's own."""
    per_node: bool = False
    """One W&B run per node, grouped by the run's id, instead of one for the job."""
    tags: tuple[str, ...] = ()
    """Put on every W&B run."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """auto: WANDB_MODE where that is set, else online where a key is found, else offline."""
    system_metrics: bool = False
    """W&B samples CPU, memory and GPU of the machine that the command runs on."""
    finish_s: Annotated[float, Range(ge=1, le=3600, unit="seconds")] = 30.0
    """Wait so long at the end for what is still to be uploaded."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if find_spec("wandb") is None:
            yield Problem(key="tracking", value="wandb", rule="needs a package: pip install wandb", nearest="files")
        if self.mode == "online" and not has_key(os.environ):
            rule = "needs a key: set WANDB_API_KEY, or run: wandb login"
            yield Problem(key="tracking.mode", value=self.mode, rule=rule, nearest="offline")

    def tracker(self, run: RunInfo) -> Tracker:
        return _Follower(self, run, resolved_mode(self.mode, os.environ))


def resolved_mode(asked: str, environ: Mapping[str, str]) -> Mode:
    """Whether W&B sends anything: what was asked, what WANDB_MODE says, or what is possible."""
    word = asked if asked != "auto" else environ.get("WANDB_MODE", "")
    return MODES.get(word) or ("online" if has_key(environ) else "offline")


def has_key(environ: Mapping[str, str]) -> bool:
    """Whether W&B will find a key: in WANDB_API_KEY, or in the netrc file for its server."""
    if environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(environ.get("WANDB_BASE_URL") or DEFAULT_SERVER).netloc
    places = [environ["NETRC"]] if environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    return any(_netrc_has(Path(place).expanduser(), host) for place in places)


def _netrc_has(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False  # W&B cannot read it either


def public(value: Any) -> Any:
    """A configuration without what is nobody else's business.

    >>> public({"lr": 1e-3, "serve": {"api_key": "abc", "port": 1}})
    {'lr': 0.001, 'serve': {'port': 1}}
    """
    if isinstance(value, Mapping):
        return {str(k): public(v) for k, v in value.items() if not PRIVATE.fullmatch(str(k).lower())}
    return [public(inner) for inner in value] if isinstance(value, (list, tuple)) else value


class _Follower:
    """The side of the thread that events come from. Never waits, but at the end."""

    def __init__(self, options: Wandb, run: RunInfo, mode: Mode) -> None:
        self._options, self._folder = options, run.path / "wandb"
        self._queue: queue.Queue[Event | None] = queue.Queue(MAX_WAITING)
        self._sender = _Sender(options, run, mode)
        self._thread: threading.Thread | None = None
        self._thinning = Thinning()
        self._config: Any = {}
        self._left_out = 0

    def start(self, spec: Mapping[str, Any]) -> Sequence[str]:
        self._config = public(spec)
        if self._sender.mode == "online":
            return ()
        if self._sender.mode == "disabled":
            return ("W&B: switched off by WANDB_MODE",)
        return ("W&B: offline" if has_key(os.environ) else "W&B: offline, for want of a key: run wandb login",)

    def on_event(self, event: Event) -> None:
        self._sender.check()
        if self._sender.mode == "disabled" or not self._thinning.passes(event) or not scalars(event):
            return
        self._start_thread()
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._left_out += 1

    def _start_thread(self) -> None:
        """With the first number to send, not before: W&B takes a second of processor that the nodes' start needs."""
        if self._thread is None:
            arguments = (self._queue, self._config)
            self._thread = threading.Thread(target=self._sender.work, args=arguments, name="wandb", daemon=True)
            self._thread.start()

    def finish(self, summary: Mapping[str, Any]) -> Sequence[str]:
        if self._thread is None:
            return ()
        self._sender.outcome = summary
        self._queue_end()
        self._thread.join(self._options.finish_s + (0.0 if self._sender.started else START_S))
        self._sender.check()
        return list(self._closing_words())

    def _queue_end(self) -> None:
        """The end comes last; where the queue is full, one event makes room for it."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            with suppress(queue.Empty):
                self._queue.get_nowait()
                self._left_out += 1
            self._queue.put_nowait(None)

    def _closing_words(self) -> Iterable[str]:
        if self._left_out:
            yield f"W&B: {self._left_out} measurements were left out, it did not keep up"
        if self._sender.unreachable:
            yield f"W&B: offline, it could not be reached: {self._sender.unreachable}"
        late = self._thread is not None and self._thread.is_alive()
        if late:
            yield f"W&B: not everything is uploaded after {self._options.finish_s:g} s (tracking.finish_s)"
        if late or self._sender.mode == "offline":
            kind = "offline-run-*" if self._sender.mode == "offline" else "run-*"
            yield f"W&B: to send this run: wandb sync {shlex.quote(str(self._folder))}/{kind}"


class _Sender:
    """The thread: starts W&B, hands it what the queue holds, ends it."""

    def __init__(self, options: Wandb, run: RunInfo, mode: Mode) -> None:
        self._options, self._run = options, run
        self._runs: dict[str, Any] = {}
        self._failure = ""
        self.mode, self.unreachable = mode, ""
        """How W&B works, and why it is offline where it was to be online."""
        self.started = False
        self.outcome: Mapping[str, Any] = {}
        """The run's summary; to be set before the end is put into the queue."""

    def check(self) -> None:
        """Raises TrackerFailed in the caller's thread where this one has come to an untimely end."""
        if self._failure:
            raise TrackerFailed(self._failure)

    def work(self, events: queue.Queue[Event | None], config: Any) -> None:
        try:
            self._open(config)
            self.started = True
            while (event := events.get()) is not None:
                self._send(event)
            self._close()
        except Exception as error:  # W&B raises a dozen types, and none may end this thread without a word
            logger.debug("W&B has failed", exc_info=True)
            self._failure = f"W&B: {_words(error)}"

    def _open(self, config: Any) -> None:
        """Start W&B; where its server does not answer, offline."""
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        try:
            self._init(wandb, config)
        except Exception as error:
            logger.debug("W&B does not start", exc_info=True)
            if self.mode != "online":
                raise
            self.mode, self.unreachable = "offline", _words(error)
            self._init(wandb, config)

    def _init(self, wandb: Any, config: Any) -> None:
        nodes = self._run.nodes if self._options.per_node else self._run.nodes[:1]
        for node in nodes:
            self._runs[node.name] = wandb.init(
                project=self._run.project,
                entity=self._options.entity,
                name=run_name(self._run, node),
                group=self._run.run_id,
                job_type=node.role if self._options.per_node else "train",
                tags=list(self._options.tags),
                config=config,
                dir=str(self._run.path),
                reinit="create_new",
                settings=self._settings(wandb),
            )
            self._runs[node.name].define_metric("*", step_metric="step")

    def _settings(self, wandb: Any) -> Any:
        """Nothing of the terminal, the code, its repository or this machine is sent unasked."""
        quiet = {"silent": True, "console": "off", "save_code": False, "disable_code": True, "disable_git": True}
        private = {"x_save_requirements": False, "x_disable_machine_info": True}
        patience = {"init_timeout": START_S, "login_timeout": START_S, "finish_timeout": self._options.finish_s}
        stats = {"x_disable_stats": not self._options.system_metrics}
        return wandb.Settings(mode=self.mode, **quiet, **private, **patience, **stats)

    def _send(self, event: Event) -> None:
        run = self._runs.get(str(event.get("node"))) or self._runs[self._run.nodes[0].name]
        run.log({"step": step_of(event), **scalars(event)})

    def _close(self) -> None:
        code = 0 if self.outcome.get("status") == "done" else 1
        for run in self._runs.values():
            run.summary.update(dict(self.outcome))
            run.finish(exit_code=code)


def _words(error: Exception) -> str:
    """The first line of what W&B says, its key blotted out should it quote it."""
    words = str(error).partition("\n")[0] or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return words.replace(key, "***") if key else words
