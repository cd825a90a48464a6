"""The run spec: everything that decides what a run does, typed, checked, and the same on every node."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from smolcluster.errors import Problem
from smolcluster.ports import Algorithm
from smolcluster.spec.schema import INTERNAL, TARGET, Group, Range


class Component(Protocol):
    """What every entry of a config group is: a frozen dataclass that can say what does not fit the rest."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        """What of this component cannot work with the other choices of ``spec``."""


@runtime_checkable
class Needy(Protocol):
    """A component that needs something which is not in the configuration: a file, a folder, a module."""

    def missing(self) -> Iterable[Problem]:
        """What of that is not on this machine. Quick, and without importing anything heavy."""


@runtime_checkable
class Particular(Protocol):
    """A component that takes from each machine something that machines do not have alike."""

    def pinned(self, folder: Path) -> Mapping[str, Path]:
        """Field -> a file of this machine, kept in ``folder``: with it all machines have what this one has."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long and how often: everything about training that is not an algorithm's or a model's."""

    max_steps: Annotated[int | None, Range(ge=1, unit="optimizer steps")] = None
    """Stop after so many optimizer steps; null: ``epochs`` decide."""
    epochs: Annotated[int | None, Range(ge=1, unit="epochs")] = None
    """Passes over the training set; null: what the data set says (``data.epochs``)."""
    batch_size: Annotated[int | None, Range(ge=1, le=65536, unit="samples")] = None
    """Per worker and step; null: 4096 // sequence length for language models, else 32."""
    eval_steps: Annotated[int | None, Range(ge=1, unit="optimizer steps")] = 200
    """Evaluate every so many steps (and at the end); null: only at the end."""
    eval_samples: Annotated[int | None, Range(ge=1, unit="samples")] = None
    """Evaluate on the first so many samples of the validation set; null: on all."""
    log_steps: Annotated[int, Range(ge=1, unit="optimizer steps")] = 1
    """Write a line of metrics every so many steps."""
    checkpoint_steps: Annotated[int | None, Range(ge=1, unit="optimizer steps")] = 500
    """Save every so many steps (and at the end); null: only at the end."""
    keep_checkpoints: Annotated[int, Range(ge=1, unit="checkpoints")] = 3
    """Keep the newest so many; the best one is kept besides."""
    precision: Literal["32", "bf16-mixed", "16-mixed", "64"] = "32"
    """Lightning Fabric's name for the arithmetic; 64 is for tests of exactness."""
    clip: Literal["global", "worker", "off"] = "global"
    """Clip the averaged gradient (equal to one process), each worker's own, or none."""
    grad_clip_norm: Annotated[float, Range(gt=0, unit="L2 norm")] = 1.0
    """Longest gradient that passes unclipped."""
    track_gradients: bool = False
    """Log the norm of each layer's gradient."""
    deterministic: bool = True
    """Use deterministic kernels only; two runs of one seed on the same machines give the same weights."""
    export: bool = True
    """Write export/ at the end: what transformers or torch loads."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """The resolved configuration of one run."""

    seed: Annotated[int, Range(ge=0, le=2**62)]
    """All randomness is a function of it and of counters."""
    resume: str | None
    """Directory of a run to go on from, or one of its checkpoints; null: start anew."""
    rerun: str | None
    """Directory of a run whose spec is taken as it stands; null: the configuration decides."""
    train: Train
    pipeline: Annotated[Any, Group(name="pipeline")]
    cluster: Annotated[Any, Group(name="cluster")]
    algo: Annotated[Algorithm, Group(name="algo")]
    model: Annotated[Any, Group(name="model")]
    data: Annotated[Any, Group(name="data")]
    optim: Annotated[Any, Group(name="optim")]
    schedule: Annotated[Any, Group(name="schedule")]
    aggregator: Annotated[Any, Group(name="aggregator")]
    comms: Annotated[Any, Group(name="comms")]
    tracking: Annotated[Any, Group(name="tracking")]
    logging: Annotated[Any, Group(name="logging")]
    choices: Mapping[str, str] = field(default_factory=dict, metadata={INTERNAL: True})
    """Which option of each group was chosen: ``{"algo": "syncps", ...}``."""

    @property
    def batch_size(self) -> int:
        """Samples per worker and step, with the automatic rule applied (docs/training.md, "Automatic values")."""
        if self.train.batch_size is not None:
            return self.train.batch_size
        length = self.seq_length
        return 32 if length is None else max(1, 4096 // length)

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step over all nodes. The number of workers is the configured one, so that
        the length of a run and its learning rates do not depend on who dies."""
        return self.batch_size * int(self.algo.batches_per_step(self.cluster.size))

    @property
    def seq_length(self) -> int | None:
        """Tokens per sample of a language model; None for a model that takes no tokens."""
        return getattr(self.model, "max_seq_len", None)

    @property
    def epochs(self) -> int | None:
        """Passes over the training set; None where only ``train.max_steps`` bounds the run."""
        return self.train.epochs if self.train.epochs is not None else self.data.epochs

    def plain(self) -> dict[str, Any]:
        """As plain data, each component with its ``_target_``: what nodes receive and ``run_spec.json`` holds."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def digest(self) -> str:
        """sha256 of the canonical JSON: two runs with one digest were asked to do the same thing."""
        text = json.dumps(self.plain(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        inside = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return inside if cls is Train else {TARGET: f"{cls.__module__}.{cls.__qualname__}", **inside}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
