"""Every error that smolcluster raises on purpose. The type says whose fault it is, the text says what to do.

A message names what happened, where (node, step, operation or key path), what was got, and what is
allowed or to be done next. The command line prints the message alone, never a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SmolclusterError(Exception):
    """Base class. ``exit_code`` is what the command returns to the shell.

    ``final`` says that trying again gives the same error: a node that ends with it is not started again.
    """

    exit_code = 1
    final = False


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a configuration.

    ``key`` is the path a user would type (``optim.lr``), ``value`` what stands there, ``rule`` what is
    allowed, and ``nearest`` a valid choice close to it (empty where there is none).
    """

    key: str
    value: object
    rule: str
    nearest: str = ""

    def __str__(self) -> str:
        shown = f"{self.key}={self.value}" if self.value is not None else f"{self.key}=null"
        hint = f"; nearest valid: {self.nearest}" if self.nearest else ""
        return f"{shown}: {self.rule}{hint}"


class ConfigError(SmolclusterError):
    """The configuration is wrong; carries every problem found, not just the first."""

    exit_code = 2
    final = True

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RunFailed(SmolclusterError):
    """A run ended without doing its work; the text names the node, the step and the operation."""


class Interrupted(SmolclusterError):
    """The user asked the run to stop."""

    exit_code = 130


class PeerLost(SmolclusterError):
    """A peer did not answer within its deadline, or its connection is gone for good."""

    def __init__(self, peer: str, operation: str, reason: str) -> None:
        self.peer, self.operation, self.reason = peer, operation, reason
        super().__init__(f"lost {peer} during {operation}: {reason}")


class LocalProtocolError(SmolclusterError):
    """We tried to send something that the protocol does not allow: a bug on this side."""


class PeerProtocolError(SmolclusterError):
    """A peer sent something that the protocol does not allow. ``reason`` is the word it is counted under.

    ``fatal`` says that the byte stream cannot be trusted any further and the connection must be cut.
    """

    def __init__(self, reason: str, detail: str, *, fatal: bool = False) -> None:
        self.reason, self.fatal = reason, fatal
        super().__init__(f"{reason}: {detail}")


class AggregationError(SmolclusterError):
    """An aggregation rule cannot be applied to what arrived."""


class CheckpointError(SmolclusterError):
    """A checkpoint is missing, damaged, does not fit the model or cannot be written."""

    final = True


class DataError(SmolclusterError):
    """A data set cannot be loaded; the text names the choices that work without a network."""

    final = True
