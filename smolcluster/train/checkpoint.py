"""Checkpoints: atomic, hashed, by logical name, and the same for every algorithm and number of nodes.

``checkpoints/step-<n>/`` holds model.safetensors, optimizer.safetensors, algorithm.safetensors (where the
algorithm keeps tensors) and state.json with the sha256 of each. It is written beside, fsynced and renamed: a
folder with its final name is complete. ``latest`` and ``best`` point at one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from smolcluster.errors import CheckpointError
from smolcluster.spec.resume import STATE, point_at, target_of

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory. ``plain`` is what is not a tensor: version, cursor, best metric, algorithm state."""

    step: int
    plain: Mapping[str, Any]
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    algorithm: Mapping[str, Tensor] = field(default_factory=dict)


def save(root: Path, checkpoint: Checkpoint, *, keep: int, best: bool) -> Path:
    """Write ``root/step-<n>``, point ``latest`` (and ``best``) at it, remove all but the newest ``keep`` and best.

    What cannot be written whole leaves nothing behind; CheckpointError then says why.
    """
    folder = root / f"step-{checkpoint.step}"
    beside, before = (root / f".{word}-{checkpoint.step}-{os.getpid()}" for word in ("writing", "replaced"))
    try:
        _write_parts(beside, checkpoint)
        if folder.exists():  # the same step again; between the two renames `latest` means the newest that is whole
            folder.rename(before)
        beside.rename(folder)
        point_at(root / "latest", folder.name)
        if best:
            point_at(root / "best", folder.name)
        _sync_folder(root)
        _prune(root, keep)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {folder} cannot be written: {error.strerror or error}") from error
    finally:
        if before.exists() and not folder.exists():
            before.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
    return folder


def _write_parts(beside: Path, checkpoint: Checkpoint) -> None:
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    hashes = {}
    for name in ("model", "optimizer", "algorithm"):
        tensors = getattr(checkpoint, name)
        if tensors:
            data = save_tensors({key: tensor.contiguous() for key, tensor in tensors.items()})
            hashes[f"{name}.safetensors"] = hashlib.sha256(data).hexdigest()
            _write(beside / f"{name}.safetensors", data)
    state = {"format": FORMAT, "step": checkpoint.step, "sha256": hashes, **checkpoint.plain}
    _write(beside / STATE, json.dumps(state, indent=1).encode())
    _sync_folder(beside)


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint; CheckpointError names the file that is missing or damaged."""
    folder = target_of(folder)
    try:
        state = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {STATE}") from None
    except OSError as error:
        raise CheckpointError(f"{folder / STATE} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / STATE} is damaged: {error}") from None
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{folder / STATE} is damaged: it does not say its format")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{folder} has checkpoint format {state['format']}; this version reads {FORMAT}")
    parts: dict[str, Mapping[str, Tensor]] = {}
    for name, digest in state["sha256"].items():
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is damaged: {name} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise CheckpointError(f"{folder / name} is damaged: its sha256 is not the one in {STATE}")
        parts[name.removesuffix(".safetensors")] = load_tensors(data)
    plain = {key: value for key, value in state.items() if key not in ("format", "step", "sha256")}
    return Checkpoint(step=state["step"], plain=plain, **parts)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a directory cannot be opened there; renames are durable by themselves
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prune(root: Path, keep: int) -> None:
    steps = sorted((f for f in root.glob("step-*") if f.is_dir()), key=lambda f: int(f.name.removeprefix("step-")))
    kept = {target_of(root / name).name for name in ("latest", "best")}
    for folder in steps[:-keep]:
        if folder.name not in kept:
            shutil.rmtree(folder)
    for pattern in (".writing-*", ".replaced-*"):  # of a process that was killed while it wrote
        for leftover in root.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)
