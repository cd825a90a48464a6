"""A model's parameters and gradients as views into one contiguous buffer each.

Messages carry slices of the buffer, aggregators see ``[num_updates, num_params]``, the optimizer makes one
pass over it, and nothing is copied or serialised per tensor. The manifest (name, shape, offset) is agreed at
join by its hash. Tied tensors stand there once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smolcluster.errors import CheckpointError


class Entry(NamedTuple):
    """Where a named tensor lies in a flat buffer."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


class Manifest:
    """The entries of one flat buffer, in order."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.entries: list[Entry] = []
        self.numel = 0
        for name, tensor in tensors.items():
            self.entries.append(Entry(name, tuple(tensor.shape), self.numel))
            self.numel += tensor.numel()

    def views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, view of its shape) for each entry of ``flat`` [numel]."""
        for entry in self.entries:
            yield entry.name, flat[entry.offset : entry.offset + entry.numel].view(entry.shape)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(self.views(flat))

    def fill(self, flat: Tensor, named: Mapping[str, Tensor], what: str) -> None:
        """Copy ``named`` into ``flat``; names and shapes must be those of the manifest."""
        missing = sorted({entry.name for entry in self.entries} - named.keys())
        surplus = sorted(named.keys() - {entry.name for entry in self.entries})
        if missing or surplus:
            raise CheckpointError(f"{what} does not fit the model: missing {missing[:5]}, unknown {surplus[:5]}")
        for name, view in self.views(flat):
            if tuple(named[name].shape) != tuple(view.shape):
                shapes = f"{tuple(named[name].shape)} there, {tuple(view.shape)} in the model"
                raise CheckpointError(f"{what} does not fit the model: {name} has shape {shapes}")
            view.copy_(named[name])

    def fingerprint(self) -> str:
        text = json.dumps([[entry.name, entry.shape] for entry in self.entries])
        return hashlib.sha256(text.encode()).hexdigest()


class FlatModel:
    """Owns the buffers of a module that is already on its device.

    ``parameters`` and ``gradients`` have shape [num_params] in the module's precision; ``buffers`` gathers
    what is not trained (running statistics, frozen parameters) as float64 [num_buffers] when asked for.
    """

    def __init__(self, module: nn.Module) -> None:
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not trained:
            raise CheckpointError("the model has no trainable parameters")
        kinds = {p.dtype for p in trained.values()}
        if len(kinds) > 1:
            raise CheckpointError(f"trainable parameters must have one type, got {sorted(map(str, kinds))}")
        self.manifest = Manifest(trained)
        first = next(iter(trained.values()))
        self.parameters = torch.empty(self.manifest.numel, dtype=first.dtype, device=first.device)
        self.gradients = torch.zeros_like(self.parameters)
        with torch.no_grad():
            for name, view in self.manifest.views(self.parameters):
                view.copy_(trained[name])
                trained[name].data = view
        for name, view in self.manifest.views(self.gradients):
            trained[name].grad = view
        frozen = {name: p.data for name, p in module.named_parameters() if not p.requires_grad}
        self._others = {**frozen, **{name: b for name, b in module.named_buffers() if name in module.state_dict()}}
        self.buffer_manifest = Manifest(self._others)

    def buffers(self) -> Tensor | None:
        """What is not trained, as float64 [num_buffers] on the CPU; None where there is nothing."""
        if not self._others:
            return None
        return torch.cat([tensor.detach().reshape(-1).to("cpu", torch.float64) for tensor in self._others.values()])

    def load_buffers(self, flat: Tensor | None) -> None:
        """The inverse of :meth:`buffers`."""
        if flat is None:
            return
        for name, view in self.buffer_manifest.views(flat):
            target = self._others[name]
            target.copy_(view if target.is_floating_point() else view.round())

    def named_state(self) -> dict[str, Tensor]:
        """Everything by logical name, on the CPU: what a checkpoint holds."""
        state = {name: view.detach().cpu() for name, view in self.manifest.views(self.parameters)}
        return {**state, **{name: tensor.detach().cpu() for name, tensor in self._others.items()}}

    def load_named_state(self, state: Mapping[str, Tensor], what: str) -> None:
        trained = {name: tensor for name, tensor in state.items() if name not in self._others}
        with torch.no_grad():
            self.manifest.fill(self.parameters, trained, what)
            for name, target in self._others.items():
                if name not in state or state[name].shape != target.shape:
                    raise CheckpointError(f"{what} does not fit the model: {name} is missing or of another shape")
                target.copy_(state[name])

    def digest(self) -> str:
        """sha256 of all weights, by name: equal if and only if every bit is equal."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.named_state().items()):
            total.update(name.encode())
            total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()
